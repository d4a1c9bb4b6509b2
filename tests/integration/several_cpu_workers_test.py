"""Two CPU workers share the cold neurons: the same text as with one, also while one of them is killed or comes back."""

import concurrent.futures
import pathlib
import tempfile
import unittest

import client
import cluster
import process
import stubs
import suite
import tales

TOKENS = 200
WAITING = stubs.inference.GENERATE_PHASE_WAITING_FOR_WORKER
COLD = ("--predictor=gate", *cluster.COLD, "--vram-budget=0.0362", "--kv-tokens=2048")


def shares(running):
    scrape = running.metrics("gpu_worker")
    return [scrape.total("isotherm_exchange_worker_share_ratio", cpu_worker=running.address(each.name))
            for each in running.cpu_workers]


def await_shares(running, accept, what):
    return cluster.wait_until(lambda: (now := shares(running)) and accept(now) and now, what)


def stream_all(running, prompts, fault=lambda: None, after=40):
    """Streams all prompts at once; the first calls `fault` when it has so many tokens."""
    def one(number):
        struck = False

        def on_event(stream):
            nonlocal struck
            if number == 0 and not struck and len(stream.tokens) >= after:
                struck = True
                fault()

        return client.generate(running, client.greedy(prompts[number], TOKENS), on_event)

    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(one, range(len(prompts))))


class SeveralCpuWorkersTest(unittest.TestCase):
    prompts = tales.prompts(3)

    @classmethod
    def setUpClass(cls):
        with cluster.Cluster(gpu_worker=[*COLD, "--micro-batches=1"]) as running:
            cls.alone = [stream.tokens for stream in stream_all(running, cls.prompts)]

    def check_streams(self, streams):
        self.assertEqual(self.alone, [stream.tokens for stream in streams])
        for stream in streams:
            self.assertNotIn(WAITING, stream.phases)
            self.assertEqual(0, stream.complete.rebuilds)

    def test_a_killed_worker_is_replaced_and_comes_back(self):
        for transport in ("shm", "inline"):
            flag = f"--exchange-transport={transport}"
            with self.subTest(transport=transport), cluster.Cluster(
                    gpu_worker=[*COLD, "--cpu-worker-shares=3,1", "--micro-batches=2", flag], cpu_worker=[flag], cpu_workers=2) as running:
                both = lambda now: abs(now[0] - 0.75) < 1e-6 and abs(now[1] - 0.25) < 1e-6
                await_shares(running, both, "both workers sharing")
                self.check_streams(stream_all(running, self.prompts))
                metrics = running.metrics("gpu_worker")
                self.assertEqual([1], metrics.values("isotherm_exchange_transport", transport=transport))
                for worker in running.cpu_workers:
                    address = running.address(worker.name)
                    self.assertGreater(metrics.total("isotherm_exchange_worker_bytes_total", cpu_worker=address), 0)
                    self.assertGreater(metrics.total("isotherm_exchange_worker_seconds_count", cpu_worker=address), 0)
                for killed in running.cpu_workers:
                    self.check_streams(stream_all(running, self.prompts, killed.kill))
                    await_shares(running, lambda now: sorted(now) == [0, 1], "the other worker serving alone")
                    # It joins while others stream.
                    self.check_streams(stream_all(running, self.prompts, killed.start))
                    await_shares(running, both, "the killed worker having its share again")
                self.assertEqual(0, running.metrics("gpu_worker").total("isotherm_step_failures_total"))

    def test_without_any_worker_streams_wait(self):
        with cluster.Cluster(gpu_worker=COLD, cpu_workers=2) as running:
            await_shares(running, lambda now: min(now) > 0 and abs(sum(now) - 1) < 1e-6, "both workers sharing")

            def kill_both_and_restart_one():
                for each in running.cpu_workers:
                    each.kill()
                running.cpu_workers[1].start()

            streams = stream_all(running, self.prompts, kill_both_and_restart_one)
            self.assertEqual(self.alone, [stream.tokens for stream in streams])
            self.assertEqual([0, 1], shares(running))


class ModelFromGpuWorkerTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="isotherm-test-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def start_worker(self, source, log="log"):
        worker = process.Process("cpu_worker", [f"--model-from={source}", f"--model-dir={self.folder}/cache",
                                                f"--listen=unix:{self.folder}/cpu.sock", "--metrics-listen="],
                                 self.folder / log)
        worker.start()
        self.addCleanup(worker.stop)
        return worker

    def test_a_worker_without_a_copy_fetches_one(self):
        with cluster.Cluster(cpu_worker=None) as running:
            for log in ("first", "second"):  # the second uses the first one's copy
                worker = self.start_worker(running.address("gpu_worker"), log)
                cluster.wait_until(lambda: "of neurons ready" in worker.log() or not worker.running(), "the model")
                self.assertIsNone(worker.stop(), worker.log())
                copies = list((self.folder / "cache").glob("*/*"))
                self.assertEqual([suite.MODEL.name], [copy.name for copy in copies])
                self.assertEqual(suite.MODEL.read_bytes(), copies[0].read_bytes())

    def test_a_worker_that_waits_for_its_model_can_be_stopped(self):
        worker = self.start_worker(f"unix:{self.folder}/nobody.sock")
        cluster.wait_until(lambda: "waiting for the model from" in worker.log(), "the worker waiting")
        self.assertIsNone(worker.stop(), worker.log())


if __name__ == "__main__":
    suite.main()
