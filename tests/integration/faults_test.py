"""Workers and gateway killed in mid-stream: streams pause and go on with the same text, or end with the cause."""

import concurrent.futures
import threading
import time
import unittest

import grpc

import client
import cluster
import stubs
import suite
import tales

TOKENS = 300
WAITING = stubs.inference.GENERATE_PHASE_WAITING_FOR_WORKER
# `gate` is exact: a rebuilt KV cache comes from prefill, whose sums have another order than decode's.
COLD = ("--predictor=gate", *cluster.COLD, "--vram-budget=0.0362", "--kv-tokens=2048")


def generate_with_fault(running, prompts, fault, on_waiting=lambda: None, after=10):
    """Streams all prompts at once. Calls `fault` once, as soon as each has `after` tokens, and `on_waiting` once, as soon as one
    says that it waits for a worker."""
    begun = threading.Barrier(len(prompts), action=fault, timeout=suite.PATIENCE)
    first_to_wait = threading.Semaphore(1)

    def one(prompt):
        struck = False

        def on_event(stream):
            nonlocal struck
            if not struck and len(stream.tokens) >= after:
                struck = True
                begun.wait()
            if WAITING in stream.phases and first_to_wait.acquire(blocking=False):
                on_waiting()

        return client.generate(running, client.greedy(prompt, TOKENS), on_event)

    with concurrent.futures.ThreadPoolExecutor(len(prompts)) as pool:
        return list(pool.map(one, prompts))


class RestartTest(unittest.TestCase):
    prompts = tales.prompts(3)

    def check_same_streams(self, expected, actual):
        for want, got in zip(expected, actual, strict=True):
            self.assertEqual(want.tokens, got.tokens)
            self.assertEqual(want.text, got.text)
            self.assertEqual(TOKENS, got.complete.usage.completion_tokens)

    def test_streams_survive_both_workers(self):
        with cluster.Cluster(gpu_worker=COLD) as running:
            undisturbed = generate_with_fault(running, self.prompts, lambda: None)
            for worker in (running.cpu_worker, running.gpu_worker):
                with self.subTest(killed=worker.name):
                    pids = {each.name: each.pid for each in running.processes}
                    start = time.monotonic()
                    disturbed = generate_with_fault(running, self.prompts, worker.kill, on_waiting=worker.start)
                    seconds = time.monotonic() - start
                    print(f"\n{worker.name} killed and restarted: streams over after {seconds:.2f} s", flush=True)
                    self.check_same_streams(undisturbed, disturbed)
                    self.assertTrue(any(WAITING in stream.phases for stream in disturbed))
                    # Only the GPU worker holds state that must be built again.
                    rebuilds = 1 if worker is running.gpu_worker else 0
                    self.assertEqual([rebuilds] * len(disturbed), [stream.complete.rebuilds for stream in disturbed])
                    for each in running.processes:
                        if each is not worker:
                            self.assertEqual(pids[each.name], each.pid)
                            self.assertTrue(each.running())

    def test_a_killed_gateway_leaves_the_workers_serving(self):
        with cluster.Cluster(gpu_worker=COLD) as running:
            undisturbed = client.generate(running, client.greedy(self.prompts[0], TOKENS))
            with self.assertRaises(grpc.RpcError) as lost:
                generate_with_fault(running, self.prompts[:1], running.gateway.kill)
            self.assertEqual(grpc.StatusCode.UNAVAILABLE, lost.exception.code())
            self.assertTrue(running.cpu_worker.running() and running.gpu_worker.running())
            running.gateway.start()
            running.connect()
            running.wait_ready()
            again = client.generate(running, client.greedy(self.prompts[0], TOKENS))
            self.check_same_streams([undisturbed], [again])


class DeviceFaultTest(unittest.TestCase):
    """The device fails in mid-stream: the worker ends by itself, saying why, and its next life takes the streams over."""

    prompts = tales.prompts(2)

    def check(self, fault, sentence):
        flag = f"--inject-device-fault={fault}"
        with cluster.Cluster(gpu_worker=(*COLD, flag)) as running:
            worker = running.gpu_worker

            def restart():
                self.assertEqual(1, worker.wait())
                worker.flags.remove(flag)
                worker.start()

            disturbed = generate_with_fault(running, self.prompts, lambda: None, on_waiting=restart)
            self.assertRegex(worker.log(), f"ModelRunnerService is not serving: {sentence}")
            self.assertRegex(worker.log(), f"\nerror: {sentence}")
            self.assertEqual([1] * len(disturbed), [stream.complete.rebuilds for stream in disturbed])
            undisturbed = generate_with_fault(running, self.prompts, lambda: None)
            self.assertEqual([stream.text for stream in undisturbed], [stream.text for stream in disturbed])
            self.assertEqual([stream.tokens for stream in undisturbed], [stream.tokens for stream in disturbed])

    def test_a_lost_device(self):
        self.check("lost:50", f"device {cluster.DEVICE}.* is lost: .+ Start the worker again: open streams then go on")

    def test_out_of_memory_in_a_step(self):
        self.check("memory:50", rf"device {cluster.DEVICE}.* ran out of memory in a step: cannot allocate \d+ bytes .+ Start the worker again")


class GraceTest(unittest.TestCase):
    grace = 2

    def test_without_a_worker_streams_end_after_the_grace(self):
        prompt = tales.prompts(1)[0]
        with cluster.Cluster(gateway=[f"--worker-grace={self.grace}s"], gpu_worker=COLD) as running:
            undisturbed = client.generate(running, client.greedy(prompt, TOKENS))
            for worker in (running.cpu_worker, running.gpu_worker):
                with self.subTest(killed=worker.name):
                    killed_at = []

                    def kill():
                        worker.kill()
                        killed_at.append(time.monotonic())

                    with self.assertRaises(grpc.RpcError) as ended:
                        generate_with_fault(running, [prompt], kill)
                    waited = time.monotonic() - killed_at[0]
                    self.assertEqual(grpc.StatusCode.UNAVAILABLE, ended.exception.code())
                    print(f"\n{worker.name} killed: UNAVAILABLE after {waited:.2f} s: {ended.exception.details()}", flush=True)
                    self.assertRegex(ended.exception.details(), "lost for more than 2s: .+")
                    self.assertGreater(waited, 0.5 * self.grace)
                    self.check_unavailable(running, worker)
                    worker.start()
                    running.wait_ready()
                    again = client.generate(running, client.greedy(prompt, TOKENS))
                    self.assertEqual(undisturbed.tokens, again.tokens)

    def check_unavailable(self, running, worker):
        """The others live on, and the gateway says why it does not serve."""
        for each in running.processes:
            self.assertEqual(each is not worker, each.running(), each.name)
        model = running.model()
        self.assertEqual(stubs.model.MODEL_STATE_UNAVAILABLE, model.state)
        self.assertNotEqual("", model.state_cause)
        serving = running.metrics("gateway").values("isotherm_serving", service="isotherm.v1.InferenceService")
        self.assertEqual([0], serving)
        with self.assertRaises(grpc.RpcError) as refused:
            client.generate(running, client.greedy("Too early", 1))
        self.assertEqual(grpc.StatusCode.UNAVAILABLE, refused.exception.code())


if __name__ == "__main__":
    suite.main()
