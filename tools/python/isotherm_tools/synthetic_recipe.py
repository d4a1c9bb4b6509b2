"""What a synthetic model is to be: its architecture, how often its neurons fire, and its vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from isotherm_tools import gguf_llama as gl

MOST_POPULAR = 0.95
"""Cap on a neuron's firing rate: a power law alone would pass 1."""


@dataclass(frozen=True)
class Blueprint:
    """How an architecture's layers differ from Llama's."""

    activation: str = "relu"
    implied: bool = False
    """The architecture has this activation of itself; no key names it."""
    gated: bool = True
    layer_norm: bool = False
    """LayerNorm with bias, not RMSNorm."""
    attention_biases: bool = False
    """Of Q, K and V."""
    biases: bool = False
    """Of the other matrices."""
    parallel: bool = False
    """Attention and FFN both read the layer's input; Q, K and V are one matrix."""
    second_norm: bool = False
    """Attention has a norm of its own there."""
    positions: bool = False
    """Learned positions, and a head tied to the embedding."""


BLUEPRINTS: dict[str, Blueprint] = {
    "llama": Blueprint(),
    "mistral": Blueprint(),
    "qwen2": Blueprint(attention_biases=True),
    "minicpm": Blueprint(),
    "bamboo": Blueprint("drelu", implied=True),
    "arcee": Blueprint("relu2", implied=True, gated=False),
    "nemotron": Blueprint("relu2", implied=True, gated=False, layer_norm=True),
    "falcon": Blueprint(gated=False, layer_norm=True, parallel=True),
    "falcon-40b": Blueprint(gated=False, layer_norm=True, parallel=True, second_norm=True),
    "opt": Blueprint(implied=True, gated=False, layer_norm=True, attention_biases=True, biases=True, positions=True),
}
"""By the name that --arch takes."""

POWERINFER_ARCHITECTURES = ("llama", "bamboo", "falcon", "falcon-40b", "opt")


@dataclass(frozen=True)
class Recipe:
    """What to write."""

    shape: gl.LlamaShape
    type_name: str = "f16"
    active: float | tuple[float, ...] = 0.10
    """Share of a layer's neurons that fire for a token, on average; several are spread from the first layer to the last."""
    popularity_exponent: float | tuple[float, ...] = 0.75
    """x: the neuron of rank r fires in proportion to r^-x, up to a cap; several as for `active`."""
    rank: int = 0
    """0: gate rows are independent. Otherwise gate and its bias have this rank and an exact predictor is stored."""
    calibration_tokens: int = 512
    measured_tokens: int = 256
    seed: int = 1
    architecture: str = "llama"
    """A key of BLUEPRINTS."""
    predictor_type: str = "f16"
    """Of the stored predictor in Isotherm's form: f16 or q8_0, f32 in a file of F32."""
    predictor_margin: float = 3.0
    """In Isotherm's form, in standard deviations of what quantising does to scores: neurons so far below firing are kept, too."""
    locality: float = 0.0
    """Share of an embedding's variance that its topic decides. Text stays on a topic for a while, and so do the neurons."""

    @property
    def blueprint(self) -> Blueprint:
        if self.architecture not in BLUEPRINTS:
            raise ValueError(f"architecture {self.architecture!r} is not among {', '.join(BLUEPRINTS)}")
        return BLUEPRINTS[self.architecture]

    def layer_active(self, layer: int) -> float:
        """The share of neurons that is to fire in a layer."""
        return _by_depth(self.active, layer, self.shape.layers)

    def layer_rates(self, layer: int) -> np.ndarray:
        """Firing rates [ffn] of a layer by rank."""
        exponent = _by_depth(self.popularity_exponent, layer, self.shape.layers)
        return firing_rates(self.shape.ffn, self.layer_active(layer), exponent)


@dataclass
class Measured:
    """What came out, by layer, on tokens that were not calibrated on."""

    active_by_layer: list[float] = field(default_factory=list)
    """Share of neurons that fire."""
    again_by_layer: list[float] = field(default_factory=list)
    """Share of the firing neurons that fired for the token before, too."""
    recall_by_layer: list[float] = field(default_factory=list)
    """Share of firing neurons that the stored predictor keeps; empty without one."""
    kept_by_layer: list[float] = field(default_factory=list)
    """Share of neurons that the stored predictor keeps; empty without one."""


def _by_depth(values: float | tuple[float, ...], layer: int, layers: int) -> float:
    """A layer's value on the line through `values`, of which the first is layer 0's and the last the last layer's."""
    if not isinstance(values, tuple):
        return values
    at = layer / max(layers - 1, 1) * (len(values) - 1)
    return float(np.interp(at, np.arange(len(values)), values))


def firing_rates(ffn: int, active: float, exponent: float) -> np.ndarray:
    """Rates [ffn] by rank, min(cap, k * rank^-exponent), with mean `active`."""
    if not 0 < active < MOST_POPULAR:
        raise ValueError(f"active share {active} is not between 0 and {MOST_POPULAR}")
    law = np.arange(1, ffn + 1, dtype=np.float64) ** -exponent
    low, high = 0.0, float(ffn) ** (exponent + 1)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.minimum(MOST_POPULAR, middle * law).mean() < active else (low, middle)
    return np.minimum(MOST_POPULAR, high * law)


def _pieces() -> Iterator[str]:
    letters = "etaoinshrdlucmfwgypbvkxqjz"
    space = "\u2581"
    yield space
    yield from (chr(code) for code in range(33, 127))
    yield from (space + a for a in letters)
    yield from (a + b for a in letters for b in letters)
    yield from (space + a + b for a in letters for b in letters)
    yield from (a + b + c for a in letters for b in letters for c in letters)
    yield from (space + a + b + c for a in letters for b in letters for c in letters)
    yield from (a + b + c + d for a in letters for b in letters for c in letters for d in letters)


def synthetic_vocabulary(size: int) -> gl.Vocabulary:
    """A SentencePiece-like vocabulary: control and byte tokens, printable characters, then pieces up to four letters.

    Every piece can be reached by merging two others, so ordinary text becomes ordinary tokens.
    """
    source = _pieces()
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    if size < len(tokens):
        raise ValueError(f"a vocabulary of {size} has no room for 3 control and 256 byte tokens")
    kinds = [2, 3, 3] + [6] * 256 + [1] * (size - 259)
    scores = [0.0] * 259 + [-float(rank) for rank in range(size - 259)]
    tokens += [next(source) for _ in range(size - 259)]
    return gl.Vocabulary(tokens, scores, kinds)
