"""The exporter and the numpy yardstick against the reference fixtures."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from isotherm_tools import gguf_llama as gl
from isotherm_tools import llama_numpy
from isotherm_tools.gguf_container import GGUF, GgufFile
from isotherm_tools.export_gguf import export_relu_llama, state_from_gguf

FIXTURES = Path(__file__).resolve().parents[3] / "tests" / "reference" / "data"


def read_expected(path: Path) -> tuple[np.ndarray, np.ndarray]:
    data = path.read_bytes()
    count, vocab = struct.unpack_from("<II", data)
    tokens = np.frombuffer(data, "<i4", count, 8)
    return tokens, np.frombuffer(data, "<f4", count * vocab, 8 + 4 * count).reshape(count, vocab)


def known_to_numpy(path: Path) -> bool:
    """Whether llama_numpy has this fixture's architecture and activation."""
    if not path.with_name(f"{path.stem}.expected.bin").exists():
        return False
    file = GgufFile(path)
    return (file.magic == GGUF and file.metadata["general.architecture"] == "llama" and "rope_freqs.weight" not in file.tensors
            and file.metadata.get(gl.KEY_ACTIVATION, "silu") in ("relu", "silu"))


@pytest.mark.parametrize("name", sorted(path.stem for path in FIXTURES.glob("*.gguf") if known_to_numpy(path)))
def test_numpy_forward_equals_transformers(name: str) -> None:
    weights, metadata = gl.read_tensors(FIXTURES / f"{name}.gguf")
    tokens, logits = read_expected(FIXTURES / f"{name}.expected.bin")
    ours = llama_numpy.forward(weights, gl.shape_of(metadata), tokens, str(metadata.get(gl.KEY_ACTIVATION, "silu")))
    assert np.abs(ours - logits).max() < 1e-5 * np.abs(logits).max()


def test_permutation_pairs_the_halves_of_each_head() -> None:
    rows = np.arange(16, dtype=np.float32)[:, None]  # two heads of 8
    permuted = gl.permute_rope_rows(rows, 2)
    assert permuted[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    assert (gl.unpermute_rope_rows(permuted, 2) == rows).all()


def test_shape_rejects_what_no_llama_has() -> None:
    with pytest.raises(ValueError, match="heads"):
        gl.LlamaShape(layers=1, hidden=64, ffn=64, heads=5, kv_heads=5, vocab=320, context=8)


def random_state(shape: gl.LlamaShape, tied: bool) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)

    def matrix(*size: int) -> np.ndarray:
        return rng.standard_normal(size).astype(np.float32)

    state = {"model.embed_tokens.weight": matrix(shape.vocab, shape.hidden), "model.norm.weight": matrix(shape.hidden)}
    if not tied:
        state["lm_head.weight"] = matrix(shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        p = f"model.layers.{layer}."
        state |= {f"{p}input_layernorm.weight": matrix(shape.hidden),
                  f"{p}post_attention_layernorm.weight": matrix(shape.hidden),
                  f"{p}self_attn.q_proj.weight": matrix(shape.hidden, shape.hidden),
                  f"{p}self_attn.k_proj.weight": matrix(shape.kv_width, shape.hidden),
                  f"{p}self_attn.v_proj.weight": matrix(shape.kv_width, shape.hidden),
                  f"{p}self_attn.o_proj.weight": matrix(shape.hidden, shape.hidden),
                  f"{p}mlp.gate_proj.weight": matrix(shape.ffn, shape.hidden),
                  f"{p}mlp.up_proj.weight": matrix(shape.ffn, shape.hidden),
                  f"{p}mlp.down_proj.weight": matrix(shape.hidden, shape.ffn)}
    return state


@pytest.mark.parametrize("tied", [True, False])
def test_export_comes_back_as_it_went_in(tmp_path: Path, tied: bool) -> None:
    shape = gl.LlamaShape(layers=2, hidden=64, ffn=96, heads=4, kv_heads=2, vocab=320, context=64)
    state = random_state(shape, tied)
    counts = np.arange(2 * 96).reshape(2, 96)
    path = tmp_path / "model.gguf"
    export_relu_llama(path, state, shape, gl.tiny_vocabulary(320), "f32", "round-trip", counts, 5_000_000_000)
    back, back_shape = state_from_gguf(path)
    assert (back_shape.layers, back_shape.ffn, back_shape.kv_heads) == (2, 96, 2)
    assert back.keys() == state.keys()
    assert all((back[name] == state[name]).all() for name in state)
    tensors, metadata = gl.read_tensors(path)
    assert metadata[gl.KEY_ACTIVATION] == "relu"
    assert metadata[gl.KEY_PROFILE_TOKENS] == 5_000_000_000
    assert (tensors["blk.1.ffn_act_counts"] == counts[1]).all()
    assert "blk.0.ffn_down.weight" not in tensors
    assert ("output.weight" in tensors) is not tied


def test_quantised_rows_of_down_belong_to_one_neuron(tmp_path: Path) -> None:
    shape = gl.LlamaShape(layers=1, hidden=64, ffn=96, heads=4, kv_heads=4, vocab=320, context=64)
    state = random_state(shape, tied=True)
    down = state["model.layers.0.mlp.down_proj.weight"]
    down *= 10.0 ** -(np.arange(96)[None, :] % 4)  # neurons of very different size
    down[:, 5] = 0
    path = tmp_path / "model.gguf"
    export_relu_llama(path, state, shape, gl.tiny_vocabulary(320), "q8_0", "rows")
    back = gl.read_tensors(path)[0]["blk.0.ffn_down_t.weight"]
    error = np.abs(back - down.T)
    blocks = np.abs(down.T).reshape(96, 2, 32).max(axis=2).repeat(32, axis=1)
    # Half a step of the quants, the F16 scale's rounding, and its coarser one where it is subnormal.
    assert (error <= blocks * (0.5 / 127 + 2**-11) + 127 * 2**-25).all()
    kinds = {t.name: t.tensor_type.name for t in GGUFReader(path).tensors}
    assert kinds["blk.0.ffn_norm.weight"] == "F32" and kinds["token_embd.weight"] == "Q8_0"
