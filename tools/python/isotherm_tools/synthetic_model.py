"""Generates, calibrates and writes a synthetic model, a tensor at a time, as one GGUF or as that and PowerInfer's form.

Residual channel 0 is the same constant for every token, because the embedding sets it and nothing else writes it (row 0 of the
attention output and column 0 of the transposed down projection are zero). Column 0 of the matrix that decides what fires (gate,
or up where there is no gate) is therefore a bias for each neuron. Columns 1 to 31 of it and of the embedding are zero, so that
bias and constant have quantisation blocks of their own. The biases are calibrated on the quantised weights, layer by layer, in
one forward pass over random tokens; other random tokens go through the finished layer to measure what came out. The pass leaves
rotary and learned positions out, on which no statistic of random weights depends. Rows of the head keep <unk>, <s> and </s>
from ever being chosen.

With locality, tokens belong to topics (their id modulo TOPICS): a topic decides a part of its tokens' embedding, and the head
prefers tokens of the topic that the residual is on, so generated text keeps to it.
"""

from __future__ import annotations

import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from isotherm_tools import gguf_llama as gl
from isotherm_tools.arrays import Arrays, arrays_on
from isotherm_tools.gguf_output import GgufOutput
from isotherm_tools.progress import Progress
from isotherm_tools.synthetic_recipe import POWERINFER_ARCHITECTURES, Measured, Recipe, synthetic_vocabulary
from isotherm_tools.tensor_mill import NumpyMill, mill_on

BLOCK = 32
"""Columns that hold the bias and nothing else: one block of Q8_0 or Q4_0."""

SEQUENCE = 64
"""Tokens of one sequence of the calibration pass; attention does not reach beyond."""

RESIDUAL_GAIN = 0.25
"""Variance that all attention layers together add to the residual (which starts at 1), and likewise all FFNs."""

TOPICS = 64
TOPIC_TOKENS = 16
"""Tokens that calibration's texts stay on a topic."""

TOPIC_LOGIT = 20.0
"""What the head adds for the residual's topic, times locality: other logits spread by about 1, the best of them by 4 or 5."""

OPT_POSITION_OFFSET = 2

Declared = tuple[str, tuple[int, ...], str]


