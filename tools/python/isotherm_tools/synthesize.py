"""isotherm-synthesize: writes a ReLU Llama of any size whose neurons fire as often as asked, as GGUF.

Such a model says nothing sensible, but costs what a real one of its shape and sparsity costs.

    isotherm-synthesize --layers 16 --hidden 2048 --ffn 5632 --heads 16 --active 0.10 --type f16 --out synthetic.gguf

How: residual channel 0 is the same constant for every token, because the embedding sets it and nothing else writes it (row 0 of
the attention output and column 0 of the transposed down projection are zero). Column 0 of `gate` is therefore a bias for each
neuron. Columns 1 to 31 of `gate` and of the embedding are zero, so that bias and constant have quantisation blocks of their own.
The biases are calibrated on the quantised weights, layer by layer, in one forward pass over random tokens; other random tokens
go through the finished layer to measure what came out. Rows of the head keep <unk>, <s> and </s> from ever being chosen.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist

import numpy as np

from isotherm_tools import gguf_llama as gl
from isotherm_tools.llama_numpy import attend, rms_norm
from isotherm_tools.progress import Progress

BLOCK = 32
"""Columns of `gate` that hold the bias and nothing else: one block of Q8_0 or Q4_0."""

MOST_POPULAR = 0.95
"""Cap on a neuron's firing rate: a power law alone would pass 1."""

SEQUENCE = 64
"""Tokens of one sequence of the calibration pass; attention does not reach beyond."""

RESIDUAL_GAIN = 0.25
"""Variance that all attention layers together add to the residual (which starts at 1), and likewise all FFNs."""


@dataclass(frozen=True)
class Recipe:
    """What to write."""

    shape: gl.LlamaShape
    type_name: str = "f16"
    active: float = 0.10
    """Share of a layer's neurons that fire for a token, on average."""
    popularity_exponent: float = 0.75
    """x: the neuron of rank r fires in proportion to r^-x, up to a cap."""
    rank: int = 0
    """0: gate rows are independent. Otherwise gate and its bias have this rank and an exact predictor is stored."""
    calibration_tokens: int = 512
    measured_tokens: int = 256
    seed: int = 1


@dataclass
class Measured:
    """What came out, on tokens that were not calibrated on."""

    active_by_layer: list[float] = field(default_factory=list)
    """Share of neurons that fire."""
    recall_by_layer: list[float] = field(default_factory=list)
    """Share of firing neurons that the stored predictor keeps; empty without one."""
    kept_by_layer: list[float] = field(default_factory=list)
    """Share of neurons that the stored predictor keeps; empty without one."""


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


def synthetic_vocabulary(size: int) -> gl.Vocabulary:
    """A SentencePiece-like vocabulary: control and byte tokens, printable characters, then pieces up to four letters.

    Every piece can be reached by merging two others, so ordinary text becomes ordinary tokens.
    """
    letters = "etaoinshrdlucmfwgypbvkxqjz"
    space = "\u2581"

    def pieces():  # type: ignore[no-untyped-def]
        yield space
        yield from (chr(code) for code in range(33, 127))
        yield from (space + a for a in letters)
        yield from (a + b for a in letters for b in letters)
        yield from (space + a + b for a in letters for b in letters)
        yield from (a + b + c for a in letters for b in letters for c in letters)
        yield from (space + a + b + c for a in letters for b in letters for c in letters)
        yield from (a + b + c + d for a in letters for b in letters for c in letters for d in letters)

    source = pieces()
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    if size < len(tokens):
        raise ValueError(f"a vocabulary of {size} has no room for 3 control and 256 byte tokens")
    kinds = [2, 3, 3] + [6] * 256 + [1] * (size - 259)
    scores = [0.0] * 259 + [-float(rank) for rank in range(size - 259)]
    tokens += [next(source) for _ in range(size - 259)]
    return gl.Vocabulary(tokens, scores, kinds)


