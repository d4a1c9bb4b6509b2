"""Regenerates the fixtures under tests/reference/data; formats are described in README.md beside this file.

    pip install -e 'tools/python[reference]'
    python tests/reference/generate.py models families blocks
    python tests/reference/generate.py tokenizers --vocab DIR      # DIR holds ggml-vocab-{llama-spm,gpt-2,falcon}.gguf;
                                                                   # without it, only the vocabularies kept here

The tests themselves read only the fixtures and need none of these packages.
"""

from __future__ import annotations

import argparse
import struct
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from isotherm_tools import gguf_llama as gl
from isotherm_tools import llama_numpy

DATA = Path(__file__).parent / "data"


@dataclass(frozen=True)
class Case:
    """One model fixture."""

    name: str
    shape: gl.LlamaShape
    activation: str
    type_name: str
    tied: bool = False
    tokens: int = 40
    powerinfer_rank: int = 0
    """0: ordinary GGUF; otherwise PowerInfer's form with a predictor of this rank."""


def cases() -> list[Case]:
    mha = gl.LlamaShape(layers=2, hidden=64, ffn=192, heads=4, kv_heads=4, vocab=320, context=256)
    gqa = replace(mha, layers=3, kv_heads=2)
    gqa32 = replace(mha, hidden=128, ffn=256, heads=4, kv_heads=1, layers=1)
    one = replace(gqa, layers=1)
    return [
        Case("mha-relu-f32", mha, "relu", "f32"),
        Case("gqa-silu-f32", one, "silu", "f32"),
        Case("gqa-relu-f16", gqa32, "relu", "f16", tokens=100),
        Case("mha-silu-f16", replace(mha, layers=1), "silu", "f16"),
        Case("mha-relu-q8_0", mha, "relu", "q8_0"),
        Case("gqa-silu-q8_0", gqa32, "silu", "q8_0"),
        Case("gqa-relu-q4_0", gqa, "relu", "q4_0"),
        Case("mha-silu-q4_0", mha, "silu", "q4_0"),
        Case("rope-base-f32", replace(one, rope_base=500000.0), "relu", "f32", tied=True, tokens=80),
        Case("rope-linear-f32", replace(one, rope_scale=2.0), "relu", "f32", tied=True, tokens=80),
        Case("tied-relu-q8_0", gqa, "relu", "q8_0", tied=True),
        Case("powerinfer-relu-q8_0", replace(mha, layers=1), "relu", "q8_0", powerinfer_rank=128),
        Case("powerinfer-rank48-f32", one, "relu", "f32", tied=True, powerinfer_rank=48),
    ]


def random_tensors(case: Case, rng: np.random.Generator) -> list[tuple[str, np.ndarray, str]]:
    """(name, F32 values, type) in GGUF layout, sized so that every part of the graph matters to the logits."""
    s = case.shape

    def matrix(rows: int, columns: int, gain: float = 1.0) -> np.ndarray:
        return (rng.standard_normal((rows, columns)) * gain / np.sqrt(columns)).astype(np.float32)

    def norm() -> np.ndarray:
        return rng.uniform(0.5, 1.5, s.hidden).astype(np.float32)

    t = case.type_name
    tensors = [("token_embd.weight", rng.standard_normal((s.vocab, s.hidden)).astype(np.float32), t)]
    for layer in range(s.layers):
        p = f"blk.{layer}."
        attention_norm, ffn_norm = norm(), norm()
        gate = matrix(s.ffn, s.hidden)
        tensors += [
            (f"{p}attn_norm.weight", attention_norm, "f32"),
            (f"{p}attn_q.weight", gl.permute_rope_rows(matrix(s.hidden, s.hidden, 1.5), s.heads), t),
            (f"{p}attn_k.weight", gl.permute_rope_rows(matrix(s.kv_width, s.hidden, 1.5), s.kv_heads), t),
            (f"{p}attn_v.weight", matrix(s.kv_width, s.hidden), t),
            (f"{p}attn_output.weight", matrix(s.hidden, s.hidden), t),
            (f"{p}ffn_norm.weight", ffn_norm, "f32"),
            (f"{p}ffn_gate.weight", gate, t),
            (f"{p}ffn_up.weight", matrix(s.ffn, s.hidden), t),
        ]
        down = matrix(s.hidden, s.ffn, 2.0)
        if case.powerinfer_rank:
            stored = gl.decode(gl.encode(gate, t), gl.TYPES[t])
            fc1, fc2 = relu_predictor(stored * ffn_norm, case.powerinfer_rank)
            tensors += [(f"{p}ffn_down_t.weight", np.ascontiguousarray(down.T), t),
                        (f"{p}fc1.weight", fc1, "f32"), (f"{p}fc2.weight", fc2, "f32")]
        else:
            tensors.append((f"{p}ffn_down.weight", down, t))
    tensors.append(("output_norm.weight", norm(), "f32"))
    if not case.tied:
        tensors.append(("output.weight", matrix(s.vocab, s.hidden, 3.0), t))
    return tensors