class Synthesizer:
    """One model; run() once. ValueError for a recipe that cannot be followed."""

    def __init__(self, recipe: Recipe, path: Path, powerinfer_path: Path | None = None, arrays: Arrays | None = None) -> None:
        """`powerinfer_path` gets the same weights in PowerInfer's form, which needs a rank. `arrays`: default the fastest."""
        shape, self._blueprint = recipe.shape, recipe.blueprint
        if shape.hidden % BLOCK or shape.ffn % BLOCK or shape.hidden <= BLOCK:
            raise ValueError(f"hidden ({shape.hidden}) and ffn ({shape.ffn}) must be multiples of {BLOCK} above it")
        if recipe.rank and not 2 <= recipe.rank <= shape.hidden - BLOCK:
            raise ValueError(f"rank {recipe.rank} is not between 2 and {shape.hidden - BLOCK}")
        if not 0 <= recipe.locality < 1:
            raise ValueError(f"locality {recipe.locality} is not between 0 and 1")
        if powerinfer_path is not None and (not recipe.rank or recipe.architecture not in POWERINFER_ARCHITECTURES):
            raise ValueError(f"PowerInfer's form needs a rank and one of {', '.join(POWERINFER_ARCHITECTURES)}")
        for layer in range(shape.layers):
            recipe.layer_rates(layer)  # refuses shares that no rates have
        self._calibrated = recipe.calibration_tokens // SEQUENCE * SEQUENCE
        self._tokens = self._calibrated + recipe.measured_tokens // SEQUENCE * SEQUENCE
        if self._calibrated < SEQUENCE or self._tokens - self._calibrated < SEQUENCE:
            raise ValueError(f"calibration and measurement need at least {SEQUENCE} tokens each")
        self._recipe = recipe
        self._shape = shape
        self._type = recipe.type_name
        self._float_type = "f32" if recipe.type_name == "f32" else "f16"
        self._predictor_type = "f32" if recipe.type_name == "f32" else recipe.predictor_type
        self._arrays = arrays if arrays is not None else arrays_on(None)
        self._paths = (path, powerinfer_path)
        self._measured = Measured()

    def run(self) -> Measured:
        own, powerinfer = self._paths
        with self._output(own, False) as self._own:
            if powerinfer is None:
                self._powerinfer = None
                return self._run()
            with self._output(powerinfer, True) as self._powerinfer:
                return self._run()

    def _run(self) -> Measured:
        shape = self._shape
        outputs = self._outputs = [output for output in (self._own, self._powerinfer) if output is not None]
        self._declare()
        progress = Progress("synthesize", shape.layers + 2)
        with mill_on(self._arrays, self._recipe.seed) as self._mill:
            x = self._write_embedding()
            progress.update(1, "embedding")
            for layer in range(shape.layers):
                p = f"blk.{layer}."
                self._write_norms(p)
                branch = self._write_attention(p, self._norm(x))
                if not self._blueprint.parallel:
                    x += branch
                branch_ffn = self._write_ffn(layer, x)
                x = x + branch_ffn + branch if self._blueprint.parallel else x + branch_ffn
                progress.update(layer + 2, f"layer {layer}: {100 * self._measured.active_by_layer[-1]:.2f} % active")
            self._write_norm("output_norm")
            if not self._blueprint.positions:
                self._write_head()
        for output in outputs:
            output.finish()
        progress.update(shape.layers + 2, "written")
        return self._measured

    # --- What the files have, and where it goes. ---

    def _output(self, path: Path, powerinfer: bool) -> GgufOutput:
        shape, blueprint = self._shape, self._blueprint
        architecture = self._recipe.architecture.removesuffix("-40b")
        named = None if blueprint.implied else blueprint.activation
        output = gl.LlamaWriter(path, shape, synthetic_vocabulary(shape.vocab), self._type,
                                f"synthetic-{shape.layers}x{shape.hidden}x{shape.ffn}", named, powerinfer, architecture)
        keys = output.metadata
        if blueprint.layer_norm:
            keys.add_layer_norm_eps(shape.rms_eps)
        if architecture == "falcon":
            keys.add_tensor_data_layout("jploski")
        if architecture == "minicpm":
            for add in (keys.add_embedding_scale, keys.add_residual_scale, keys.add_logit_scale):
                add(1.0)
        if powerinfer:
            keys.add_float32(gl.KEY_POWERINFER_THRESHOLD, 0.0)
            return output
        keys.add_uint64(gl.KEY_PROFILE_TOKENS, self._tokens)
        if self._recipe.rank:
            keys.add_string(gl.KEY_PREDICTOR_FORM, "linear")
            keys.add_string(gl.KEY_PREDICTOR_INPUT, "ffn_input")
        return output

    def _declare(self) -> None:
        """Tells both outputs their tensors. What both have comes first, so its data lies in the same order."""
        common: list[Declared] = [("token_embd.weight", (self._shape.vocab, self._shape.hidden), self._type)]
        own: list[Declared] = []
        powerinfer: list[Declared] = []
        if self._blueprint.positions:
            rows = self._shape.context + OPT_POSITION_OFFSET
            common.append(("position_embd.weight", (rows, self._shape.hidden), self._float_type))
        ffn, hidden, rank = self._shape.ffn, self._shape.hidden, self._recipe.rank
        for layer in range(self._shape.layers):
            p = f"blk.{layer}."
            common += [tensor for name in self._norm_names(p) for tensor in self._declared_norm(name)]
            common += self._declared_matrices(p)
            own.append((f"{p}ffn_act_counts", (ffn,), "f32"))
            if rank:
                own += [(f"{p}pred_a.weight", (rank, hidden), self._predictor_type),
                        (f"{p}pred_b.weight", (ffn, rank), self._predictor_type), (f"{p}pred_b.bias", (ffn,), "f32")]
                powerinfer += [(f"{p}fc1.weight", (2 * rank, hidden), self._float_type),
                               (f"{p}fc2.weight", (ffn, 2 * rank), self._float_type)]
        common += self._declared_norm("output_norm")
        if not self._blueprint.positions:
            common.append(("output.weight", (self._shape.vocab, hidden), self._type))
        for output, further in ((self._own, own), (self._powerinfer, powerinfer)):
            if output is not None:
                for declared in common + further:
                    output.declare(*declared)
                output.begin()

    def _declared_matrices(self, p: str) -> list[Declared]:
        s, b = self._shape, self._blueprint
        matrices = ([("attn_qkv", s.hidden + 2 * s.kv_width, b.attention_biases)] if b.parallel else
                    [("attn_q", s.hidden, b.attention_biases), ("attn_k", s.kv_width, b.attention_biases),
                     ("attn_v", s.kv_width, b.attention_biases)])
        matrices += [("attn_output", s.hidden, b.biases)]
        matrices += [("ffn_gate", s.ffn, False)] if b.gated else []
        matrices += [("ffn_up", s.ffn, b.biases), ("ffn_down_t", s.ffn, b.biases)]
        declared: list[Declared] = []
        for name, rows, bias in matrices:
            declared.append((f"{p}{name}.weight", (rows, s.hidden), self._type))
            if bias:
                declared.append((f"{p}{name}.bias", (s.hidden if name == "ffn_down_t" else rows,), "f32"))
        return declared

    def _norm_names(self, p: str) -> list[str]:
        if not self._blueprint.parallel:
            return [f"{p}attn_norm", f"{p}ffn_norm"]
        return [f"{p}attn_norm"] + ([f"{p}attn_norm_2"] if self._blueprint.second_norm else [])

    def _declared_norm(self, name: str) -> list[Declared]:
        parts = ("weight", "bias") if self._blueprint.layer_norm else ("weight",)
        return [(f"{name}.{part}", (self._shape.hidden,), "f32") for part in parts]

    def _write(self, name: str, encoded: Any) -> None:
        self._mill.write(name, encoded, self._outputs)

    def _write_norm(self, name: str) -> None:
        self._write(f"{name}.weight", np.ones(self._shape.hidden, dtype=np.float32))
        if self._blueprint.layer_norm:
            self._write(f"{name}.bias", np.zeros(self._shape.hidden, dtype=np.float32))

    def _write_norms(self, p: str) -> None:
        for name in self._norm_names(p):
            self._write_norm(name)

    def _write_matrix(self, name: str, matrix: Any, bias: bool = False, bias_width: int | None = None) -> Any:
        """Writes a matrix, with a bias of zeros if it has one; returns the values that the file has."""
        encoded, values = self._mill.encode(matrix, self._type)
        self._write(f"{name}.weight", encoded)
        if bias:
            width = bias_width if bias_width is not None else matrix.shape[0]
            self._write(f"{name}.bias", np.zeros(width, dtype=np.float32))
        return values

    # --- The forward pass; residuals are [tokens, hidden]. ---

    def _norm(self, x: Any) -> Any:
        if self._blueprint.layer_norm:
            x = x - x.mean(axis=-1, keepdims=True)
        return x / ((x * x).mean(axis=-1, keepdims=True) + self._shape.rms_eps) ** 0.5

    def _write_embedding(self) -> Any:
        """The residual of the pass's random tokens."""
        shape, mill, locality = self._shape, self._mill, self._recipe.locality
        table = mill.normal(shape.vocab, shape.hidden, math.sqrt(1 - locality))
        self._topics = mill.normal(TOPICS, shape.hidden, 1.0)
        for topic in range(TOPICS if locality else 0):
            table[topic::TOPICS] += math.sqrt(locality) * self._topics[topic]
        table[:, :BLOCK] = 0.0
        table[:, 0] = 1.0
        values = self._write_matrix("token_embd", table)
        if self._blueprint.positions:
            rows = np.zeros((shape.context + OPT_POSITION_OFFSET, shape.hidden), dtype=np.float32)
            self._write("position_embd.weight", gl.encode(rows, self._float_type))
        return values[self._token_ids()]

    def _token_ids(self) -> Any:
        """Random tokens; with locality, runs of TOPIC_TOKENS of one topic."""
        rng = self._mill.rng
        ids = rng.integers(TOPICS, self._shape.vocab, self._tokens)
        if self._recipe.locality:
            topics = rng.integers(0, TOPICS, -(-self._tokens // TOPIC_TOKENS)).repeat(TOPIC_TOKENS)[:self._tokens]
            ids = np.minimum(ids // TOPICS * TOPICS + topics, self._shape.vocab - 1)
        return self._arrays.put(ids)

    def _write_attention(self, p: str, x: Any) -> Any:
        """What attention adds to the residual, for its normalised input."""
        shape, mill, b = self._shape, self._mill, self._blueprint
        std = 1 / math.sqrt(shape.hidden)
        if b.parallel:
            qkv = self._write_matrix(f"{p}attn_qkv", mill.normal(shape.hidden + 2 * shape.kv_width, shape.hidden, std))
            q, k, v = qkv[:shape.hidden], qkv[shape.hidden:-shape.kv_width], qkv[-shape.kv_width:]
        else:
            q, k, v = (self._write_matrix(f"{p}attn_{part}", mill.normal(rows, shape.hidden, std), b.attention_biases)
                       for part, rows in (("q", shape.hidden), ("k", shape.kv_width), ("v", shape.kv_width)))
        mixed = self._attend(x, q, k, v)
        energy = float((mixed * mixed).sum(axis=-1).mean())
        out = mill.normal(shape.hidden, shape.hidden, math.sqrt(RESIDUAL_GAIN / shape.layers / energy))
        out[0] = 0
        return mixed @ self._write_matrix(f"{p}attn_output", out, b.biases).T

    def _attend(self, x: Any, q: Any, k: Any, v: Any) -> Any:
        """Heads side by side [tokens, hidden], within sequences of SEQUENCE tokens."""
        s, xp = self._shape, self._arrays.xp
        group = s.heads // s.kv_heads

        def heads(projection: Any, count: int, per_key: int) -> Any:
            return (x @ projection.T).reshape(-1, SEQUENCE, count, per_key, s.head_dim).swapaxes(1, 2).swapaxes(2, 3)

        queries, keys, values = heads(q, s.kv_heads, group), heads(k, s.kv_heads, 1), heads(v, s.kv_heads, 1)
        causal = self._arrays.put(np.triu(np.full((SEQUENCE, SEQUENCE), -np.inf, dtype=np.float32), 1))
        scores = queries @ keys.swapaxes(-1, -2) / s.head_dim ** 0.5 + causal
        scores = xp.exp(scores - xp.amax(scores, axis=-1, keepdims=True))
        mixed = scores / scores.sum(axis=-1, keepdims=True) @ values
        return mixed.swapaxes(2, 3).swapaxes(1, 2).reshape(x.shape)

    def _write_ffn(self, layer: int, residual: Any) -> Any:
        """What the FFN adds to the residual; calibrates the biases on the first tokens."""
        p, shape, mill, b = f"blk.{layer}.", self._shape, self._mill, self._blueprint
        x = self._norm(residual)
        deciding, factors = self._deciding_matrix()
        # With dReLU half of the neurons whose gate is positive have a positive up projection.
        asked = 2 if b.activation == "drelu" else 1
        rates = np.minimum(asked * self._recipe.layer_rates(layer), 0.99)
        biases = self._calibrate(x[:self._calibrated], mill.encode(deciding, self._type)[1], rates)
        deciding[:, 0] = biases
        stored = self._write_matrix(f"{p}{'ffn_gate' if b.gated else 'ffn_up'}", deciding, b.biases and not b.gated)
        scores = x @ stored.T
        del deciding, stored
        neurons = scores.clip(0)
        if b.gated:
            up = x @ self._write_matrix(f"{p}ffn_up", mill.normal(shape.ffn, shape.hidden, 1 / math.sqrt(shape.hidden))).T
            neurons = neurons * (up.clip(0) if b.activation == "drelu" else up)
        elif b.activation == "relu2":
            neurons = neurons * neurons
        fired = neurons != 0
        self._measure(fired)
        energy = max(float((neurons * neurons).sum(axis=-1).mean()), 1e-12)
        down = mill.normal(shape.ffn, shape.hidden, math.sqrt(RESIDUAL_GAIN / shape.layers / energy))
        down[:, 0] = 0
        values = self._write_matrix(f"{p}ffn_down_t", down, b.biases, shape.hidden)
        if factors is not None:
            self._write_predictors(p, residual, factors, biases, scores, fired)
        counts = self._arrays.get(fired.sum(axis=0)).astype(np.float32)
        mill.write(f"{p}ffn_act_counts", counts, [self._own])
        return neurons @ values

    def _deciding_matrix(self) -> tuple[Any, tuple[Any, Any] | None]:
        """Gate, or up where there is none, without biases; its factors a [rank, hidden] and b [ffn, rank] if it has some."""
        shape, rank, mill = self._shape, self._recipe.rank, self._mill
        features = shape.hidden - BLOCK
        if not rank:
            matrix = mill.zeros(shape.ffn, shape.hidden)
            matrix[:, BLOCK:] = mill.normal(shape.ffn, features, 1 / math.sqrt(features))
            return matrix, None
        a = mill.zeros(rank, shape.hidden)
        rows = mill.normal(rank - 1, features, 1 / math.sqrt(features))
        # Rows that sum to zero do not see the mean that LayerNorm subtracts.
        a[:-1, BLOCK:] = rows - rows.mean(axis=-1, keepdims=True)
        a[-1, 0] = 1.0  # the last direction is the constant channel: it carries the biases
        b = mill.normal(shape.ffn, rank, 1 / math.sqrt(rank - 1))
        b[:, -1] = 0.0
        return b @ a, (a, b)

    def _calibrate(self, x: Any, matrix: Any, rates: np.ndarray) -> Any:
        """Biases [ffn] with which the neurons reach their rates on x; `matrix` has none yet."""
        xp, asked = self._arrays.xp, float(rates.mean())
        rates = self._mill.rng.permutation(rates)
        scores = x @ matrix.T
        constant = x[:, :1]
        mean, std, middle_constant = scores.mean(axis=0), scores.std(axis=0), float(constant.mean())
        normal = NormalDist()
        quantiles = self._arrays.put(np.array([normal.inv_cdf(1 - rate) for rate in rates]))

        def biases(shift: float) -> Any:
            return -(mean + std * (quantiles + shift)) / middle_constant

        # Scores are near normal, not exactly: one shift for the layer makes its mean share right.
        low, high = -1.0, 1.0
        for _ in range(14):
            middle = (low + high) / 2
            share = float(xp.count_nonzero(scores + constant * biases(middle) > 0)) / (scores.shape[0] * scores.shape[1])
            low, high = (middle, high) if share > asked else (low, middle)
        return biases((low + high) / 2)

    def _measure(self, fired: Any) -> None:
        fresh = self._arrays.get(fired[self._calibrated:])
        self._measured.active_by_layer.append(float(fresh.mean()))
        sequences = fresh.reshape(-1, SEQUENCE, fresh.shape[1])
        again = np.count_nonzero(sequences[:, 1:] & sequences[:, :-1]) / max(np.count_nonzero(sequences[:, 1:]), 1)
        self._measured.again_by_layer.append(again)

    def _write_predictors(self, p: str, residual: Any, factors: tuple[Any, Any], biases: Any, scores: Any, fired: Any) -> None:
        """Each form's predictor keeps a neuron where its score is not negative; a margin covers what quantising changed.

        Own form: pred_b . (pred_a . x) + margin for the FFN input x. PowerInfer's has a ReLU between and reads the residual h:
        [b, -b] . relu([a; -a] . h) = b . (a . h), which has the sign of b . (a . x); its margin is in the constant's column.
        """
        mill, xp = self._mill, self._arrays.xp
        a, b = factors
        b[:, -1] = biases
        x = self._norm(residual)
        encoded_a, stored_a = mill.encode(a, self._predictor_type)
        encoded_b, stored_b = mill.encode(b, self._predictor_type)
        predicted = x @ stored_a.T @ stored_b.T
        margin = self._recipe.predictor_margin * float((predicted - scores)[:self._calibrated].std())
        mill.write(f"{p}pred_a.weight", encoded_a, [self._own])
        mill.write(f"{p}pred_b.weight", encoded_b, [self._own])
        mill.write(f"{p}pred_b.bias", np.full(self._shape.ffn, margin, dtype=np.float32), [self._own])
        kept, on = self._arrays.get(predicted[self._calibrated:] + margin >= 0), self._arrays.get(fired[self._calibrated:])
        self._measured.recall_by_layer.append(float((kept & on).sum() / max(int(on.sum()), 1)))
        self._measured.kept_by_layer.append(float(kept.mean()))
        if self._powerinfer is not None:
            # The norm divides by the residual's size; LayerNorm's subtracting of a small mean is part of the margin.
            size = ((residual * residual).mean(axis=-1, keepdims=True)) ** 0.5
            margin = 3 * float((residual @ stored_a.T @ stored_b.T / size - scores)[:self._calibrated].std())
            b[:, -1] = biases + margin / float(x[:, 0].mean())
            mill.write(f"{p}fc1.weight", mill.encode(xp.concatenate([a, -a]), self._float_type)[0], [self._powerinfer])
            mill.write(f"{p}fc2.weight", mill.encode(xp.concatenate([b, -b], 1), self._float_type)[0], [self._powerinfer])

    def _write_head(self) -> None:
        shape = self._shape
        head = self._mill.normal(shape.vocab, shape.hidden, 1 / math.sqrt(shape.hidden))
        for topic in range(TOPICS if self._recipe.locality else 0):
            head[topic::TOPICS] += TOPIC_LOGIT * math.sqrt(self._recipe.locality) / shape.hidden * self._topics[topic]
        head[:3] = 0
        head[:3, 0] = -50.0  # times the constant channel, about 1: far below any other logit
        self._write_matrix("output", head)
