"""The checkpoints whose logits transformers computed for tests/reference become the files that Isotherm is tested with there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import hf_folders as hf
import numpy as np
import pytest

from isotherm_tools import gguf_llama as gl
from isotherm_tools.convert import convert

REFERENCE = Path(__file__).resolve().parents[3] / "tests" / "reference"
sys.path.insert(0, str(REFERENCE))
import families  # noqa: E402

# mistral-drelu has no checkpoint class: what converts to it is a Bamboo.
CASES = {case.name: case for case in families.cases() if case.name != "mistral-drelu-q8_0"}

CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "bamboo": "BambooForCausalLM",
           "minicpm": "MiniCPMForCausalLM", "qwen2": "Qwen2ForCausalLM", "arcee": "ArceeForCausalLM",
           "nemotron": "NemotronForCausalLM", "falcon": "FalconForCausalLM", "opt": "OPTForCausalLM"}


def config_of(case: Any) -> dict[str, Any]:
    """The config.json of a fixture's checkpoint."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": families.ROPE_BASE}
    if case.llama3_rope:
        rope |= {"rope_type": "llama3", **families.LLAMA3_ROPE}
    large = "attn_norm_2" in case.family.norms
    values = {
        "architectures": [CLASSES[case.family.architecture]], "vocab_size": families.VOCABULARY, "hidden_size": families.HIDDEN,
        "num_hidden_layers": case.layers, "num_attention_heads": families.HEADS, "max_position_embeddings": families.CONTEXT,
        "tie_word_embeddings": case.tied, "rope_parameters": rope, "bos_token_id": 1, "eos_token_id": 2}
    match case.family.architecture:
        case "falcon":
            return values | {"activation": case.activation, "ffn_hidden_size": families.FFN, "new_decoder_architecture": large,
                             "multi_query": not large, "num_kv_heads": case.kv_heads, "layer_norm_epsilon": families.EPSILON}
        case "opt":
            return values | {"activation_function": case.activation, "ffn_dim": families.FFN}
    return values | {
        "hidden_act": case.activation, "hidden_act_param": families.FATRELU_THRESHOLD, "intermediate_size": families.FFN,
        "num_key_value_heads": case.kv_heads, "rms_norm_eps": families.EPSILON, "norm_eps": families.EPSILON,
        "partial_rotary_factor": families.ROTARY_SHARE, "scale_emb": families.SCALE_EMB, "scale_depth": families.SCALE_DEPTH,
        "dim_model_base": families.DIM_MODEL_BASE}


def read(path: Path) -> tuple[hf.State, dict[str, object]]:
    """Tensors and metadata, also of PowerInfer's form."""
    if path.read_bytes()[:4] != b"PWRI":
        return gl.read_tensors(path)
    plain = path.with_suffix(".plain")
    plain.write_bytes(b"GGUF" + path.read_bytes()[4:])
    return gl.read_tensors(plain)


@pytest.mark.parametrize("name", CASES)
def test_the_fixture_s_checkpoint_converts_to_the_fixture(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    (tmp_path / "fixture.gguf").write_bytes((REFERENCE / "data" / f"{name}.gguf").read_bytes())
    expected, keys = read(tmp_path / "fixture.gguf")
    # The gguf reader gives vectors of files written so as a matrix of one row.
    expected = {tensor: values.ravel() if tensor.endswith((".bias", "norm.weight", "norm_2.weight")) else values
                for tensor, values in expected.items()}
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config_of(case)))
    hf.write_sentencepiece(folder / "tokenizer.model", gl.tiny_vocabulary(families.VOCABULARY))
    hf.write_safetensors(folder / "model.safetensors", families.to_state(case, expected))
    arguments = [str(folder), "--out", str(tmp_path / "out.gguf"), "--type", "f32"]
    if case.predictor_rank:
        (tmp_path / "predictors").mkdir()
        for layer in range(case.layers):
            hf.write_torch(tmp_path / "predictors" / f"model_{layer}.pt",
                           {f"{part}.weight": expected[f"blk.{layer}.{part}.weight"] for part in ("fc1", "fc2")})
        arguments += ["--powerinfer", str(tmp_path / "predictors")]
    convert(arguments)
    found, found_keys = read(tmp_path / "out.gguf")
    # PowerInfer wants an own head where the fixture's is tied.
    if case.predictor_rank and "output.weight" not in expected and "output.weight" in found:
        assert (found.pop("output.weight") == expected["token_embd.weight"]).all()
    assert found.keys() == expected.keys()
    for tensor, values in expected.items():
        assert found[tensor].shape == values.shape and np.abs(found[tensor] - values).max() <= 1e-7 * np.abs(values).max(), tensor
    written = "llama" if case.family.architecture == "mistral" else case.family.architecture
    keys = {key.replace(f"{case.family.architecture}.", f"{written}."): value for key, value in keys.items()}
    ignored = ("general.", "GGUF.", "tokenizer.", "powerinfer.")
    assert {key: found_keys.get(key) for key in keys if not key.startswith(ignored)} == {
        key: value for key, value in keys.items() if not key.startswith(ignored)}
    assert found_keys["tokenizer.ggml.tokens"] == keys["tokenizer.ggml.tokens"]
