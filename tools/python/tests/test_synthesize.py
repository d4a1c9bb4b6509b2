"""Synthetic models fire as often as asked, in every type, and their stored predictor is exact."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from isotherm_tools import gguf_llama as gl
from isotherm_tools import llama_numpy
from isotherm_tools.arrays import Arrays, arrays_on
from isotherm_tools.errors import run_command
from isotherm_tools.gguf_container import GgufFile
from isotherm_tools.synthesize import synthesize
from isotherm_tools.synthetic_model import TOPICS, Synthesizer
from isotherm_tools.synthetic_recipe import BLUEPRINTS, POWERINFER_ARCHITECTURES, Recipe, firing_rates, synthetic_vocabulary
from isotherm_tools.tensor_mill import mill_on

SHAPE = gl.LlamaShape(layers=2, hidden=256, ffn=512, heads=4, kv_heads=2, vocab=600, context=128)


def observe(path: Path, seed: int) -> tuple[list[np.ndarray], np.ndarray, dict[str, np.ndarray], dict[str, object]]:
    """Firing rates [ffn] a layer over fresh tokens by an independent forward pass, its logits, tensors and metadata."""
    weights, metadata = gl.read_tensors(path)
    shape = gl.shape_of(metadata)
    fired: list[list[np.ndarray]] = [[] for _ in range(shape.layers)]
    logits = []
    rng = np.random.default_rng(seed)
    for _ in range(4):
        logits.append(llama_numpy.forward(weights, shape, rng.integers(3, shape.vocab, 64), "relu",
                                          fired=lambda layer, mask: fired[layer].append(mask), dtype=np.float32))
    return [np.concatenate(masks).mean(axis=0) for masks in fired], np.concatenate(logits), weights, metadata


@pytest.mark.parametrize("type_name", ["f32", "f16", "q8_0", "q4_0"])
def test_neurons_fire_as_often_as_asked(tmp_path: Path, type_name: str) -> None:
    path = tmp_path / "model.gguf"
    measured = Synthesizer(Recipe(SHAPE, type_name, active=0.10), path).run()
    rates, logits, weights, metadata = observe(path, seed=9)
    shares = [float(layer.mean()) for layer in rates]
    assert np.mean(shares) == pytest.approx(0.10, rel=0.10)
    assert np.mean(measured.active_by_layer) == pytest.approx(np.mean(shares), rel=0.10)
    assert metadata[gl.KEY_ACTIVATION] == "relu"
    assert logits.argmax(axis=1).min() >= 3, "a control token was chosen"
    assert np.isfinite(logits).all()
    counts = weights["blk.0.ffn_act_counts"]
    assert counts.sum() / counts.size / float(metadata[gl.KEY_PROFILE_TOKENS]) == pytest.approx(0.10, rel=0.10)  # type: ignore[arg-type]
    # The profile tells popular neurons from rare ones on other tokens too.
    assert np.corrcoef(counts, rates[0])[0, 1] > 0.95


def test_a_rarer_model(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    Synthesizer(Recipe(SHAPE, "f16", active=0.03, seed=4), path).run()
    assert np.mean([layer.mean() for layer in observe(path, seed=5)[0]]) == pytest.approx(0.03, rel=0.10)


def test_nothing_writes_the_constant_channel(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    Synthesizer(Recipe(SHAPE, "q4_0"), path).run()
    weights, _ = gl.read_tensors(path)
    assert (weights["token_embd.weight"][:, 0] == 1).all()
    for layer in range(SHAPE.layers):
        assert not weights[f"blk.{layer}.attn_output.weight"][0].any()
        assert not weights[f"blk.{layer}.ffn_down_t.weight"][:, 0].any()
        assert not weights[f"blk.{layer}.ffn_gate.weight"][:, 1:32].any()


@pytest.mark.parametrize(("type_name", "most_kept"), [("f16", 1.05), ("q8_0", 1.15), ("q4_0", 2.0)])
def test_low_rank_predictor_is_exact(tmp_path: Path, type_name: str, most_kept: float) -> None:
    path = tmp_path / "model.gguf"
    measured = Synthesizer(Recipe(SHAPE, type_name, active=0.10, rank=24), path).run()
    weights, metadata = gl.read_tensors(path)
    assert metadata[gl.KEY_PREDICTOR_FORM] == "linear" and metadata[gl.KEY_PREDICTOR_INPUT] == "ffn_input"
    assert weights["blk.0.pred_a.weight"].shape == (24, 256)
    assert weights["blk.0.pred_b.weight"].shape == (512, 24)
    kept_share, missed, fired_total = [], 0, 0
    masks: list[np.ndarray] = []

    def mask(layer: int, _: np.ndarray, x: np.ndarray) -> np.ndarray:
        kept = x @ weights[f"blk.{layer}.pred_a.weight"].T @ weights[f"blk.{layer}.pred_b.weight"].T
        masks.append(kept + weights[f"blk.{layer}.pred_b.bias"] >= 0)
        return masks[-1]

    fired: list[np.ndarray] = []
    tokens = np.random.default_rng(2).integers(3, SHAPE.vocab, 100)
    llama_numpy.forward(weights, gl.shape_of(metadata), tokens, "relu", mask=mask,
                        fired=lambda _, on: fired.append(on), dtype=np.float32)
    for kept, on in zip(masks, fired, strict=True):
        kept_share.append(kept.mean() / on.mean())
        missed += int((on & ~kept).sum())
        fired_total += int(on.sum())
    assert missed <= 0.002 * fired_total
    assert np.mean(kept_share) <= most_kept
    assert min(measured.recall_by_layer) > 0.995


def forms(tmp_path: Path, recipe: Recipe, device: str) -> tuple[GgufFile, GgufFile]:
    """One model as Isotherm's file and as PowerInfer's."""
    if device != "numpy":
        pytest.importorskip("torch")
    paths = tmp_path / "own.gguf", tmp_path / "powerinfer.gguf"
    measured = Synthesizer(recipe, *paths, arrays_on(device)).run()
    assert np.mean(measured.active_by_layer) == pytest.approx(0.10, rel=0.15)
    assert min(measured.recall_by_layer) > 0.99
    return GgufFile(paths[0]), GgufFile(paths[1])


@pytest.mark.parametrize("device", ["numpy", "cpu"])
@pytest.mark.parametrize("architecture", POWERINFER_ARCHITECTURES)
def test_both_forms_have_the_same_weights(tmp_path: Path, architecture: str, device: str) -> None:
    own, powerinfer = forms(tmp_path, Recipe(SHAPE, "q4_0", rank=24, architecture=architecture), device)
    assert own.magic == b"GGUF" and powerinfer.magic == b"PWRI"
    of_predictors = {name for name in powerinfer.tensors if ".fc" in name}
    assert len(of_predictors) == 2 * SHAPE.layers
    common = powerinfer.tensors.keys() - of_predictors
    assert own.tensors.keys() - common == {f"blk.{layer}.{name}" for layer in range(SHAPE.layers) for name in (
        "ffn_act_counts", "pred_a.weight", "pred_b.weight", "pred_b.bias")}
    for name in common:
        assert (own.values(name) == powerinfer.values(name)).all(), name
    for layer in range(SHAPE.layers):
        a, b = (own.values(f"blk.{layer}.pred_{part}.weight") for part in "ab")
        fc1, fc2 = (powerinfer.values(f"blk.{layer}.fc{part}.weight") for part in (1, 2))
        assert (fc1 == np.concatenate([a, -a])).all()
        assert (fc2[:, :23] == b[:, :23]).all() and (fc2[:, 24:] == -fc2[:, :24]).all()
        # The margin is part of what the constant direction carries.
        assert (fc2[:, 23] > b[:, 23]).all()


@pytest.mark.parametrize("architecture", sorted(set(BLUEPRINTS) - set(POWERINFER_ARCHITECTURES)))
def test_other_architectures(tmp_path: Path, architecture: str) -> None:
    measured = Synthesizer(Recipe(SHAPE, "f16", rank=24, architecture=architecture), tmp_path / "x.gguf", arrays=Arrays()).run()
    assert np.mean(measured.active_by_layer) == pytest.approx(0.10, rel=0.15) and min(measured.recall_by_layer) > 0.99
    file = GgufFile(tmp_path / "x.gguf")
    assert file.metadata["general.architecture"] == architecture
    assert file.metadata.get(gl.KEY_ACTIVATION) == (None if BLUEPRINTS[architecture].implied else "relu")
    assert ("blk.0.ffn_gate.weight" in file.tensors) == BLUEPRINTS[architecture].gated
    assert ("blk.0.attn_q.bias" in file.tensors) == (architecture == "qwen2")
    assert ("blk.0.ffn_norm.bias" in file.tensors) == (architecture == "nemotron")


def test_layers_differ_as_asked(tmp_path: Path) -> None:
    shape = replace(SHAPE, layers=3)
    measured = Synthesizer(Recipe(shape, active=(0.05, 0.25), popularity_exponent=(0.2, 1.0)), tmp_path / "x.gguf").run()
    assert measured.active_by_layer == pytest.approx([0.05, 0.15, 0.25], rel=0.2)
    weights, _ = gl.read_tensors(tmp_path / "x.gguf")
    shares = []
    for layer in range(3):
        counts = np.sort(weights[f"blk.{layer}.ffn_act_counts"])[::-1]
        shares.append(counts[:51].sum() / counts.sum())
    # What the most popular tenth fires: a tenth and little more where all are nearly alike.
    assert shares[0] < 0.3 and shares == sorted(shares)


def test_locality_makes_neurons_fire_again(tmp_path: Path) -> None:
    again = []
    for locality in (0.0, 0.4, 0.8):
        recipe = Recipe(SHAPE, calibration_tokens=2048, measured_tokens=2048, locality=locality)
        measured = Synthesizer(recipe, tmp_path / "x.gguf").run()
        assert np.mean(measured.active_by_layer) == pytest.approx(0.10, rel=0.25)
        again.append(np.mean(measured.again_by_layer))
    assert again[0] + 0.05 < again[1] and again[1] + 0.05 < again[2]
    weights, metadata = gl.read_tensors(tmp_path / "x.gguf")
    tokens = [131]
    for _ in range(12):
        logits = llama_numpy.forward(weights, gl.shape_of(metadata), np.array(tokens), "relu", dtype=np.float32)
        tokens.append(int(logits[-1].argmax()))
    assert {token % TOPICS for token in tokens} == {131 % TOPICS}, "generated text left its topic"


@pytest.mark.parametrize("type_name", ["f32", "f16", "q8_0", "q4_0"])
def test_torch_encodes_as_the_gguf_package_does(type_name: str) -> None:
    pytest.importorskip("torch")
    mill = mill_on(arrays_on("cpu"), 3)
    matrix = mill.normal(64, 512, 2.0)
    matrix[0] = 0
    encoded, values = mill.encode(matrix, type_name)
    expected = gl.encode(matrix.numpy(), type_name)
    same = np.asarray(encoded).view(np.uint8) == expected.view(np.uint8)
    # A quotient that ends on a half may be rounded either way.
    assert same.mean() > 0.9999
    assert np.abs(gl.decode(np.asarray(encoded), gl.TYPES[type_name]) - values.numpy()).max() == 0


@pytest.mark.parametrize(("changes", "message"), [
    ({"rank": 0}, "needs a rank"), ({"architecture": "nemotron"}, "needs a rank and one of llama, bamboo"),
    ({"locality": 1.0}, "locality 1.0 is not between 0 and 1"), ({"active": (0.1, 1.2)}, "active share 1.2"),
    ({"architecture": "mamba"}, "architecture 'mamba' is not among llama")])
def test_recipes_that_cannot_be_followed(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Synthesizer(replace(Recipe(SHAPE, rank=8), **changes), tmp_path / "x.gguf", tmp_path / "y.gguf")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--layers", "2", "--hidden", "64", "--ffn", "96", "--heads", "4", "--vocab", "300", "--device", "numpy"]
    out = str(tmp_path / "x.gguf")
    assert run_command("isotherm-synthesize", lambda: synthesize([*sizes, "--active", "0.1,0.2", "--out", out])) == 0
    assert "again %" in capsys.readouterr().out
    assert run_command("isotherm-synthesize", lambda: synthesize([*sizes, "--hidden", "65", "--heads", "5", "--out", out])) == 1
    assert capsys.readouterr().err.startswith("isotherm-synthesize: ")


def test_same_seed_same_file(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.gguf", "b.gguf", "c.gguf")]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        Synthesizer(Recipe(SHAPE, "q8_0", seed=seed), path).run()
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again and first != other


def test_rates_follow_the_power_law() -> None:
    rates = firing_rates(4096, 0.10, 0.75)
    assert rates.mean() == pytest.approx(0.10, rel=1e-6)
    assert rates.max() <= 0.95 and (np.diff(rates) <= 0).all()
    assert rates[2000] / rates[1000] == pytest.approx((2001 / 1001) ** -0.75)
    with pytest.raises(ValueError, match="active share"):
        firing_rates(4096, 1.5, 0.75)


def test_vocabulary_has_no_duplicates() -> None:
    vocabulary = synthetic_vocabulary(32000)
    assert len(set(vocabulary.tokens)) == len(vocabulary.scores) == len(vocabulary.types) == 32000


def test_widths_that_blocks_do_not_divide_are_refused(tmp_path: Path) -> None:
    shape = gl.LlamaShape(layers=1, hidden=80, ffn=96, heads=4, kv_heads=4, vocab=320, context=64)
    with pytest.raises(ValueError, match="multiples of 32"):
        Synthesizer(Recipe(shape), tmp_path / "x.gguf")
