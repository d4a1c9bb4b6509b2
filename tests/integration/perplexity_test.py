"""Perplexity of tales/valid.txt through Score: exact is transformers', predicted next to it, a bad predictor far from it."""

import concurrent.futures
import math
import time
import unittest

import client
import cluster
import stubs
import suite
import tales

# Requests at once, so that the gateway never waits for this client.
AT_ONCE = 4
# With predictor `gate` a third of the neurons are hot, with `sketch` half.
COLD = ("--threads=2", "--vram-budget=0.0322", "--kv-tokens=2048", "--max-prefill-rows=128", "--max-decode-rows=8")


def score_all(running, windows):
    """The responses to all windows, in their order."""
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda window: client.score(running, window), windows))


def perplexity_of(responses):
    values = [value for response in responses for value in response.log_probabilities]
    return math.exp(-math.fsum(values) / len(values))


class PerplexityTest(unittest.TestCase):
    windows = 40

    @classmethod
    def setUpClass(cls):
        suite.test_data("tales/valid.txt")
        cls.exact = cls.measure("--predictor=gate")

    @classmethod
    def measure(cls, *flags):
        """(perplexity, execution statistics of the last window) of the first windows under these flags."""
        with cluster.Cluster(gpu_worker=[*COLD, *flags]) as running:
            windows = tales.validation_windows(running)[:cls.windows]
            start = time.monotonic()
            responses = score_all(running, windows)
            seconds = time.monotonic() - start
        scored = sum(len(response.log_probabilities) for response in responses)
        execution = responses[-1].execution
        perplexity = perplexity_of(responses)
        print(f"\n{' '.join(flags)}: perplexity {perplexity:.4f} over {scored} tokens, {100 * execution.computed_share:.2f} % "
              f"of the neurons computed, {100 * execution.hot_share:.1f} % of them hot, {scored / seconds:.0f} tokens/s",
              flush=True)
        assert execution.cold_neurons_computed > 0
        return perplexity, execution

    def reference(self):
        reference = tales.reference()
        windows = reference["perplexity"]["windows"]
        if self.windows == windows:
            return reference["perplexity"]["perplexity"]
        first = reference["first_windows"][:self.windows]
        return math.exp(math.fsum(first) / (len(first) * (reference["context"] - 1)))

    def test_exact_mode_is_within_a_thousandth_of_transformers(self):
        perplexity, execution = self.exact
        print(f"\ntransformers: {self.reference():.4f}", flush=True)
        self.assertEqual(stubs.inference.EXECUTION_MODE_EXACT, execution.mode)
        self.assertLess(abs(perplexity / self.reference() - 1), 0.001)

    def test_the_sketch_costs_little(self):
        perplexity, execution = self.measure("--predictor=sketch")
        self.assertEqual(stubs.inference.EXECUTION_MODE_PREDICTED, execution.mode)
        self.assertLess(perplexity / self.exact[0] - 1, 0.0015)
        self.assertLess(execution.computed_share, 0.2)

    def test_a_bad_predictor_is_seen(self):
        perplexity, execution = self.measure("--predictor=sketch", "--predictor-threshold-shift=1")
        self.assertGreater(perplexity / self.exact[0] - 1, 0.02)
        self.assertLess(execution.computed_share, self.exact[1].computed_share)


@suite.slow
class WholePerplexityTest(PerplexityTest):
    windows = tales.reference()["perplexity"]["windows"]


if __name__ == "__main__":
    suite.main()
