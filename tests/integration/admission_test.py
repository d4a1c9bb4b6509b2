"""Deadlines, cancellation and a full queue: what ends, ends at once and leaves nothing held."""

import time
import unittest

import grpc

import client
import cluster
import stubs
import suite

MOST_TOKENS = 500


def first_chunk(call):
    """Reads until tokens come."""
    for response in call:
        if response.HasField("chunk"):
            return


class AdmissionTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        # One sequence at a time, one in the queue.
        cls.running = cls.enterClassContext(cluster.Cluster(
            gateway=["--max-queue=1"], gpu_worker=[*cluster.COLD, "--max-decode-rows=1"]))

    def start(self, tokens=MOST_TOKENS, timeout=suite.PATIENCE):
        return self.running.inference.Generate(client.greedy("Once upon a time", tokens), timeout=timeout)

    def metric(self, name, **labels):
        return self.running.metrics("gateway").total(name, **labels)

    def wait_for_nothing_held(self):
        cluster.wait_until(lambda: self.metric("isotherm_kv_cache_usage_ratio") == 0, "the KV cache being empty")
        self.assertEqual(0, self.metric("isotherm_num_requests_running"))
        self.assertEqual(0, self.metric("isotherm_num_requests_waiting"))

    def generated(self):
        return self.metric("isotherm_generation_tokens_total")

    def test_a_dropped_stream_frees_its_cache_and_stops_its_work(self):
        before = self.generated()
        call = self.start()
        first_chunk(call)
        self.assertGreater(self.metric("isotherm_kv_cache_usage_ratio"), 0)
        call.cancel()
        self.wait_for_nothing_held()
        self.assertLess(self.generated() - before, MOST_TOKENS)

    def test_a_deadline_ends_a_running_stream_and_its_work(self):
        # A time in which some tokens come, but not all.
        start = time.monotonic()
        for _ in self.start(tokens=50):
            pass
        timeout = time.monotonic() - start
        before = self.generated()
        with self.assertRaises(grpc.RpcError) as ended:
            for _ in self.start(timeout=timeout):
                pass
        self.assertEqual(grpc.StatusCode.DEADLINE_EXCEEDED, ended.exception.code())
        self.wait_for_nothing_held()
        self.assertLess(self.generated() - before, MOST_TOKENS)

    def test_a_full_queue_says_when_to_come_again(self):
        running = self.start()
        first_chunk(running)
        queued = self.start(tokens=1)
        next(queued)  # the QUEUED phase
        with self.assertRaises(grpc.RpcError) as refused:
            for _ in self.start(tokens=1):
                pass
        error = refused.exception
        running.cancel()
        self.assertEqual(grpc.StatusCode.RESOURCE_EXHAUSTED, error.code())
        self.assertIn("queue", error.details())
        self.assertGreater(self.retry_delay(error).ToMilliseconds(), 0)
        self.assertIsNotNone(client.collect(queued).complete)
        self.wait_for_nothing_held()

    @staticmethod
    def retry_delay(error):
        (details,) = [value for key, value in error.trailing_metadata() if key == "grpc-status-details-bin"]
        (retry,) = [detail for detail in stubs.error_details.Status.FromString(details).details
                    if detail.type_url.endswith("google.rpc.RetryInfo")]
        return stubs.error_details.RetryInfo.FromString(retry.value).retry_delay


if __name__ == "__main__":
    suite.main()
