"""Synthetic models fire as often as asked, in every type, and their stored predictor is exact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isotherm_tools import gguf_llama as gl
from isotherm_tools import llama_numpy
from isotherm_tools.synthesize import Recipe, Synthesizer, firing_rates, synthetic_vocabulary

SHAPE = gl.LlamaShape(layers=2, hidden=256, ffn=512, heads=4, kv_heads=2, vocab=600, context=128)


def observe(path: Path, seed: int) -> tuple[list[np.ndarray], np.ndarray, dict[str, np.ndarray], dict[str, object]]:
    """Firing rates [ffn] a layer over fresh tokens by an independent forward pass, its logits, the tensors, the metadata."""
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
