"""What each process exports after a request, and that the figures agree with what the client saw."""

import unittest

import client
import cluster
import stubs
import suite

PROMPT, TOKENS, REQUESTS = "The king said to his daughter,", 50, 3


class MetricsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        with cluster.Cluster(gpu_worker=cluster.COLD) as running:
            cls.idle = running.metrics("gateway")
            cls.model = running.model()
            cls.streams = [client.generate(running, client.greedy(PROMPT, TOKENS)) for _ in range(REQUESTS)]
            cls.gateway = cluster.wait_until(lambda: cls.settled(running), "the gauges being at rest")
            cls.gpu_worker = running.metrics("gpu_worker")
            cls.cpu_worker = running.metrics("cpu_worker")

    @staticmethod
    def settled(running):
        scrape = running.metrics("gateway")
        return scrape if scrape.total("isotherm_num_requests_running") == 0 else None

    def check_histogram(self, metrics, name, count):
        self.assertEqual(count, metrics.total(f"{name}_count"), name)
        self.assertEqual(count, metrics.total(f"{name}_bucket", le="+Inf"), name)
        self.assertGreater(metrics.total(f"{name}_sum"), 0, name)

    def test_latencies_of_the_gateway(self):
        for name in ("time_to_first_token", "request_queue_time", "e2e_request_latency", "request_prefill_time",
                     "request_decode_time"):
            self.check_histogram(self.gateway, f"isotherm_{name}_seconds", REQUESTS)
        self.check_histogram(self.gateway, "isotherm_inter_token_latency_seconds", REQUESTS * (TOKENS - 1))
        total = self.gateway.total("isotherm_e2e_request_latency_seconds_sum")
        self.assertGreater(total, self.gateway.total("isotherm_time_to_first_token_seconds_sum"))
        self.assertGreater(total, self.gateway.total("isotherm_inter_token_latency_seconds_sum"))

    def test_counts_of_the_gateway(self):
        prompt_tokens = self.streams[0].complete.usage.prompt_tokens
        self.assertEqual(REQUESTS * prompt_tokens, self.gateway.total("isotherm_prompt_tokens_total"))
        self.assertEqual(REQUESTS * TOKENS, self.gateway.total("isotherm_generation_tokens_total"))
        self.assertEqual(REQUESTS, self.gateway.total("isotherm_request_success_total", finished_reason="length"))
        self.assertEqual(REQUESTS * TOKENS, self.gateway.total("isotherm_batch_size_count"))
        self.assertEqual(REQUESTS, self.gateway.total("isotherm_rpc_total", code="OK",
                                                      method="isotherm.v1.InferenceService/Generate"))
        self.assertEqual(0, self.gateway.total("isotherm_num_preemptions_total"))
        self.assertEqual(0, self.idle.total("isotherm_generation_tokens_total"))

    def test_gauges_of_the_gateway_at_rest(self):
        for name in ("isotherm_kv_cache_usage_ratio", "isotherm_num_requests_running", "isotherm_num_requests_waiting"):
            self.assertEqual([0], self.gateway.values(name), name)

    def test_neurons_of_the_gpu_worker(self):
        computed = self.gpu_worker.values("isotherm_neurons_computed_ratio")
        hot = self.gpu_worker.values("isotherm_neurons_hot_ratio")
        self.assertEqual(4, len(computed))  # groups of layers
        self.assertEqual(4, len(hot))
        for ratio in computed:
            self.assertTrue(0 < ratio < 0.5, ratio)
        for ratio in hot:
            self.assertTrue(0 < ratio <= 1, ratio)
        self.assertAlmostEqual(self.model.hot_share, self.gpu_worker.total("isotherm_hot_neurons_ratio"), places=5)
        self.assertLessEqual(self.gpu_worker.total("isotherm_neurons_active_total"),
                             self.gpu_worker.total("isotherm_neurons_computed_total"))
        self.assertEqual(REQUESTS * TOKENS, self.gpu_worker.total("isotherm_steps_total"))
        self.check_histogram(self.gpu_worker, "isotherm_step_seconds", REQUESTS * TOKENS)
        self.assertEqual(REQUESTS * TOKENS, self.gpu_worker.total("isotherm_logits_rows_total", transport="shm"))
        self.assertEqual(0, self.gpu_worker.total("isotherm_steps_ahead_total"))

    def test_the_plan_predicts_steps_of_one_row(self):
        single = self.gpu_worker.total("isotherm_single_row_step_seconds_count")
        self.assertEqual(REQUESTS * (TOKENS - 1), single)  # the first token comes of the prefill
        measured = self.gpu_worker.total("isotherm_single_row_step_seconds_sum") / single
        planned = self.gpu_worker.total("isotherm_plan_step_seconds")
        # A hundred times off would be another unit, not a slow machine.
        self.assertTrue(measured / 1000 < planned < measured * 10, f"planned {planned} s, measured {measured} s")

    def test_exchanges_of_both_workers(self):
        exchanges = sum(stream.complete.execution.exchanges for stream in self.streams)
        self.assertGreater(exchanges, 0)
        self.check_histogram(self.gpu_worker, "isotherm_exchange_seconds", exchanges)
        self.assertGreater(self.gpu_worker.total("isotherm_exchange_bytes_total"), exchanges * 64)
        waited = self.gpu_worker.total("isotherm_cpu_worker_wait_seconds_total")
        self.assertTrue(0 <= waited <= self.gpu_worker.total("isotherm_step_seconds_sum"), waited)
        self.assertEqual(exchanges, self.cpu_worker.total("isotherm_cpu_worker_exchanges_total"))
        self.assertEqual(sum(stream.complete.execution.cold_neurons_computed for stream in self.streams),
                         self.cpu_worker.total("isotherm_cpu_worker_neurons_computed_total"))
        self.check_histogram(self.cpu_worker, "isotherm_cpu_worker_exchange_compute_seconds", exchanges)
        self.assertGreater(self.cpu_worker.total("isotherm_cpu_worker_bundle_bytes"), 0)

    def test_memory_of_the_gpu_worker_keeps_to_the_budget(self):
        planned = self.gpu_worker.total("isotherm_device_memory_bytes")
        self.assertTrue(0 < planned <= 0.0292 * 2**30, planned)
        for purpose in self.gpu_worker.values("isotherm_device_memory_bytes"):
            self.assertGreaterEqual(purpose, 0)

    def test_every_service_serves(self):
        for metrics, services in ((self.gateway, ("isotherm.v1.InferenceService", "isotherm.v1.ModelService")),
                                  (self.gpu_worker, ("isotherm.worker.v1.ModelRunnerService",)),
                                  (self.cpu_worker, ("isotherm.worker.v1.NeuronService",))):
            for service in services:
                self.assertEqual([1], metrics.values("isotherm_serving", service=service), service)

    def test_complete_says_what_happened(self):
        for stream in self.streams:
            execution, timings = stream.complete.execution, stream.complete.timings
            self.assertEqual(stubs.inference.EXECUTION_MODE_PREDICTED, execution.mode)
            self.assertEqual(("shm", "sketch"), (execution.transport, execution.predictor))
            self.assertTrue(0 < execution.computed_share < 0.5)
            self.assertTrue(0 < execution.hot_share < 1)
            for duration in (timings.queue, timings.prefill, timings.decode, execution.exchange_latency):
                self.assertGreater(duration.ToNanoseconds(), 0)
            self.assertGreaterEqual(timings.cpu_worker_wait.ToNanoseconds(), 0)
            self.assertEqual(stream.complete.usage.completion_tokens, len(stream.tokens))


if __name__ == "__main__":
    suite.main()
