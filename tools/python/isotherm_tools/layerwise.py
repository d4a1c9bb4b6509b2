"""Runs a model layer by layer over many windows at once, so that one layer's weights are all that memory holds.

What a predictor is fitted to and measured on passes by on the way: the FFN inputs of every layer and which neurons fire.
Residuals are [windows, tokens, hidden]; every window starts at position 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from isotherm_tools.arrays import Arrays
from isotherm_tools.decoder_shape import SPARSE_ACTIVATIONS, decoder_shape
from isotherm_tools.errors import UserError
from isotherm_tools.gguf_container import GgufFile

PREDICTOR_TENSORS = ("pred_a.weight", "pred_b.weight", "pred_b.bias", "fc1.weight", "fc2.weight")

_LAYER_TENSORS = {f"{name}.{part}" for part in ("weight", "bias") for name in (
    "attn_norm", "attn_norm_2", "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_norm", "ffn_gate", "ffn_up",
    "ffn_down", "ffn_down_t")} | {"ffn_act_counts", *PREDICTOR_TENSORS} - {"attn_qkv.bias", "ffn_gate.bias"}
_MODEL_TENSORS = {"token_embd.weight", "position_embd.weight", "rope_freqs.weight", "output_norm.weight", "output_norm.bias",
                  "output.weight"}


@dataclass(frozen=True)
class Affine:
    """weight . x + bias, or in a norm weight * x + bias."""

    weight: Any
    bias: Any = 0.0
    """0 where the file has none."""

    def __call__(self, x: Any) -> Any:
        return x @ self.weight.T + self.bias


@dataclass(frozen=True)
class LayerWeights:
    """One layer's weights in F32, matrices [outputs, inputs]."""

    attention_norm: Affine
    q: Affine
    k: Affine
    v: Affine
    attention_output: Affine
    ffn_norm: Affine
    activated: Affine
    """[ffn, hidden]: gate, or up where there is no gate. What decides whether a neuron fires."""
    up: Affine | None
    """Of a gated FFN."""
    down: Affine


