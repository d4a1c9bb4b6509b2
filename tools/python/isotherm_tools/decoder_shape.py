"""What a model file says about its decoder: sizes, and how its family differs from a Llama.

The counterpart of common/model, for tools that run a model themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from isotherm_tools.errors import UserError
from isotherm_tools.gguf_container import POWERINFER, GgufFile

SPARSE_ACTIVATIONS = ("relu", "fatrelu", "relu2", "drelu")


@dataclass(frozen=True)
class Family:
    """What all files of an architecture share."""

    activation: str
    """Of a file that names none."""
    gated: bool = True
    layer_norm: bool = False
    rope_halves: bool = False
    """Rotary pairs are (i, n + i), else (2i, 2i + 1)."""
    parallel_attention: bool = False
    """Attention and FFN both read the layer's input."""
    position_offset: int | None = None
    """Learned positions: token t has row t + offset. None: rotary positions."""
    scaled: bool = False
    """MiniCPM's scales of embedding, branches and logits."""


FAMILIES = {
    "llama": Family("silu"),
    "mistral": Family("silu"),
    "bamboo": Family("drelu"),
    "minicpm": Family("silu", scaled=True),
    "qwen2": Family("silu", rope_halves=True),
    "falcon": Family("gelu", gated=False, layer_norm=True, rope_halves=True, parallel_attention=True),
    "opt": Family("relu", gated=False, layer_norm=True, position_offset=2),
    "nemotron": Family("relu2", gated=False, layer_norm=True, rope_halves=True),
    "arcee": Family("relu2", gated=False),
}


@dataclass(frozen=True)
class DecoderShape:
    """Hyperparameters of one file. Widths are numbers of elements."""

    family: Family
    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    context: int
    norm_epsilon: float
    rope_dims: int
    rope_base: float
    rope_scale: float
    """Positions are divided by it."""
    activation: str
    firing_threshold: float
    """A neuron fires where its pre-activation is above; with drelu its up projection must be positive too."""
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0

    @property
    def activated(self) -> str:
        """The matrix whose product decides whether a neuron fires."""
        return "ffn_gate" if self.family.gated else "ffn_up"


class _Keys:
    """The metadata of the file's architecture."""

    def __init__(self, file: GgufFile, architecture: str) -> None:
        self._file = file
        self._prefix = architecture

    def get(self, key: str, default: float | None = None) -> Any:
        value = self._file.metadata.get(f"{self._prefix}.{key}", default)
        if value is None:
            raise UserError(f"{self._file.path} has no {self._prefix}.{key}; is it a model?")
        return value


def decoder_shape(file: GgufFile) -> DecoderShape:
    """Reads it, or says with UserError what about the file is not supported."""
    architecture = str(file.metadata.get("general.architecture"))
    family = FAMILIES.get(architecture)
    if family is None:
        raise UserError(f"{file.path} has architecture '{architecture}'; supported: {', '.join(FAMILIES)}")
    keys = _Keys(file, architecture)
    activation = _activation(file, family)
    threshold = 0.0
    if activation == "fatrelu":
        threshold = float(file.metadata.get("isotherm.ffn.activation_threshold", -1))
        if threshold < 0:
            raise UserError(f"{file.path} has activation 'fatrelu' but no isotherm.ffn.activation_threshold")
    if str(keys.get("rope.scaling.type", "none")) not in ("none", "linear"):  # type: ignore[arg-type]
        raise UserError(f"{file.path} scales its positions by '{keys.get('rope.scaling.type')}'; supported: none, linear")
    heads, hidden, layers = (int(keys.get(key)) for key in ("attention.head_count", "embedding_length", "block_count"))
    head_dim = int(keys.get("attention.key_length", hidden // heads))
    context = int(keys.get("context_length"))
    if family.position_offset is not None:
        context = min(context, file.tensors["position_embd.weight"].shape[0] - family.position_offset)
    norm = "layer_norm_epsilon" if family.layer_norm else "layer_norm_rms_epsilon"
    scales = {}
    if family.scaled:
        scales = {"embedding_scale": float(keys.get("embedding_scale", 12)),
                  "residual_scale": float(keys.get("residual_scale", 1.4 / layers ** 0.5)),
                  "logit_scale": 1 / float(keys.get("logit_scale", hidden / 256))}
    return DecoderShape(
        family, layers=layers, hidden=hidden, ffn=int(keys.get("feed_forward_length")), heads=heads,
        kv_heads=int(keys.get("attention.head_count_kv", heads)), head_dim=head_dim, context=context,
        norm_epsilon=float(keys.get(f"attention.{norm}", 1e-5 if architecture == "opt" else None)),
        rope_dims=int(keys.get("rope.dimension_count", head_dim)), rope_base=float(keys.get("rope.freq_base", 10000.0)),
        rope_scale=float(keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 1.0))) or 1.0,
        activation=activation, firing_threshold=threshold, **scales)


def _activation(file: GgufFile, family: Family) -> str:
    own = family.activation
    if file.magic == POWERINFER and own not in SPARSE_ACTIVATIONS:
        own = "relu"
    return str(file.metadata.get("isotherm.ffn.activation", own))
