"""Predictors of a synthetic model: recall, shapes, both formats, and refusals. What needs torch skips without it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from isotherm_tools import gguf_llama as gl
from isotherm_tools import train_predictors
from isotherm_tools.arrays import Arrays, arrays_on
from isotherm_tools.decoder_shape import SPARSE_ACTIVATIONS, decoder_shape
from isotherm_tools.gguf_container import GGUF, POWERINFER, GgufFile
from isotherm_tools.layerwise import LayerwiseDecoder
from isotherm_tools.lowrank import GateDecomposition, Moments, NormWeights, bound_for_recall, bounds_for_energy, powerinfer_form
from isotherm_tools.predictor_fit import Stream
from isotherm_tools.synthetic_model import Synthesizer
from isotherm_tools.synthetic_recipe import Recipe
from test_gguf_export import read_expected

FIXTURES = Path(__file__).resolve().parents[3] / "tests" / "reference" / "data"
SHAPE = gl.LlamaShape(layers=2, hidden=256, ffn=512, heads=4, kv_heads=2, vocab=600, context=64)
GATE_RANK = 24

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="needs torch")
BACKENDS = ["numpy", pytest.param("cpu", marks=needs_torch)]


def windows(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, SHAPE.vocab, (count, SHAPE.context))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    Synthesizer(Recipe(SHAPE, "f16", active=0.10, rank=GATE_RANK), path).run()
    return path


@pytest.fixture
def run(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """Runs the command with these flags on random tokens; (exit status, the report, the file)."""
    monkeypatch.setattr(train_predictors, "split_windows", lambda *_: (windows(64, 1), windows(16, 2)))

    def command(*flags: str):  # type: ignore[no-untyped-def]
        out, report = tmp_path / "out.gguf", tmp_path / "report.json"
        status = train_predictors.main([str(model), "--text", "unused", "--out", str(out), "--json", str(report), *flags])
        return status, json.loads(report.read_text()) if status == 0 else None, out

    return command


def families() -> list[str]:
    """Fixtures with logits from transformers, as far as their neurons can be inactive."""
    found = []
    for path in sorted(FIXTURES.glob("*.gguf")):
        if path.with_name(f"{path.stem}.expected.bin").exists() and decoder_shape(GgufFile(path)).activation in SPARSE_ACTIVATIONS:
            found.append(path.stem)
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", families())
def test_the_forward_pass_is_that_of_transformers(name: str, backend: str) -> None:
    tokens, logits = read_expected(FIXTURES / f"{name}.expected.bin")
    decoder = LayerwiseDecoder(GgufFile(FIXTURES / f"{name}.gguf"), arrays_on(backend))
    stream = Stream(decoder, tokens[None])
    for layer in range(decoder.shape.layers):
        w = decoder.weights(layer)
        stream.attend(w)
        # What fires is all that matters.
        stream.feed_forward(w, lambda _, x, w=w: decoder.fires(w, x))
    wide = logits.astype(np.float64)
    losses = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(len(tokens)), np.append(tokens[1:], 0)]
    assert decoder.losses(stream.residual, tokens[None]) == pytest.approx(losses[:-1].sum(), rel=1e-5)


def gaussian_layer(tokens: int = 4000) -> tuple[np.ndarray, np.ndarray, Moments]:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((tokens, 64)) @ rng.standard_normal((64, 64)) + 1
    gate = rng.standard_normal((96, 64)) * 10.0 ** -rng.integers(0, 4, (96, 1))
    moments = Moments(64)
    moments.add(x, x.T @ x)
    return x, gate, moments


def test_full_rank_is_the_gate_itself() -> None:
    x, gate, moments = gaussian_layer()
    decomposition = GateDecomposition(gate, 0.05, moments)
    scores = decomposition.predictor(decomposition.most_rank).scores(x, x)
    margin = x @ gate.T - 0.05
    clear = np.abs(margin) > 1e-9 * np.abs(margin).max(axis=0)
    assert ((scores >= 0) == (margin >= 0))[clear].all()


def test_a_score_is_in_units_of_what_it_misses() -> None:
    x, gate, moments = gaussian_layer()
    predictor = GateDecomposition(gate, 0.0, moments).predictor(32)
    spread = (x @ gate.T).std(axis=0)
    exact, estimated = x @ gate.T / spread, predictor.scores(x, x)
    # scores = (exact - missed) / std(missed): the two differ by a factor a neuron and noise of the stated size.
    for j in range(0, 96, 7):
        slope = np.polyfit(estimated[:, j], exact[:, j], 1)[0]
        missed = exact[:, j] - slope * estimated[:, j]
        assert missed.std() == pytest.approx(slope, rel=0.02)


@pytest.mark.parametrize("centred", [False, True])
def test_powerinfers_form_decides_alike(centred: bool) -> None:
    rng = np.random.default_rng(1)
    residual = (rng.standard_normal((4000, 64)) @ rng.standard_normal((64, 64)) + 20 * np.sign(rng.standard_normal(64)))
    residual *= rng.uniform(0.1, 9, (4000, 1))
    norm = NormWeights(np.linspace(0.5, 2, 64), rng.standard_normal(64) if centred else 0.0, centred)
    size = norm.sizes(residual)[:, None]
    x = (residual - residual.mean(axis=1, keepdims=True) * centred) / size * norm.weight + norm.bias
    moments = Moments(64)
    moments.add(x, x.T @ x)
    predictor = GateDecomposition(rng.standard_normal((96, 64)), 0.5, moments).predictor(32)
    form = powerinfer_form(predictor, norm, residual)
    assert form.relu_between and form.reads_residual and form.rank % 32 == 0
    agree = (form.scores(residual, residual) >= 0) == (predictor.scores(residual, x) >= 0)
    assert agree.mean() > 0.97


def test_a_bound_keeps_the_share_asked_for() -> None:
    scores = np.random.default_rng(0).permutation(1000).astype(np.float32)
    bound = bound_for_recall(scores, 0.97)
    assert (scores >= bound).sum() == 970
    assert bound_for_recall(scores[:0], 0.97) == 0


def test_no_neuron_misses_more_than_allowed() -> None:
    rng = np.random.default_rng(0)
    neurons, scores, energies = rng.integers(0, 5, 400), rng.uniform(-9, 0, 400), rng.exponential(size=400)
    energies[neurons == 3] = 0
    allowed = np.array([0.0, 5.0, 1e9, 0.0, 20.0])
    bounds = bounds_for_energy(-0.5, neurons, scores, energies, allowed)
    for j in range(5):
        mine = neurons == j
        assert energies[mine & (scores < bounds[j])].sum() <= allowed[j]
        # The next entry up to the bound would be too much, unless the bound is the common one.
        assert bounds[j] == -0.5 or energies[mine & (scores <= bounds[j])].sum() > allowed[j]
    assert bounds[2] == bounds[3] == -0.5 and bounds[0] == scores[neurons == 0].min()


@pytest.mark.parametrize("backend", BACKENDS)
def test_svd_finds_the_rank_of_the_gate(run, model: Path, backend: str) -> None:  # type: ignore[no-untyped-def]
    status, report, out = run("--kind", "svd", "--device", backend, "--rank", "auto")
    assert status == 0
    for layer in report["layers"]:
        assert layer["rank"] == 32  # the least that holds the gate's 24
        assert layer["recall"] > 0.97 and layer["kept_over_fired"] < 1.3
    assert report["predicted_perplexity"] == pytest.approx(report["exact_perplexity"], rel=0.003)
    before, after = GgufFile(model), GgufFile(out)
    assert after.tensors["blk.1.pred_a.weight"].shape == (32, 256) and after.tensors["blk.1.pred_a.weight"].kind == 8
    assert after.tensors["blk.1.pred_b.weight"].shape == (512, 32) and after.tensors["blk.1.pred_b.bias"].shape == (512,)
    untouched = [name for name in before.tensors if ".pred_" not in name]
    assert all(bytes(after.raw(name)) == bytes(before.raw(name)) for name in untouched)
    assert after.metadata == before.metadata


def test_full_rank_keeps_all_that_fires(run) -> None:  # type: ignore[no-untyped-def]
    status, report, _ = run("--kind", "svd", "--device", "numpy", "--rank", "100%", "--recall", "0.9999", "--type", "f16")
    assert status == 0 and report["layers"][0]["rank"] == 256
    assert report["all"]["recall"] > 0.999 and report["all"]["kept_over_fired"] < 1.1


def test_a_rank_as_a_share(run) -> None:  # type: ignore[no-untyped-def]
    status, report, _ = run("--kind", "svd", "--device", "numpy", "--rank", "7%")
    assert status == 0 and report["layers"][0]["rank"] == 64  # 7 % of 512, in whole blocks


def test_powerinfers_file(run, model: Path) -> None:  # type: ignore[no-untyped-def]
    status, report, out = run("--kind", "svd", "--device", "numpy", "--rank", "auto", "--format", "powerinfer", "--most-kept", "2.5")
    assert status == 0
    assert report["all"]["recall"] > 0.95 and report["all"]["kept_over_fired"] < 2.5
    file = GgufFile(out)
    assert file.magic == POWERINFER and file.metadata["powerinfer.sparse_threshold"] == 0
    rank = report["layers"][0]["rank"]
    assert file.tensors["blk.0.fc1.weight"].shape == (rank, 256) and file.tensors["blk.0.fc2.weight"].shape == (512, rank)
    assert not any(".pred_" in name for name in file.tensors) and gl.KEY_PREDICTOR_FORM not in file.metadata
    assert bytes(file.raw("blk.1.ffn_gate.weight")) == bytes(GgufFile(model).raw("blk.1.ffn_gate.weight"))
    assert LayerwiseDecoder(file, Arrays()).shape.activation == "relu"


@pytest.mark.parametrize("name", ["opt-powerinfer-f16", "falcon40b-relu-f32", "nemotron-relu2-f32", "minicpm-relu-f32",
                                  "bamboo-drelu-f32"])
def test_every_family_gets_predictors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = FIXTURES / f"{name}.gguf"
    shape, vocab = decoder_shape(GgufFile(path)), GgufFile(path).tensors["token_embd.weight"].shape[0]
    ids = np.random.default_rng(3).integers(0, vocab, (60, min(shape.context, 64)))
    monkeypatch.setattr(train_predictors, "split_windows", lambda *_: (ids[:50], ids[50:]))
    report, out = tmp_path / "report.json", tmp_path / "out.gguf"
    flags = ["--text", "unused", "--out", str(out), "--json", str(report), "--kind", "svd", "--device", "numpy", "--type", "f16"]
    assert train_predictors.main([str(path), *flags, "--rank", "100%", "--recall", "0.999"]) == 0
    result = json.loads(report.read_text())
    # With drelu only half of the neurons that the gate lets through fire.
    assert result["all"]["recall"] > 0.99 and result["all"]["kept_over_fired"] < (2.2 if "drelu" in name else 1.1)
    assert result["predicted_perplexity"] == pytest.approx(result["exact_perplexity"], rel=0.003)
    before, after = GgufFile(path), GgufFile(out)
    assert after.magic == GGUF and decoder_shape(after) == shape
    assert not any(".fc" in tensor for tensor in after.tensors) and "powerinfer.sparse_threshold" not in after.metadata
    assert all(bytes(after.raw(tensor)) == bytes(before.raw(tensor)) for tensor in before.tensors if ".fc" not in tensor)


@needs_torch
@pytest.mark.parametrize("form", ["isotherm", "powerinfer"])
def test_training_meets_the_goal(run, form: str) -> None:  # type: ignore[no-untyped-def]
    status, report, _ = run("--kind", "trained", "--device", "cpu", "--rank", "32", "--epochs", "2", "--format", form)
    assert status == 0
    assert report["all"]["recall"] > 0.95 and report["all"]["kept_over_fired"] < 1.5


@pytest.mark.parametrize(("flags", "reason"), [
    (["--rank", "none"], "--rank none is neither"),
    (["--format", "powerinfer", "--type", "q8_0"], "too coarse in q8_0"),
    (["--kind", "trained"], "needs the torch package"),
    (["--out", "/nowhere/at/all/out.gguf"], "there is no folder")])
def test_wrong_flags_are_one_sentence(run, capsys, flags: list[str], reason: str) -> None:  # type: ignore[no-untyped-def]
    status, _, out = run("--kind", "svd", "--device", "numpy", *flags)
    assert status == 1 and not out.exists()
    message = capsys.readouterr().err.strip()
    assert reason in message and "\n" not in message


def test_a_full_disk_is_seen_before_the_work(run, capsys, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(train_predictors.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    status, _, out = run("--kind", "svd", "--device", "numpy")
    assert status == 1 and not out.exists()
    assert "no room for another" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "reason"), [
    ("gqa-silu-f32", "every neuron is always active"), ("vocab-tiny-gpt-2", "supported: llama")])
def test_models_without_sparse_neurons_are_refused(tmp_path: Path, capsys, name: str, reason: str) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out.gguf"
    status = train_predictors.main([str(FIXTURES / f"{name}.gguf"), "--text", "unused", "--out", str(out), "--kind", "svd"])
    assert status == 1 and not out.exists()
    assert reason in capsys.readouterr().err
