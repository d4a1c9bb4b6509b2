"""Runs a Llama layer by layer over many windows at once, so that one layer's weights are all that memory holds.

What a predictor is fitted to and measured on passes by on the way: the FFN inputs of every layer and which neurons fire.
Residuals are [windows, tokens, hidden]; every window starts at position 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from isotherm_tools import gguf_llama as gl
from isotherm_tools.arrays import Arrays
from isotherm_tools.errors import UserError
from isotherm_tools.gguf_container import POWERINFER, GgufFile

ACTIVATIONS = {"llama": "silu", "mistral": "silu", "bamboo": "drelu"}
"""Architectures that this pass knows, and the activation of a file that names none."""

SPARSE_ACTIVATIONS = ("relu", "fatrelu", "drelu")
KEY_ACTIVATION_THRESHOLD = "isotherm.ffn.activation_threshold"

_LAYER_TENSORS = {"attn_norm.weight", "attn_q.weight", "attn_k.weight", "attn_v.weight", "attn_output.weight", "ffn_norm.weight",
                  "ffn_gate.weight", "ffn_up.weight", "ffn_down.weight", "ffn_down_t.weight", "ffn_act_counts"}
_MODEL_TENSORS = {"token_embd.weight", "output_norm.weight", "output.weight"}
PREDICTOR_TENSORS = ("pred_a.weight", "pred_b.weight", "pred_b.bias", "fc1.weight", "fc2.weight")


@dataclass(frozen=True)
class LayerWeights:
    """One layer's weights in F32, [outputs, inputs] all but `down_t`."""

    attention_norm: Any
    q: Any
    k: Any
    v: Any
    attention_output: Any
    ffn_norm: Any
    gate: Any
    up: Any
    down_t: Any
    """[ffn, hidden]"""