def relu_predictor(scorer: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """fc1 [rank, hidden], fc2 [ffn, rank] with fc2 . relu(fc1 . h) = scorer . h, truncated to rank/2 directions.

    A positive and a negative copy of each direction undo the ReLU, so rank = 2 * hidden reproduces the sign of every
    gate exactly (the RMS norm's positive factor cannot change it).
    """
    u, sigma, vt = np.linalg.svd(scorer.astype(np.float64), full_matrices=False)
    half = rank // 2
    a, b = vt[:half], u[:, :half] * sigma[:half]
    return np.concatenate([a, -a]).astype(np.float32), np.concatenate([b, -b], axis=1).astype(np.float32)


def transformers_logits(weights: dict[str, np.ndarray], case: Case, tokens: np.ndarray) -> np.ndarray:
    """Float64 logits of transformers' LlamaForCausalLM on the dequantised weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    s = case.shape
    parameters: dict[str, object] = {"rope_type": "default", "rope_theta": s.rope_base}
    if s.rope_scale != 1.0:
        parameters |= {"rope_type": "linear", "factor": s.rope_scale}
    config = LlamaConfig(
        vocab_size=s.vocab, hidden_size=s.hidden, intermediate_size=s.ffn, num_hidden_layers=s.layers,
        num_attention_heads=s.heads, num_key_value_heads=s.kv_heads, hidden_act=case.activation,
        max_position_embeddings=s.context, rms_norm_eps=s.rms_eps, tie_word_embeddings=case.tied,
        rope_parameters=parameters, attn_implementation="eager")
    model = LlamaForCausalLM(config).to(torch.float64).eval()
    state = {}
    for name, array in weights.items():
        if name == "token_embd.weight":
            key = "model.embed_tokens.weight"
        elif name == "output_norm.weight":
            key = "model.norm.weight"
        elif name == "output.weight":
            key = "lm_head.weight"
        else:
            _, layer, part, _ = name.split(".")
            names = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
                     "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
                     "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
                     "ffn_down": "mlp.down_proj", "ffn_down_t": "mlp.down_proj"}
            if part in ("fc1", "fc2"):
                continue
            if part == "attn_q":
                array = gl.unpermute_rope_rows(array, s.heads)
            elif part == "attn_k":
                array = gl.unpermute_rope_rows(array, s.kv_heads)
            elif part == "ffn_down_t":
                array = array.T
            key = f"model.layers.{layer}.{names[part]}.weight"
        state[key] = torch.from_numpy(np.array(array, dtype=np.float64))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if case.tied else set()), (missing, unexpected)
    model.tie_weights()
    with torch.no_grad():
        return model(torch.from_numpy(tokens[None].astype(np.int64))).logits[0].numpy()


def write_expected(path: Path, tokens: np.ndarray, logits: np.ndarray) -> None:
    with path.open("wb") as out:
        out.write(struct.pack("<II", *logits.shape))
        out.write(tokens.astype("<i4").tobytes())
        out.write(logits.astype("<f4").tobytes())


def write_model(case: Case, seed: int) -> None:
    """Writes NAME.gguf and NAME.expected.bin, for a truncated predictor NAME.predicted.bin too."""
    rng = np.random.default_rng(seed)
    tensors = random_tensors(case, rng)
    tokens = rng.integers(3, case.shape.vocab, case.tokens)
    tokens[0] = 1
    path = DATA / f"{case.name}.gguf"
    with gl.LlamaWriter(path, case.shape, gl.tiny_vocabulary(case.shape.vocab), case.type_name, case.name,
                        activation="relu" if case.activation == "relu" and not case.powerinfer_rank else None) as writer:
        if case.powerinfer_rank:
            writer.metadata.add_float32(gl.KEY_POWERINFER_THRESHOLD, 0.0)
        gl.write_tensors(writer, tensors)
    weights, metadata = gl.read_tensors(path)
    assert gl.shape_of(metadata) == replace(case.shape, rms_eps=gl.shape_of(metadata).rms_eps)
    logits = transformers_logits(weights, case, tokens)
    ours = llama_numpy.forward(weights, case.shape, tokens, case.activation)
    # rms_eps is stored as F32 and transformers builds its rotary table in F32, so the two agree to about 1e-6.
    difference = float(np.abs(ours - logits).max() / np.abs(logits).max())
    print(f"{case.name:24s} |logit| max {np.abs(logits).max():6.2f}  numpy vs transformers {difference:.1e}  "
          f"{path.stat().st_size} bytes")
    assert difference < 1e-5, difference
    write_expected(DATA / f"{case.name}.expected.bin", tokens, logits)
    if case.powerinfer_rank:
        write_predicted(case, weights, tokens, logits)
        with path.open("r+b") as file:
            file.write(b"PWRI")


def write_predicted(case: Case, weights: dict[str, np.ndarray], tokens: np.ndarray, exact: np.ndarray) -> None:
    """Logits when only the neurons that fc1/fc2 keep are computed, in every layer and for every token."""
    margins: list[float] = []

    def mask(layer: int, residual: np.ndarray, _: np.ndarray) -> np.ndarray:
        hidden = np.maximum(residual @ weights[f"blk.{layer}.fc1.weight"].astype(np.float64).T, 0)
        scores = hidden @ weights[f"blk.{layer}.fc2.weight"].astype(np.float64).T
        margins.append(float((np.abs(scores) / np.abs(scores).mean()).min()))
        return scores >= 0

    logits = llama_numpy.forward(weights, case.shape, tokens, case.activation, mask=mask)
    print(f"{'':24s} predicted: change {np.abs(logits - exact).max():.3f}, nearest score to the threshold {min(margins):.1e}")
    # A score nearer than F32 rounding would let a correct predictor choose either way.
    assert case.powerinfer_rank >= 2 * case.shape.hidden or min(margins) > 2e-5
    write_expected(DATA / f"{case.name}.predicted.bin", tokens, logits)


def write_blocks() -> None:
    """Dequantisation of random blocks and quantisation of random rows, by the gguf package."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize, quantize

    rng = np.random.default_rng(7)

    def scale(count: int) -> np.ndarray:
        signed = rng.uniform(0.001, 0.1, count) * rng.choice([-1, 1], count)
        signed[0] = 0.0
        signed[1] = 6e-8  # the smallest subnormal half
        return signed.astype("<f2").view(np.uint8).reshape(count, 2)

    # Byte offsets of the F16 scales inside a block; every other byte is random.
    scales = {"Q4_0": [0], "Q8_0": [0], "Q4_K": [0, 2], "Q6_K": [208], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2],
              "Q5_K": [0, 2]}
    for name in [*scales, "BF16", "F16"]:
        kind = GGMLQuantizationType[name]
        elements, size = GGML_QUANT_SIZES[kind]
        count = 48
        if elements == 1:
            count = 4096
            values = np.concatenate([rng.standard_normal(count - 5) * 10.0 ** rng.integers(-6, 4, count - 5),
                                     [0.0, -0.0, 1.0, 65504.0, 6e-8]]).astype(np.float32)
            data = quantize(values[None], kind).view(np.uint8).reshape(count, size)
        else:
            data = rng.integers(0, 256, (count, size), dtype=np.uint8)
            for offset in scales[name]:
                data[:, offset:offset + 2] = scale(count)
        encoded = data.reshape(1, -1) if name != "F16" else data.reshape(1, -1).view(np.float16)
        expected = dequantize(encoded, kind).astype("<f4")
        assert np.isfinite(expected).all()
        with (DATA / f"dequantize_{name.lower()}.bin").open("wb") as out:
            out.write(struct.pack("<IIII", int(kind), count, size, elements))
            out.write(data.tobytes() + expected.tobytes())
        print(f"dequantize {name}: {count} blocks, |value| max {np.abs(expected).max():.3f}")

    for name in ("Q8_0", "Q4_0"):
        kind = GGMLQuantizationType[name]
        count = 96
        values = rng.standard_normal((count, 32)) * 10.0 ** rng.integers(-4, 3, (count, 1))
        values[0] = 0.0
        values[1] = np.arange(32) - 16
        values[2] = 1.0
        values[3] = -1.0
        values[4] = 0.0
        values[4, 31] = 5.0
        row = values.astype("<f4").reshape(1, -1)
        with (DATA / f"quantize_{name.lower()}.bin").open("wb") as out:
            out.write(struct.pack("<II", int(kind), row.size))
            out.write(row.tobytes() + quantize(row, kind).tobytes())
        print(f"quantize {name}: {row.size} values")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["models", "families", "blocks", "tokenizers"])
    parser.add_argument("--vocab", type=Path, help="folder of vocabulary-only GGUF files, for tokenizers")
    arguments = parser.parse_args()
    DATA.mkdir(exist_ok=True)
    if "models" in arguments.what:
        for index, case in enumerate(cases()):
            write_model(case, seed=100 + index)
    if "families" in arguments.what:
        import families

        for index, family_case in enumerate(families.cases()):
            families.write_model(family_case, 200 + index, DATA, write_expected)
    if "blocks" in arguments.what:
        write_blocks()
    if "tokenizers" in arguments.what:
        import tokenizer_goldens

        tokenizer_goldens.write_kept(Path(__file__).parents[2] / "models/tales/tales-q8_0.gguf", DATA)
        if arguments.vocab is not None:
            tokenizer_goldens.write_published(arguments.vocab, DATA)


if __name__ == "__main__":
    main()
