"""Low-rank predictors of firing neurons: the training-free form, its calibration, and PowerInfer's form of any.

The best rank-r estimate of the pre-activations W x in the mean square is their projection on their r leading principal
directions U: U (U^T W) x. That is the truncated singular value decomposition of W after whitening x. Rows of W are
first divided by the standard deviation of their pre-activation, so that no neuron counts more for being large. What the estimate
misses has a known spread for each neuron; scores are in units of it, so that one bound for a layer treats neurons alike,
and the bias that it becomes is calibrated for each of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from isotherm_tools.arrays import Arrays
from isotherm_tools.gguf_container import F16, F32, Q8_0

KINDS = {"f32": F32, "f16": F16, "q8_0": Q8_0}
BLOCK = 32
"""Ranks are multiples of a block of Q8_0."""

_LEAST_SPREAD = 0.01
"""Of a pre-activation's standard deviation: near full rank, rounding the factors to 8 bits is what remains."""


@dataclass(frozen=True)
class LowRank:
    """Keep neuron j where (b . f(a . input) + bias)[j] >= 0, with f = relu if `relu_between`, else the identity."""

    a: Any
    """[rank, hidden]"""
    b: Any
    """[ffn, rank]"""
    bias: Any
    """[ffn]; PowerInfer's form has none: zeros."""
    relu_between: bool = False
    reads_residual: bool = False
    """Input is the residual before the FFN norm, else the FFN input. The first unit of the middle layer then carries the biases."""

    @property
    def rank(self) -> int:
        return int(self.a.shape[0])

    def scores(self, residual: Any, ffn_input: Any) -> Any:
        """[..., ffn]"""
        hidden = (residual if self.reads_residual else ffn_input) @ self.a.T
        return (hidden * (hidden > 0) if self.relu_between else hidden) @ self.b.T + self.bias

    def unit(self, residual: Any) -> Any:
        """What a shift of 1 adds to the scores of each token [..., 1]."""
        if not self.reads_residual:
            return 1.0
        size = residual @ self.a[:1].T
        return size * (size > 0) + 1e-20  # where a token has no unit, only the sign of its scores matters

    def shifted(self, by: np.ndarray) -> LowRank:
        """The predictor whose bound for each neuron [ffn] is lower by so many units."""
        if not self.reads_residual:
            return replace(self, bias=self.bias + by)
        b = self.b.copy()
        b[:, 0] += by
        return replace(self, b=b)

    def put(self, arrays: Arrays) -> LowRank:
        return replace(self, a=arrays.put(self.a), b=arrays.put(self.b), bias=arrays.put(self.bias))

    def get(self, arrays: Arrays) -> LowRank:
        return replace(self, a=arrays.get(self.a), b=arrays.get(self.b), bias=arrays.get(self.bias))


class Moments:
    """Mean and covariance of rows that arrive in pieces, in F64."""

    def __init__(self, width: int) -> None:
        self._count = 0
        self._sum = np.zeros(width)
        self._squares = np.zeros((width, width))

    def add(self, rows: np.ndarray, products: np.ndarray) -> None:
        """rows [n, width], and rows^T rows."""
        self._count += len(rows)
        self._sum += rows.sum(axis=0, dtype=np.float64)
        self._squares += products

    @property
    def mean(self) -> np.ndarray:
        return self._sum / self._count

    @property
    def covariance(self) -> np.ndarray:
        return self._squares / self._count - np.outer(self.mean, self.mean)