class Synthesizer:
    """Generates, calibrates and writes one model, a tensor at a time."""

    def __init__(self, recipe: Recipe, path: Path) -> None:
        shape = recipe.shape
        if shape.hidden % BLOCK or shape.ffn % BLOCK or shape.hidden <= BLOCK:
            raise ValueError(f"hidden ({shape.hidden}) and ffn ({shape.ffn}) must be multiples of {BLOCK} above it")
        if recipe.rank and not 2 <= recipe.rank <= shape.hidden - BLOCK:
            raise ValueError(f"rank {recipe.rank} is not between 2 and {shape.hidden - BLOCK}")
        self._recipe = recipe
        self._shape = shape
        self._rng = np.random.Generator(np.random.SFC64(recipe.seed))
        self._rates = firing_rates(shape.ffn, recipe.active, recipe.popularity_exponent)
        self._writer = gl.LlamaWriter(path, shape, synthetic_vocabulary(shape.vocab), recipe.type_name,
                                      f"synthetic-{shape.layers}x{shape.hidden}x{shape.ffn}", activation="relu")
        self._predictor_type = "f32" if recipe.type_name == "f32" else "f16"
        self._calibrated = self._recipe.calibration_tokens // SEQUENCE * SEQUENCE
        self._tokens = self._calibrated + self._recipe.measured_tokens // SEQUENCE * SEQUENCE
        if self._calibrated < SEQUENCE or self._tokens - self._calibrated < SEQUENCE:
            raise ValueError(f"calibration and measurement need at least {SEQUENCE} tokens each")

    def run(self) -> Measured:
        with self._writer:
            return self._run()

    def _run(self) -> Measured:
        shape, t = self._shape, self._recipe.type_name
        self._declare()
        progress = Progress("synthesize", shape.layers + 2)
        x = self._write_embedding()
        progress.update(1, "embedding")
        measured = Measured()
        ones = np.ones(shape.hidden, dtype=np.float32)
        for layer in range(shape.layers):
            p = f"blk.{layer}."
            self._writer.write(f"{p}attn_norm.weight", ones)
            x += self._write_attention(p, rms_norm(x, ones, shape.rms_eps))
            self._writer.write(f"{p}ffn_norm.weight", ones)
            x += self._write_ffn(p, rms_norm(x, ones, shape.rms_eps), measured)
            progress.update(layer + 2, f"layer {layer}: {100 * measured.active_by_layer[-1]:.2f} % active")
        self._writer.write("output_norm.weight", ones)
        head = self._random(shape.vocab, shape.hidden, 1 / math.sqrt(shape.hidden))
        head[:3] = 0
        head[:3, 0] = -50.0  # times the constant channel, about 1: far below any other logit
        self._writer.write("output.weight", gl.encode(head, t))
        self._writer.finish()
        progress.update(shape.layers + 2, "head")
        return measured

    def _declare(self) -> None:
        shape, t, writer = self._shape, self._recipe.type_name, self._writer
        writer.metadata.add_uint64(gl.KEY_PROFILE_TOKENS, self._tokens)
        if self._recipe.rank:
            writer.metadata.add_string(gl.KEY_PREDICTOR_FORM, "linear")
            writer.metadata.add_string(gl.KEY_PREDICTOR_INPUT, "ffn_input")
        writer.declare("token_embd.weight", (shape.vocab, shape.hidden), t)
        for layer in range(shape.layers):
            p = f"blk.{layer}."
            writer.declare(f"{p}attn_norm.weight", (shape.hidden,), "f32")
            writer.declare(f"{p}attn_q.weight", (shape.hidden, shape.hidden), t)
            writer.declare(f"{p}attn_k.weight", (shape.kv_width, shape.hidden), t)
            writer.declare(f"{p}attn_v.weight", (shape.kv_width, shape.hidden), t)
            writer.declare(f"{p}attn_output.weight", (shape.hidden, shape.hidden), t)
            writer.declare(f"{p}ffn_norm.weight", (shape.hidden,), "f32")
            writer.declare(f"{p}ffn_gate.weight", (shape.ffn, shape.hidden), t)
            writer.declare(f"{p}ffn_up.weight", (shape.ffn, shape.hidden), t)
            writer.declare(f"{p}ffn_down_t.weight", (shape.ffn, shape.hidden), t)
            if self._recipe.rank:
                writer.declare(f"{p}pred_a.weight", (self._recipe.rank, shape.hidden), self._predictor_type)
                writer.declare(f"{p}pred_b.weight", (shape.ffn, self._recipe.rank), self._predictor_type)
                writer.declare(f"{p}pred_b.bias", (shape.ffn,), "f32")
            writer.declare(f"{p}ffn_act_counts", (shape.ffn,), "f32")
        writer.declare("output_norm.weight", (shape.hidden,), "f32")
        writer.declare("output.weight", (shape.vocab, shape.hidden), t)
        writer.begin()

    def _random(self, rows: int, columns: int, std: float) -> np.ndarray:
        """An F32 normal matrix [rows, columns]."""
        matrix = self._rng.standard_normal((rows, columns), dtype=np.float32)
        matrix *= np.float32(std)
        return matrix

    def _encode(self, matrix: np.ndarray, type_name: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """(encoded rows, the F32 values they stand for)."""
        name = type_name if type_name is not None else self._recipe.type_name
        encoded = gl.encode(matrix, name)
        return encoded, gl.decode(encoded, gl.TYPES[name])

    def _write_embedding(self) -> np.ndarray:
        """The residual [tokens, hidden] of the pass's random tokens."""
        table = self._random(self._shape.vocab, self._shape.hidden, 1.0)
        table[:, :BLOCK] = 0.0
        table[:, 0] = 1.0
        encoded = gl.encode(table, self._recipe.type_name)
        del table
        self._writer.write("token_embd.weight", encoded)
        ids = self._rng.integers(3, self._shape.vocab, self._tokens)
        return gl.decode(encoded[ids], gl.TYPES[self._recipe.type_name])

    def _write_attention(self, p: str, x: np.ndarray) -> np.ndarray:
        """Output [tokens, hidden] for the normalised input."""
        shape = self._shape
        std = 1 / math.sqrt(shape.hidden)
        projections: list[np.ndarray] = []
        for part, rows in (("q", shape.hidden), ("k", shape.kv_width), ("v", shape.kv_width)):
            encoded, values = self._encode(self._random(rows, shape.hidden, std))
            self._writer.write(f"{p}attn_{part}.weight", encoded)
            projections.append(values)
        q, k, v = projections
        mixed = np.concatenate([attend(x[i:i + SEQUENCE], q, k, v, shape) for i in range(0, len(x), SEQUENCE)])
        energy = float(np.mean(np.sum(mixed * mixed, axis=-1)))
        out = self._random(shape.hidden, shape.hidden, math.sqrt(RESIDUAL_GAIN / shape.layers / energy))
        out[0] = 0
        encoded, values = self._encode(out)
        self._writer.write(f"{p}attn_output.weight", encoded)
        return mixed @ values.T

    def _write_ffn(self, p: str, x: np.ndarray, measured: Measured) -> np.ndarray:
        """Output [tokens, hidden] for the normalised input; calibrates the biases on the first tokens."""
        shape, rank = self._shape, self._recipe.rank
        features = shape.hidden - BLOCK
        gate = np.zeros((shape.ffn, shape.hidden), dtype=np.float32)
        a = b = None
        if rank:
            a = np.zeros((rank, shape.hidden), dtype=np.float32)
            a[:-1, BLOCK:] = self._random(rank - 1, features, 1 / math.sqrt(features))
            a[-1, 0] = 1.0  # the last direction is the constant channel: it carries the biases
            b = self._random(shape.ffn, rank, 1 / math.sqrt(rank - 1))
            b[:, -1] = 0.0
            gate[:] = b @ a
        else:
            gate[:, BLOCK:] = self._random(shape.ffn, features, 1 / math.sqrt(features))
        _, stored = self._encode(gate)
        biases = self._calibrate(x[:self._calibrated], stored)
        gate[:, 0] = biases
        encoded, stored = self._encode(gate)
        self._writer.write(f"{p}ffn_gate.weight", encoded)
        scores = x @ stored.T
        del gate, stored, encoded
        fired = scores > 0
        fresh = slice(self._calibrated, None)
        measured.active_by_layer.append(float(fired[fresh].mean()))

        up, values = self._encode(self._random(shape.ffn, shape.hidden, 1 / math.sqrt(shape.hidden)))
        self._writer.write(f"{p}ffn_up.weight", up)
        neurons = np.maximum(scores, 0) * (x @ values.T)
        del up, values
        energy = max(float(np.mean(np.sum(neurons * neurons, axis=-1))), 1e-12)
        down = self._random(shape.ffn, shape.hidden, math.sqrt(RESIDUAL_GAIN / shape.layers / energy))
        down[:, 0] = 0
        encoded, values = self._encode(down)
        del down
        self._writer.write(f"{p}ffn_down_t.weight", encoded)
        if a is not None and b is not None:
            b[:, -1] = biases
            self._write_predictor(p, x, a, b, scores, measured)
        self._writer.write(f"{p}ffn_act_counts", fired.sum(axis=0).astype(np.float32))
        return neurons @ values

    def _calibrate(self, x: np.ndarray, gate: np.ndarray) -> np.ndarray:
        """Biases [ffn] with which the neurons reach their rates on x [tokens, hidden]; gate without biases."""
        rates = self._rng.permutation(self._rates)
        scores = x @ gate.T
        constant = x[:, :1]
        mean, std = scores.mean(axis=0), scores.std(axis=0)
        normal = NormalDist()
        quantiles = np.array([normal.inv_cdf(1 - rate) for rate in rates])

        def biases(shift: float) -> np.ndarray:
            return (-(mean + std * (quantiles + shift)) / constant.mean()).astype(np.float32)

        # Scores are near normal, not exactly: one shift for the layer makes its mean share right.
        low, high = -1.0, 1.0
        for _ in range(14):
            middle = (low + high) / 2
            share = float((scores + constant * biases(middle) > 0).mean())
            low, high = (middle, high) if share > self._recipe.active else (low, middle)
        return biases((low + high) / 2)

    def _write_predictor(self, p: str, x: np.ndarray, a: np.ndarray, b: np.ndarray, scores: np.ndarray,
                         measured: Measured) -> None:
        """Keep where pred_b . (pred_a . x) + bias >= 0; the bias is a margin for what quantising `gate` changed."""
        encoded_a, a = self._encode(a, self._predictor_type)
        encoded_b, b = self._encode(b, self._predictor_type)
        predicted = (x @ a.T) @ b.T
        margin = 3 * float((predicted - scores)[:self._calibrated].std())
        self._writer.write(f"{p}pred_a.weight", encoded_a)
        self._writer.write(f"{p}pred_b.weight", encoded_b)
        self._writer.write(f"{p}pred_b.bias", np.full(self._shape.ffn, margin, dtype=np.float32))
        fresh = slice(self._calibrated, None)
        kept, fired = predicted[fresh] + margin >= 0, scores[fresh] > 0
        measured.recall_by_layer.append(float((kept & fired).sum() / max(int(fired.sum()), 1)))
        measured.kept_by_layer.append(float(kept.mean()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, required=True)
    parser.add_argument("--hidden", type=int, required=True)
    parser.add_argument("--ffn", type=int, required=True)
    parser.add_argument("--heads", type=int, required=True)
    parser.add_argument("--kv-heads", type=int, help="default: as many as heads")
    parser.add_argument("--vocab", type=int, default=32000)
    parser.add_argument("--context", type=int, default=4096, help="tokens")
    parser.add_argument("--type", choices=["f16", "q8_0", "q4_0", "f32"], default="f16")
    parser.add_argument("--active", type=float, default=0.10, help="share of neurons that fire for a token")
    parser.add_argument("--popularity-exponent", type=float, default=0.75,
                        help="x: the neuron of rank r fires in proportion to r^-x")
    parser.add_argument("--rank", type=int, default=0, help="rank of gate; stores an exact linear predictor (0: full rank)")
    parser.add_argument("--calibration-tokens", type=int, default=512)
    parser.add_argument("--measured-tokens", type=int, default=256)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    started = time.monotonic()
    try:
        shape = gl.LlamaShape(layers=options.layers, hidden=options.hidden, ffn=options.ffn, heads=options.heads,
                              kv_heads=options.kv_heads if options.kv_heads is not None else options.heads,
                              vocab=options.vocab, context=options.context)
        recipe = Recipe(shape, options.type, options.active, options.popularity_exponent, options.rank,
                        options.calibration_tokens, options.measured_tokens, options.seed)
        measured = Synthesizer(recipe, options.out).run()
    except ValueError as error:
        parser.error(str(error))
    print(f"layer  active %  (asked {100 * options.active:.2f})" + ("  recall %  kept %" if options.rank else ""))
    for layer, active in enumerate(measured.active_by_layer):
        line = f"{layer:5d}  {100 * active:8.2f}"
        if options.rank:
            line += f"{'':15s}{100 * measured.recall_by_layer[layer]:8.2f}  {100 * measured.kept_by_layer[layer]:6.2f}"
        print(line)
    print(f" mean  {100 * float(np.mean(measured.active_by_layer)):8.2f}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{options.out}: {options.out.stat().st_size} bytes in {time.monotonic() - started:.0f} s, "
          f"peak memory {peak:.0f} MiB")


if __name__ == "__main__":
    main()