class LayerwiseLlama:
    """The layers of a Llama-shaped file whose FFN neurons can be inactive. UserError names what is not supported."""

    def __init__(self, file: GgufFile, arrays: Arrays) -> None:
        architecture = file.metadata.get("general.architecture")
        if architecture not in ACTIVATIONS:
            raise UserError(f"{file.path} has architecture '{architecture}'; predictors can be trained for {', '.join(ACTIVATIONS)}")
        own = ACTIVATIONS[architecture]
        if file.magic == POWERINFER and own not in SPARSE_ACTIVATIONS:
            own = "relu"
        self.activation = str(file.metadata.get(gl.KEY_ACTIVATION, own))
        if self.activation not in SPARSE_ACTIVATIONS:
            raise UserError(f"{file.path} has activation '{self.activation}', with which every neuron is always active; "
                             f"predictors are for {', '.join(SPARSE_ACTIVATIONS)}")
        keys = {key.replace(f"{architecture}.", "llama.", 1): value for key, value in file.metadata.items()}
        try:
            self.shape = gl.shape_of({**keys, "llama.vocab_size": file.tensors["token_embd.weight"].shape[0]})
        except KeyError as missing:
            raise UserError(f"{file.path} has no {missing.args[0]}") from None
        self._check(file, keys)
        if self.activation == "fatrelu" and KEY_ACTIVATION_THRESHOLD not in file.metadata:
            raise UserError(f"{file.path} has activation 'fatrelu' but no {KEY_ACTIVATION_THRESHOLD}")
        self.firing_threshold = float(file.metadata[KEY_ACTIVATION_THRESHOLD]) if self.activation == "fatrelu" else 0.0
        """A neuron fires where its gate is above; with drelu its up projection must be positive too."""
        self._file = file
        self._arrays = arrays
        frequencies = self.shape.rope_base ** (-np.arange(0, self.shape.head_dim, 2, dtype=np.float64) / self.shape.head_dim)
        angles = np.arange(self.shape.context)[:, None] / self.shape.rope_scale * frequencies
        self._cos, self._sin = (arrays.put(f(angles)[:, None, :]) for f in (np.cos, np.sin))

    def _check(self, file: GgufFile, keys: dict[str, object]) -> None:
        """A tensor that this pass leaves out would change what it computes."""
        known = _LAYER_TENSORS | set(PREDICTOR_TENSORS)
        for name in file.tensors:
            if name not in _MODEL_TENSORS and not (name.startswith("blk.") and name.split(".", 2)[2] in known):
                raise UserError(f"{file.path} has a tensor {name}, which this tool's forward pass does not know")
        if keys.get("llama.rope.dimension_count", self.shape.head_dim) != self.shape.head_dim:
            raise UserError(f"{file.path} rotates a part of each head, which this tool's forward pass does not know")
        if keys.get("llama.rope.scaling.type", "none") not in ("none", "linear"):
            raise UserError(f"{file.path} scales positions in a way this tool's forward pass does not know")

    def _values(self, name: str) -> Any:
        return self._arrays.put(self._file.values(name))

    def weights(self, layer: int) -> LayerWeights:
        """Reads and decodes one layer."""
        p = f"blk.{layer}."
        transposed = f"{p}ffn_down_t.weight" in self._file.tensors
        down_t = self._values(f"{p}ffn_down_t.weight") if transposed else self._values(f"{p}ffn_down.weight").T

        def read(name: str) -> Any:
            return self._values(f"{p}{name}.weight")

        return LayerWeights(attention_norm=read("attn_norm"), q=read("attn_q"), k=read("attn_k"), v=read("attn_v"),
                            attention_output=read("attn_output"), ffn_norm=read("ffn_norm"), gate=read("ffn_gate"),
                            up=read("ffn_up"), down_t=down_t)

    def embed(self, windows: np.ndarray) -> Any:
        """The residual before the first layer of token ids [windows, tokens]."""
        return self._arrays.put(self._file.values("token_embd.weight")[windows])

    def attend(self, w: LayerWeights, residual: Any) -> Any:
        """The residual after the layer's attention."""
        s, xp = self.shape, self._arrays.xp
        windows, tokens, _ = residual.shape
        group = s.heads // s.kv_heads
        x = self._norm(residual, w.attention_norm)

        def heads(projection: Any, count: int) -> Any:
            return (x @ projection.T).reshape(windows, tokens, count, s.head_dim)

        q = self._rotate(heads(w.q, s.heads)).swapaxes(1, 2).reshape(windows, s.kv_heads, group, tokens, s.head_dim)
        k = self._rotate(heads(w.k, s.kv_heads)).swapaxes(1, 2).reshape(windows, s.kv_heads, 1, tokens, s.head_dim)
        v = heads(w.v, s.kv_heads).swapaxes(1, 2).reshape(windows, s.kv_heads, 1, tokens, s.head_dim)
        causal = self._arrays.put(np.triu(np.full((tokens, tokens), -np.inf, dtype=np.float32), 1))
        scores = q @ k.swapaxes(-1, -2) / s.head_dim ** 0.5 + causal
        scores = xp.exp(scores - xp.amax(scores, axis=-1, keepdims=True))
        mixed = scores / scores.sum(axis=-1, keepdims=True) @ v
        mixed = mixed.reshape(windows, s.heads, tokens, s.head_dim).swapaxes(1, 2).reshape(windows, tokens, -1)
        return residual + mixed @ w.attention_output.T

    def ffn_input(self, w: LayerWeights, residual: Any) -> Any:
        """What gate and up are multiplied with, and own predictors read."""
        return self._norm(residual, w.ffn_norm)

    def fires(self, w: LayerWeights, ffn_input: Any) -> Any:
        """Which neurons [..., ffn] are not zero."""
        return self._fires(ffn_input @ w.gate.T, ffn_input @ w.up.T if self.activation == "drelu" else None)

    def ffn(self, w: LayerWeights, ffn_input: Any, kept: Any = None) -> Any:
        """The FFN's output, of all neurons or of those `kept` [..., ffn]."""
        gate, up = ffn_input @ w.gate.T, ffn_input @ w.up.T
        on = self._fires(gate, up)
        return (gate * (on if kept is None else on & kept) * up) @ w.down_t

    def _fires(self, gate: Any, up: Any) -> Any:
        return (gate > self.firing_threshold) & (up > 0) if self.activation == "drelu" else gate > self.firing_threshold

    def losses(self, residual: Any, windows: np.ndarray) -> float:
        """Summed negative log-likelihood, in nats, of all tokens but the first of each window."""
        xp = self._arrays.xp
        x = self._norm(residual[:, :-1], self._values("output_norm.weight"))
        head = self._values("output.weight" if "output.weight" in self._file.tensors else "token_embd.weight")
        total = 0.0
        for rows, ids in zip(x, windows[:, 1:], strict=True):
            logits = rows @ head.T
            logits = logits - xp.amax(logits, axis=-1, keepdims=True)
            chosen = logits[xp.arange(len(ids)), self._arrays.put(ids)]
            total += float((xp.log(xp.exp(logits).sum(axis=-1)) - chosen).sum())
        return total

    def _norm(self, x: Any, weight: Any) -> Any:
        return x / self._arrays.xp.sqrt((x * x).mean(axis=-1, keepdims=True) + self.shape.rms_eps) * weight

    def _rotate(self, x: Any) -> Any:
        """Pairs (2i, 2i + 1) of each head; x is [windows, tokens, heads, head_dim]."""
        cos, sin = self._cos[:x.shape[1]], self._sin[:x.shape[1]]
        even, odd = x[..., 0::2], x[..., 1::2]
        return self._arrays.xp.stack((even * cos - odd * sin, even * sin + odd * cos), axis=-1).reshape(x.shape)