class GateDecomposition:
    """The principal directions of a layer's pre-activations; numpy alone."""

    def __init__(self, gate: np.ndarray, threshold: np.ndarray | float, moments: Moments) -> None:
        """gate [ffn, hidden]; a neuron fires where its row's product is above `threshold` ([ffn] or one for all)."""
        gate = gate.astype(np.float64)
        variances, axes = np.linalg.eigh(moments.covariance)
        root = axes * np.sqrt(np.maximum(variances, 0))  # covariance = root root^T
        spread = np.linalg.norm(gate @ root, axis=1)
        # A row of zeros never fires; any spread will do.
        spread[spread == 0] = 1.0
        self._gate = gate / spread[:, None]
        self._margin = (gate @ moments.mean - threshold) / spread
        self._mean = moments.mean
        self._u, self._s, _ = np.linalg.svd(self._gate @ root, full_matrices=False)

    @property
    def most_rank(self) -> int:
        """Full rank, rounded up to whole blocks."""
        return -(-len(self._s) // BLOCK) * BLOCK

    def predictor(self, rank: int) -> LowRank:
        """The linear predictor of this rank whose scores are the margin to firing over the spread of what it misses."""
        u, s = self._u[:, :rank], self._s[:rank]
        missed = np.sqrt(np.maximum(1 - np.square(u * s).sum(axis=1), _LEAST_SPREAD ** 2))[:, None]
        # A unit of the middle layer has variance 1, for the blocks of Q8_0.
        middle = np.where(s > 1e-9 * self._s[0], s, 1.0)
        a, b = u.T @ self._gate / middle[:, None], u * middle / missed
        bias = self._margin / missed[:, 0] - b @ (a @ self._mean)
        padding = rank - len(s)  # a rank above the full one
        return LowRank(np.pad(a, ((0, padding), (0, 0))), np.pad(b, ((0, 0), (0, padding))), bias)


def stored(predictor: LowRank, type_name: str) -> LowRank:
    """The predictor as a file of this type gives it back."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    def rounded(values: np.ndarray) -> np.ndarray:
        kind = GGMLQuantizationType(KINDS[type_name])
        return dequantize(quantize(np.ascontiguousarray(values, dtype=np.float32), kind), kind).astype(np.float32)

    return replace(predictor, a=rounded(predictor.a), b=rounded(predictor.b), bias=predictor.bias.astype(np.float32))


def bound_for_recall(firing_scores: np.ndarray, recall: float) -> float:
    """The highest bound that at least this share of the scores reaches; 0 without scores."""
    if firing_scores.size == 0:
        return 0.0
    below = int((1 - recall) * firing_scores.size)
    return float(np.partition(firing_scores, below)[below])


def bounds_for_energy(bound: float, neurons: np.ndarray, scores: np.ndarray, energies: np.ndarray,
                      allowed: np.ndarray) -> np.ndarray:
    """Bounds [ffn], at most `bound`, with which each neuron misses no more than `allowed` [ffn] of its energy.

    The other arrays have one entry for each firing that `bound` misses. A neuron that fires rarely but then decides much, such as
    for the first token of a text alone, is one of few firings to the recall, and everything to the output.
    """
    bounds = np.full(len(allowed), bound)
    order = np.lexsort((scores, neurons))
    neurons, scores, energies = neurons[order], scores[order], energies[order].astype(np.float64)
    missed = np.cumsum(energies)
    first = np.searchsorted(neurons, neurons)  # of the entry's neuron
    missed -= missed[first] - energies[first]
    needed = missed > allowed[neurons]
    np.minimum.at(bounds, neurons[needed], scores[needed])
    return bounds


@dataclass(frozen=True)
class NormWeights:
    """A norm: (x - its mean if `centred`) / its size * weight + bias."""

    weight: np.ndarray
    bias: np.ndarray | float = 0.0
    centred: bool = False

    def sizes(self, rows: np.ndarray) -> np.ndarray:
        """What the norm divides each row by."""
        return np.asarray(rows.std(axis=1) if self.centred else np.sqrt(np.square(rows).mean(axis=1)))


def powerinfer_form(predictor: LowRank, ffn_norm: NormWeights, residuals: np.ndarray) -> LowRank:
    """A linear predictor of the FFN input as fc1 and fc2, which read the residual, have a ReLU between and no biases.

    Firing does not change when the residual is divided by its size, so the rest of the norm goes into the weights. The first unit
    of the middle layer estimates that size from the residual, by least squares: it carries the biases, and an offset for each
    other unit that keeps it above zero, where a ReLU does nothing. `residuals` [tokens, hidden] are for both.
    """
    wide = residuals.astype(np.float64)
    size = ffn_norm.sizes(wide)
    # Relative error matters, not absolute: outliers in size would rule.
    estimate = np.linalg.lstsq(wide / size[:, None], np.ones(len(wide)), rcond=1e-6)[0]
    estimated = np.maximum(wide @ estimate, 1e-6 * size)
    units = predictor.a * ffn_norm.weight
    if ffn_norm.centred:
        units = units - units.mean(axis=1, keepdims=True)
    bias = predictor.bias + predictor.b @ (predictor.a * ffn_norm.bias).sum(axis=1)
    offsets = np.maximum(np.quantile(-(wide @ units.T) / estimated[:, None], 0.9999, axis=0), 0) * 1.1
    fc1 = np.concatenate([estimate[None], units + offsets[:, None] * estimate])
    fc2 = np.concatenate([(bias - predictor.b @ offsets)[:, None], predictor.b], axis=1)
    padding = -len(fc1) % BLOCK
    return LowRank(np.pad(fc1, ((0, padding), (0, 0))), np.pad(fc2, ((0, 0), (0, padding))), np.zeros(len(fc2)),
                   relu_between=True, reads_residual=True)