class LayerwiseDecoder:
    """The layers of a model whose FFN neurons can be inactive. UserError names what is not supported."""

    def __init__(self, file: GgufFile, arrays: Arrays) -> None:
        self.shape = s = decoder_shape(file)
        if s.activation not in SPARSE_ACTIVATIONS:
            raise UserError(f"{file.path} has activation '{s.activation}', with which every neuron is always active; "
                            f"predictors are for {', '.join(SPARSE_ACTIVATIONS)}")
        for name in file.tensors:
            # A tensor that this pass leaves out would change what it computes.
            if name not in _MODEL_TENSORS and not (name.startswith("blk.") and name.split(".", 2)[2] in _LAYER_TENSORS):
                raise UserError(f"{file.path} has a tensor {name}, which this tool's forward pass does not know")
        self._file = file
        self._arrays = arrays
        frequencies = s.rope_base ** (-np.arange(0, s.rope_dims, 2, dtype=np.float64) / s.rope_dims)
        if "rope_freqs.weight" in file.tensors:
            frequencies /= file.values("rope_freqs.weight")
        angles = np.arange(s.context)[:, None] / s.rope_scale * frequencies
        self._cos, self._sin = (arrays.put(f(angles)[:, None, :]) for f in (np.cos, np.sin))

    def weights(self, layer: int) -> LayerWeights:
        """Reads and decodes one layer."""
        s, p, tensors = self.shape, f"blk.{layer}.", self._file.tensors
        if f"{p}attn_qkv.weight" in tensors:
            fused = self._values(f"{p}attn_qkv.weight")
            query, key = s.heads * s.head_dim, s.kv_heads * s.head_dim
            q, k, v = (Affine(fused[start:stop]) for start, stop in
                       ((0, query), (query, query + key), (query + key, query + 2 * key)))
        else:
            q, k, v = (self._affine(f"{p}attn_{part}") for part in "qkv")
        norms = [self._affine(f"{p}{name}") for name in ("attn_norm_2", "attn_norm", "ffn_norm") if f"{p}{name}.weight" in tensors]
        transposed = f"{p}ffn_down_t.weight" in tensors
        down = self._affine(f"{p}ffn_down_t" if transposed else f"{p}ffn_down")
        return LayerWeights(
            attention_norm=norms[0], q=q, k=k, v=v, attention_output=self._affine(f"{p}attn_output"), ffn_norm=norms[-1],
            activated=self._affine(f"{p}{s.activated}"), up=self._affine(f"{p}ffn_up") if s.family.gated else None,
            down=Affine(down.weight.T, down.bias) if transposed else down)

    def embed(self, windows: np.ndarray) -> Any:
        """The residual before the first layer of token ids [windows, tokens]."""
        x = self._file.values("token_embd.weight")[windows] * np.float32(self.shape.embedding_scale)
        if self.shape.family.position_offset is not None:
            first = self.shape.family.position_offset
            x = x + self._file.values("position_embd.weight")[first:first + windows.shape[1]]
        return self._arrays.put(x)

    def attend(self, w: LayerWeights, residual: Any) -> Any:
        """The residual after the layer's attention."""
        return residual + self.shape.residual_scale * self._attention(w, residual)

    def ffn_input(self, w: LayerWeights, residual: Any) -> Any:
        """The FFN norm of a residual: that after attention, or with parallel attention the layer's input."""
        return self._norm(residual, w.ffn_norm)

    def fires(self, w: LayerWeights, ffn_input: Any) -> Any:
        """Which neurons [..., ffn] are not zero."""
        fires = w.activated(ffn_input) > self.shape.firing_threshold
        return fires & (w.up(ffn_input) > 0) if self.shape.activation == "drelu" and w.up is not None else fires

    def ffn(self, w: LayerWeights, ffn_input: Any, kept: Any = None) -> Any:
        """What the FFN adds to the residual, with all neurons or those `kept` [..., ffn]."""
        neurons = self._neurons(w, ffn_input)
        return self.shape.residual_scale * w.down(neurons if kept is None else neurons * kept)

    def energies(self, w: LayerWeights, ffn_input: Any) -> Any:
        """Square of the length of what each neuron adds [..., ffn], but for the layer's common scale."""
        return self._neurons(w, ffn_input) ** 2 * (w.down.weight ** 2).sum(axis=0)

    def losses(self, residual: Any, windows: np.ndarray) -> float:
        """Summed negative log-likelihood, in nats, of all tokens but the first of each window."""
        xp = self._arrays.xp
        x = self._norm(residual[:, :-1], self._affine("output_norm"))
        head = self._values("output.weight" if "output.weight" in self._file.tensors else "token_embd.weight")
        total = 0.0
        for rows, ids in zip(x, windows[:, 1:], strict=True):
            logits = rows @ head.T * self.shape.logit_scale
            logits = logits - xp.amax(logits, axis=-1, keepdims=True)
            chosen = logits[xp.arange(len(ids)), self._arrays.put(ids)]
            total += float((xp.log(xp.exp(logits).sum(axis=-1)) - chosen).sum())
        return total

    def _values(self, name: str) -> Any:
        return self._arrays.put(self._file.values(name))

    def _affine(self, name: str) -> Affine:
        bias = f"{name}.bias"
        return Affine(self._values(f"{name}.weight"), self._values(bias) if bias in self._file.tensors else 0.0)

    def _attention(self, w: LayerWeights, residual: Any) -> Any:
        s, xp = self.shape, self._arrays.xp
        windows, tokens, _ = residual.shape
        x = self._norm(residual, w.attention_norm)

        def heads(y: Any, count: int) -> Any:
            """[windows, KV heads, heads of each, tokens, head_dim]"""
            return y.swapaxes(1, 2).reshape(windows, s.kv_heads, count // s.kv_heads, tokens, s.head_dim)

        q, k = (self._rotate(part(x).reshape(windows, tokens, count, s.head_dim))
                for part, count in ((w.q, s.heads), (w.k, s.kv_heads)))
        v = w.v(x).reshape(windows, tokens, s.kv_heads, s.head_dim)
        causal = self._arrays.put(np.triu(np.full((tokens, tokens), -np.inf, dtype=np.float32), 1))
        scores = heads(q, s.heads) @ heads(k, s.kv_heads).swapaxes(-1, -2) / s.head_dim ** 0.5 + causal
        scores = xp.exp(scores - xp.amax(scores, axis=-1, keepdims=True))
        mixed = scores / scores.sum(axis=-1, keepdims=True) @ heads(v, s.kv_heads)
        return w.attention_output(mixed.reshape(windows, s.heads, tokens, s.head_dim).swapaxes(1, 2).reshape(windows, tokens, -1))

    def _neurons(self, w: LayerWeights, ffn_input: Any) -> Any:
        """Activations [..., ffn]."""
        gate = w.activated(ffn_input)
        neurons = gate * (gate > self.shape.firing_threshold)
        if self.shape.activation == "relu2":
            neurons = neurons * neurons
        if w.up is not None:
            up = w.up(ffn_input)
            neurons = neurons * (up * (up > 0) if self.shape.activation == "drelu" else up)
        return neurons

    def _norm(self, x: Any, norm: Affine) -> Any:
        if self.shape.family.layer_norm:
            x = x - x.mean(axis=-1, keepdims=True)
        return x / self._arrays.xp.sqrt((x * x).mean(axis=-1, keepdims=True) + self.shape.norm_epsilon) * norm.weight + norm.bias

    def _rotate(self, x: Any) -> Any:
        """x is [windows, tokens, heads, head_dim]; its leading rope_dims dimensions turn."""
        s, xp = self.shape, self._arrays.xp
        if s.family.position_offset is not None:
            return x
        cos, sin = self._cos[:x.shape[1]], self._sin[:x.shape[1]]
        half = s.rope_dims // 2
        if s.family.rope_halves:
            a, b = x[..., :half], x[..., half:s.rope_dims]
            turned = xp.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)
        else:
            a, b = x[..., 0:s.rope_dims:2], x[..., 1:s.rope_dims:2]
            turned = xp.stack((a * cos - b * sin, b * cos + a * sin), axis=-1).reshape(*x.shape[:-1], s.rope_dims)
        return xp.concatenate((turned, x[..., s.rope_dims:]), axis=-1)
