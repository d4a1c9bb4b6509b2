"""A file with low-rank predictors: one that keeps all that fires changes no text, one that is fitted costs little."""

import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import numpy

import client
import cluster
import perplexity_test
import stubs
import suite
import tales

sys.path.insert(0, str(suite.SOURCE / "tools/python"))
from isotherm_tools import gguf_container  # noqa: E402 - of this tree

PAIRS = {"isotherm.predictor.form": "linear", "isotherm.predictor.input": "ffn_input"}


def write_full_rank(out):
    """The demo model with a predictor that is the gate matrix: the identity, then the gate as it is in the file. Odd layers
    have a block of 32 ranks more, which do nothing."""
    model = gguf_container.GgufFile(suite.MODEL)
    tensors = []
    for layer in range(model.metadata["llama.block_count"]):
        ffn, hidden = model.tensors[f"blk.{layer}.ffn_gate.weight"].shape
        gate = model.raw(f"blk.{layer}.ffn_gate.weight").reshape(ffn, -1)
        more = 32 * (layer % 2)
        a = numpy.pad(numpy.eye(hidden, dtype=numpy.float32), ((0, more), (0, 0)))
        b = numpy.pad(gate, ((0, 0), (0, more * gate.shape[1] // hidden)))  # Q8_0 zeros are zero bytes
        tensors += [gguf_container.NewTensor(f"blk.{layer}.pred_a.weight", a.shape, gguf_container.F32, a),
                    gguf_container.NewTensor(f"blk.{layer}.pred_b.weight", (ffn, hidden + more), gguf_container.Q8_0, b)]
    model.write_copy(out, magic=gguf_container.GGUF, without_tensors=(), tensors=tensors, without_keys=(), pairs=PAIRS)


class FullRankTest(unittest.TestCase):
    prompts = tales.prompts(6)
    tokens = 40

    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="isotherm-test-")
        cls.model = pathlib.Path(cls.folder.name) / "full-rank.gguf"
        write_full_rank(cls.model)

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()

    def run_once(self, *flags, cpu_worker=None):
        """(predictor, mode, texts, log-probabilities of one of them)"""
        with cluster.Cluster(gpu_worker=[*cluster.COLD, "--vram-budget=0.0492", *flags], cpu_worker=cpu_worker,
                             model=self.model) as running:
            streams = [client.generate(running, client.greedy(prompt, self.tokens)) for prompt in self.prompts]
            scores = list(client.score(running, [1, *streams[0].tokens]).log_probabilities)
            execution = streams[0].complete.execution
            return running.model().predictor, execution, [stream.tokens for stream in streams], scores

    def test_it_says_exactly_what_exact_mode_says(self):
        predictor, execution, texts, scores = self.run_once()
        self.assertEqual("lowrank", predictor)  # the default of a file that has one
        self.assertEqual(stubs.inference.EXECUTION_MODE_PREDICTED, execution.mode)
        exact, exact_execution, exact_texts, exact_scores = self.run_once("--predictor=gate")
        self.assertEqual(("gate", stubs.inference.EXECUTION_MODE_EXACT), (exact, exact_execution.mode))
        self.assertEqual(exact_texts, texts)
        self.assertEqual(exact_scores, scores)
        self.assertAlmostEqual(exact_execution.computed_share, execution.computed_share, delta=1e-6)

    def test_it_says_so_with_cold_neurons_too(self):
        _, _, exact_texts, _ = self.run_once("--predictor=gate")
        _, execution, texts, _ = self.run_once("--vram-budget=0.0352", cpu_worker=[])
        self.assertGreater(execution.cold_neurons_computed, 0)
        self.assertEqual(exact_texts, texts)

    def test_a_higher_threshold_misses_some(self):
        _, exact, _, exact_scores = self.run_once("--predictor=gate")
        _, execution, _, scores = self.run_once("--predictor-threshold-shift=1")
        self.assertLess(execution.computed_share, 0.7 * exact.computed_share)
        self.assertNotEqual(exact_scores, scores)


@suite.slow
class FittedTest(unittest.TestCase):
    """isotherm-train-predictors, then perplexity through the real processes."""

    def fit(self, kind, *packages):
        python = suite.SOURCE / ".venv/bin/python"
        python = python if python.exists() else sys.executable
        imports = subprocess.run([python, "-c", f"import {', '.join(('gguf', 'sentencepiece', *packages))}"], capture_output=True)
        if imports.returncode != 0:
            self.skipTest(f"{python}: {imports.stderr.decode().splitlines()[-1]}")
        texts = [suite.test_data(f"tales/{name}.txt") for name in ("train", "valid")]
        folder = tempfile.TemporaryDirectory(prefix="isotherm-test-")
        self.addCleanup(folder.cleanup)
        out = pathlib.Path(folder.name) / "fitted.gguf"
        subprocess.run([python, "-m", "isotherm_tools.train_predictors", suite.MODEL, "--text", texts[0], "--valid", texts[1],
                        "--out", out, "--kind", kind, "--rank", "auto", "--tokens", "60000", "--held-out-tokens", "10000",
                        "--epochs", "3"], check=True, env=os.environ | {"PYTHONPATH": str(suite.SOURCE / "tools/python")})
        return out

    def check(self, model):
        exact = self.measure("gate", suite.MODEL)
        predicted = self.measure("lowrank", model)
        recall, kept = predicted[1] / exact[1], predicted[2] / exact[1]
        print(f"\nrecall {100 * recall:.2f} %, {kept:.2f} computed for one that fires, perplexity {predicted[0]:.4f}, "
              f"exact {exact[0]:.4f}", flush=True)
        self.assertGreater(recall, 0.97)
        self.assertLess(kept, 2)
        self.assertLess(predicted[0] / exact[0] - 1, 0.003)

    def measure(self, predictor, model):
        """(perplexity, firing neurons computed, neurons computed)"""
        with cluster.Cluster(gpu_worker=[*perplexity_test.COLD, "--vram-budget=0.0352", f"--predictor={predictor}"],
                             model=model) as running:
            windows = tales.validation_windows(running)[:40]
            perplexity = perplexity_test.perplexity_of(perplexity_test.score_all(running, windows))
            metrics = running.metrics("gpu_worker")
            return perplexity, metrics.total("isotherm_neurons_active_total"), metrics.total("isotherm_neurons_computed_total")

    def test_by_decomposition(self):
        self.check(self.fit("svd"))

    def test_by_training(self):
        self.check(self.fit("trained", "torch"))


if __name__ == "__main__":
    suite.main()
