"""Predictors, firing counts and PowerInfer's form: what isotherm-convert adds to a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import hf_folders as hf
import numpy as np
import pytest
from gguf import GGUFReader

from isotherm_tools import gguf_llama as gl
from isotherm_tools.convert import convert

POWERINFER = ("llama", "llama-relu-tied", "bamboo", "falcon-7b", "falcon-40b", "opt")


def read_powerinfer(path: Path) -> tuple[list[str], dict[str, np.ndarray], dict[str, object]]:
    """(tensor names in file order, F32 tensors, metadata); the magic is checked."""
    assert path.read_bytes()[:4] == b"PWRI"
    plain = path.with_suffix(".plain")
    shutil.copy(path, plain)
    with plain.open("r+b") as file:
        file.write(b"GGUF")
    tensors, metadata = gl.read_tensors(plain)
    return [t.name for t in GGUFReader(plain).tensors], tensors, metadata


@pytest.mark.parametrize("family", POWERINFER)
def test_powerinfer_s_form(tmp_path: Path, family: str) -> None:
    state = hf.write_folder(tmp_path / "model", family, "F16")
    predictors = hf.write_predictors(tmp_path / "predictors", hf.LAYERS, hf.HIDDEN, hf.ffn_width(family))
    (tmp_path / "predictors" / "config.json").write_text('{"sparse_threshold": 0.25, "other": 1}')
    out = tmp_path / "out.gguf"
    convert([str(tmp_path / "model"), str(tmp_path / "predictors"), "--out", str(out), "--powerinfer"])
    names, tensors, metadata = read_powerinfer(out)
    assert metadata["powerinfer.sparse_threshold"] == 0.25
    assert not [key for key in metadata if key.startswith("isotherm.predictor")]
    # The model's tensors first, then the predictors by layer.
    assert names[-4:] == [f"blk.{layer}.{part}.weight" for layer in range(hf.LAYERS) for part in ("fc1", "fc2")]
    for layer, (fc1, fc2) in enumerate(predictors):
        assert (tensors[f"blk.{layer}.fc1.weight"] == fc1).all() and (tensors[f"blk.{layer}.fc2.weight"] == fc2).all()
        source = {"opt": f"model.decoder.layers.{layer}.fc2", "falc": f"transformer.h.{layer}.mlp.dense_4h_to_h"}.get(
            family[:4].rstrip("-"), f"model.layers.{layer}.mlp.down_proj")
        assert (tensors[f"blk.{layer}.ffn_down_t.weight"] == state[f"{source}.weight"].T).all()
        assert f"blk.{layer}.ffn_down.weight" not in tensors
    # PowerInfer counts tensors: an own head everywhere but in OPT, and nothing it does not know.
    head = 0 if family == "opt" or "lm_head.weight" in state else 1
    assert len(names) == len(state) + head + 2 * hf.LAYERS
    assert ("output.weight" in tensors) == (family != "opt")
    if family == "llama-relu-tied":
        assert (tensors["output.weight"] == tensors["token_embd.weight"]).all()
    if family == "opt":
        assert (tensors["blk.0.ffn_down_t.bias"] == state["model.decoder.layers.0.fc2.bias"]).all()


def test_isotherm_s_own_form(tmp_path: Path) -> None:
    hf.write_folder(tmp_path / "model", "prosparse")
    predictors = hf.write_predictors(tmp_path / "predictors", hf.LAYERS, hf.HIDDEN, hf.FFN, np.float32)
    counts = [np.arange(hf.FFN, dtype=np.int64) * (layer + 1) for layer in range(hf.LAYERS)]
    (tmp_path / "activation").mkdir()
    for layer, values in enumerate(counts):
        hf.write_torch(tmp_path / "activation" / f"activation_{layer}.pt", values)
    out = tmp_path / "out.gguf"
    arguments = [str(tmp_path / "model"), str(tmp_path / "predictors"), "--out", str(out), "--type", "q8_0",
                 "--activations", str(tmp_path / "activation")]
    convert(arguments)
    tensors, metadata = gl.read_tensors(out)
    assert metadata["isotherm.predictor.form"] == "relu" and metadata["isotherm.predictor.input"] == "residual"
    assert metadata["isotherm.predictor.threshold"] == 0
    assert metadata["isotherm.profile.tokens"] == 2 * (hf.FFN - 1)
    for layer in range(hf.LAYERS):
        assert (tensors[f"blk.{layer}.pred_a.weight"] == predictors[layer][0].astype(np.float16)).all()
        assert tensors[f"blk.{layer}.pred_b.weight"].shape == (hf.FFN, 8 * (layer + 1))
        assert (tensors[f"blk.{layer}.ffn_act_counts"] == counts[layer]).all()
        assert tensors[f"blk.{layer}.ffn_down_t.weight"].shape == (hf.FFN, hf.HIDDEN)
    kinds = {t.name: t.tensor_type.name for t in GGUFReader(out).tensors}
    assert kinds["blk.0.pred_a.weight"] == "F16" and kinds["blk.0.ffn_down_t.weight"] == "Q8_0"
    convert([*arguments, "--activation-tokens", "5000"])
    assert gl.read_tensors(out)[1]["isotherm.profile.tokens"] == 5000


def test_layers_from_ten_on_keep_their_own_files(tmp_path: Path) -> None:
    """Sorted as text, layer 10's file would come before layer 2's."""
    layers = 12
    hf.write_folder(tmp_path / "model", "llama")
    state = hf.random_state("llama")
    for layer in range(2, layers):
        state |= {name.replace("layers.0", f"layers.{layer}"): values for name, values in state.items() if "layers.0." in name}
    hf.write_safetensors(tmp_path / "model" / "model.safetensors", state)
    (tmp_path / "model" / "config.json").write_text(json.dumps(hf.CONFIGS["llama"] | {"num_hidden_layers": layers}))
    (tmp_path / "activation").mkdir()
    for layer in range(layers):
        hf.write_torch(tmp_path / "activation" / f"activation_{layer}.pt", np.full(hf.FFN, layer, dtype=np.float32))
    convert([str(tmp_path / "model"), "--out", str(tmp_path / "out.gguf"), "--activations", str(tmp_path / "activation")])
    tensors, _ = gl.read_tensors(tmp_path / "out.gguf")
    assert [tensors[f"blk.{layer}.ffn_act_counts"][0] for layer in range(layers)] == list(range(layers))
