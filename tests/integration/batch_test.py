"""Who shares a batch changes no text, and sharing pays."""

import time
import unittest

import client
import cluster
import stubs
import suite
import tales

STREAMS = 16
# Room for all of them at once, and half of the neurons.
HALF_COLD = ("--predictor=sketch", "--threads=2", "--vram-budget=0.0687", "--kv-tokens=8192", "--max-prefill-rows=64",
             f"--max-decode-rows={STREAMS}")


class BatchTest(unittest.TestCase):
    tokens = 60
    # On a busy machine, with sanitizers and so few tokens the figure is for reading only.
    least_gain = 0

    def test_sixteen_prompts_at_once_are_as_alone_in_predicted_mode(self):
        prompts = tales.prompts(STREAMS)
        # Prompts of different lengths, so that prefill and decode rows meet in one step.
        prompts = [" ".join([prompt] * (1 + i % 3)) for i, prompt in enumerate(prompts)]
        requests = [client.greedy(prompt, self.tokens) for prompt in prompts]
        with cluster.Cluster(gpu_worker=HALF_COLD) as running:
            self.assertLess(running.model().hot_share, 0.7)
            client.generate_all(running, requests[:2], at_once=2)  # warm-up

            start = time.monotonic()
            alone = client.generate_all(running, requests, at_once=1)
            alone_seconds = time.monotonic() - start
            start = time.monotonic()
            together = client.generate_all(running, requests, at_once=STREAMS)
            together_seconds = time.monotonic() - start

            largest_batch = running.metrics("gateway").values("isotherm_batch_size_bucket", le="8")
            self.assertLess(largest_batch[0], running.metrics("gateway").total("isotherm_batch_size_count"),
                            "no step had more than 8 sequences")
        for prompt, one, many in zip(prompts, alone, together, strict=True):
            with self.subTest(prompt=prompt):
                self.assertEqual(one.tokens, many.tokens)
                self.assertEqual(one.text, many.text)
                self.assertEqual(stubs.inference.EXECUTION_MODE_PREDICTED, many.complete.execution.mode)
                self.assertGreater(many.complete.execution.cold_neurons_computed, 0)
        total = STREAMS * self.tokens
        print(f"\n{total} tokens: one stream {total / alone_seconds:.0f} tokens/s, {STREAMS} streams "
              f"{total / together_seconds:.0f} tokens/s", flush=True)
        self.assertGreater(alone_seconds / together_seconds, self.least_gain)


@suite.slow
class BatchGainTest(BatchTest):
    tokens = 400
    least_gain = 1.2


if __name__ == "__main__":
    suite.main()
