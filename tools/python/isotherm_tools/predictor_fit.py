"""Fits the predictor of each layer in one pass over a model, and measures it on the way.

Three streams of windows run side by side: training text and held-out text through the exact layers, and the held-out text once more
through layers whose FFN computes only what the predictor kept, so that its mistakes add up as they would when served.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from isotherm_tools.arrays import Arrays
from isotherm_tools.gguf_container import encoded_size
from isotherm_tools.layerwise import LayerwiseDecoder, LayerWeights
from isotherm_tools.lowrank import (BLOCK, KINDS, GateDecomposition, LowRank, Moments, NormWeights, bound_for_recall,
                                     bounds_for_energy, powerinfer_form, stored)
from isotherm_tools.predictor_report import LayerReport, Report

CALIBRATED_SHARE = 0.15
"""Of the training windows: nothing is fitted to them but the bounds."""

CHUNK_TOKENS = 4096
"""Tokens that pass a layer at once: the widest array is [tokens, ffn] in F32."""

POWERINFER_SAMPLE = 20_000
"""Tokens that the root mean square of the residual is estimated from."""


@dataclass(frozen=True)
class Goal:
    """What to fit."""

    kind: str
    """`svd` or `trained`."""
    rank: int | None
    """None: the smallest for each layer whose predictor keeps at most `most_kept` as many neurons as fire."""
    recall: float
    most_kept: float
    type_name: str
    powerinfer: bool
    epochs: int
    seed: int


class Stream:
    """Windows of token ids [windows, tokens] on their way through the layers."""

    def __init__(self, decoder: LayerwiseDecoder, windows: np.ndarray) -> None:
        self.windows = windows
        self.residual = decoder.embed(windows)
        self.before_ffn = self.residual
        """What the FFN norm reads, once the layer's attention is done; the residual itself but for parallel attention."""
        self._decoder = decoder
        self._step = max(1, CHUNK_TOKENS // windows.shape[1])

    def attend(self, w: LayerWeights) -> None:
        """The first half of a layer."""
        if self._decoder.shape.family.parallel_attention:
            self.before_ffn = self.residual + 0.0  # a copy, for numpy and torch
        for chunk in self._chunks():
            self.residual[chunk] = self._decoder.attend(w, self.residual[chunk])

    def feed_forward(self, w: LayerWeights, keep: Callable[[Any, Any], Any]) -> None:
        """The other half. keep(residual, FFN input) sees what predictors read and says which neurons to compute; None: all."""
        for chunk in self._chunks():
            before = self.before_ffn[chunk]
            x = self._decoder.ffn_input(w, before)
            self.residual[chunk] += self._decoder.ffn(w, x, keep(before, x))

    def _chunks(self) -> Iterator[slice]:
        for start in range(0, len(self.windows), self._step):
            yield slice(start, start + self._step)


@dataclass
class Calibration:
    """What the bounds are set on: pieces of (residual, FFN input, which neurons fire, what they add)."""

    pieces: list[tuple[Any, Any, Any, Any]]

    def apply(self, predictor: LowRank, recall: float, arrays: Arrays) -> tuple[LowRank, float]:
        """The predictor with the bounds of this recall, of firings and of each neuron's energy, and how many neurons it then
        keeps for one that fires."""
        here = predictor.put(arrays)
        relative = [(arrays.get(here.scores(r, x) / here.unit(r)), arrays.get(fired), arrays.get(energy))
                    for r, x, fired, energy in self.pieces]
        bound = bound_for_recall(np.concatenate([scores[fired] for scores, fired, _ in relative]), recall)
        missed = [fired & (scores < bound) for scores, fired, _ in relative]
        neurons = np.concatenate([np.nonzero(on)[1] for on in missed])
        scores_missed, energies_missed = (np.concatenate([piece[i][on] for piece, on in zip(relative, missed, strict=True)])
                                          for i in (0, 2))
        energy = np.sum([energy.sum(axis=0, dtype=np.float64) for _, _, energy in relative], axis=0)
        bounds = bounds_for_energy(bound, neurons, scores_missed, energies_missed, (1 - recall) * energy).astype(np.float32)
        kept = sum(int((scores >= bounds).sum()) for scores, _, _ in relative)
        fired_at_all = sum(int(fired.sum()) for _, fired, _ in relative)
        return predictor.shifted(-bounds), kept / max(fired_at_all, 1)


class LayerFit:
    """Makes predictors of one layer, of any rank, and looks for the rank to use."""

    def __init__(self, decoder: LayerwiseDecoder, arrays: Arrays, w: LayerWeights, training: Stream, goal: Goal) -> None:
        self._decoder, self._arrays, self._w, self._goal = decoder, arrays, w, goal
        calibrated = max(1, round(CALIBRATED_SHARE * len(training.windows)))
        self._fitted = len(training.windows) - calibrated
        self._training = training
        moments = Moments(decoder.shape.hidden)
        for x in self._inputs():
            moments.add(arrays.get(x), arrays.get(x.T @ x))
        self._decomposition = GateDecomposition(arrays.get(w.activated.weight),
                                                decoder.shape.firing_threshold - as_numpy(arrays, w.activated.bias), moments)
        pieces = []
        for residual in training.before_ffn[self._fitted:]:
            x = decoder.ffn_input(w, residual)
            pieces.append((residual, x, decoder.fires(w, x), decoder.energies(w, x)))
        self._calibration = Calibration(pieces)

    def _inputs(self) -> Iterator[Any]:
        """FFN inputs [tokens, hidden] of the windows to fit."""
        for residual in self._training.before_ffn[:self._fitted]:
            yield self._decoder.ffn_input(self._w, residual)

    def best(self) -> LowRank:
        """The predictor of the goal's rank, or of the smallest that meets the goal."""
        if self._goal.rank is not None:
            return self._make(min(self._goal.rank, self._decomposition.most_rank), self._goal.kind)[0]
        bound = self._smallest(self._decomposition.most_rank, "svd")
        if self._goal.kind == "svd":
            return bound
        return self._smallest(bound.rank if not self._goal.powerinfer else bound.rank - BLOCK, "trained")

    def _smallest(self, most: int, kind: str) -> LowRank:
        """Bisects over ranks up to `most`, which is taken if nothing below does."""
        low, high, found = 0, most // BLOCK, None
        while low + 1 < high:
            middle = (low + high) // 2
            predictor, kept = self._make(middle * BLOCK, kind)
            if kept <= self._goal.most_kept:
                high, found = middle, predictor
            else:
                low = middle
        return found if found is not None else self._make(most, kind)[0]

    def _make(self, rank: int, kind: str) -> tuple[LowRank, float]:
        """A calibrated predictor as stored, and how many neurons it keeps for one that fires."""
        predictor = self._decomposition.predictor(rank)
        if kind == "trained":
            from isotherm_tools.predictor_training import train

            inputs = self._arrays.xp.concatenate(list(self._inputs()), axis=0)
            predictor = train(predictor.put(self._arrays), inputs, lambda x: self._decoder.fires(self._w, x), self._goal.epochs,
                              self._goal.seed).get(self._arrays)
        if self._goal.powerinfer:
            sample = self._arrays.get(self._training.before_ffn[:self._fitted]).reshape(-1, self._decoder.shape.hidden)
            step = -(-len(sample) // POWERINFER_SAMPLE)
            norm = NormWeights(self._arrays.get(self._w.ffn_norm.weight), as_numpy(self._arrays, self._w.ffn_norm.bias),
                               self._decoder.shape.family.layer_norm)
            predictor = powerinfer_form(predictor, norm, sample[::step])
        predictor, kept = self._calibration.apply(stored(predictor, self._goal.type_name), self._goal.recall, self._arrays)
        return stored(predictor, self._goal.type_name), kept


def fit_model(decoder: LayerwiseDecoder, arrays: Arrays, training_windows: np.ndarray, held_out_windows: np.ndarray, goal: Goal,
              done: Callable[[int, str], None] = lambda layers, note: None) -> tuple[list[LowRank], Report]:
    """The predictors of all layers, and the report on the held-out windows. `done(layers, note)` hears of each layer."""
    training, exact, predicted = (Stream(decoder, w) for w in (training_windows, held_out_windows, held_out_windows))
    predictors = []
    report = Report(goal.kind)
    for layer in range(decoder.shape.layers):
        w = decoder.weights(layer)
        for stream in (training, exact, predicted):
            stream.attend(w)
        predictor = LayerFit(decoder, arrays, w, training, goal).best()
        predictors.append(predictor)
        here = predictor.put(arrays)
        counts = LayerReport(predictor.rank, stored_bytes(predictor, goal.type_name))

        def count(residual: Any, x: Any) -> None:
            counts.add(decoder.fires(w, x), here.scores(residual, x) >= 0)

        training.feed_forward(w, lambda residual, x: None)
        exact.feed_forward(w, count)
        predicted.feed_forward(w, lambda residual, x: here.scores(residual, x) >= 0)
        report.layers.append(counts)
        done(layer + 1, f"layer {layer}: rank {predictor.rank}, recall {100 * counts.recall:.2f} %, "
                        f"kept {counts.kept_over_fired:.2f} times what fires")
    report.exact_loss = decoder.losses(exact.residual, exact.windows)
    report.predicted_loss = decoder.losses(predicted.residual, predicted.windows)
    report.scored = held_out_windows.shape[0] * (held_out_windows.shape[1] - 1)
    return predictors, report


def as_numpy(arrays: Arrays, bias: Any) -> Any:
    """A bias that may be 0 for none."""
    return bias if isinstance(bias, float) else arrays.get(bias)


def stored_bytes(predictor: LowRank, type_name: str) -> int:
    """Bytes of the factors in a file, and of the biases where it has them."""
    factors = sum(encoded_size(factor.shape, KINDS[type_name]) for factor in (predictor.a, predictor.b))
    return factors + (0 if predictor.reads_residual else 4 * len(predictor.bias))
