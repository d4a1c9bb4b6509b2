"""PredictorService from outside: a predictor in Python is as good as the one in the GPU worker, and may die."""

import concurrent.futures
import pathlib
import subprocess
import sys
import tempfile
import unittest

import grpc

HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "integration"))
import client
import cluster
import process
import stubs
import suite
import tales

TOKENS = 60
EXACT, PREDICTED = stubs.inference.EXECUTION_MODE_EXACT, stubs.inference.EXECUTION_MODE_PREDICTED


def serve_model(predictor):
    return cluster.Cluster(gpu_worker=[*cluster.COLD, f"--predictor={predictor}"])


class PredictorProcess:
    """predictor_server.py at `address`."""

    def __init__(self, address):
        self._command = [sys.executable, "-B", str(HERE / "predictor_server.py"), str(suite.MODEL), address]
        self._address = address
        self.start()

    def start(self):
        self._process = subprocess.Popen(self._command)
        with grpc.insecure_channel(self._address, [("grpc.initial_reconnect_backoff_ms", 50)]) as channel:
            stub = stubs.predictor_grpc.PredictorServiceStub(channel)
            stub.GetPredictor(stubs.predictor.GetPredictorRequest(), wait_for_ready=True, timeout=suite.PATIENCE)

    def kill(self):
        self._process.kill()
        self._process.wait()


class PredictorProcessTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.prompts = tales.prompts(4)
        with serve_model("gate") as running:
            cls.expected = cls.streams(running)

    @classmethod
    def streams(cls, running):
        return [client.generate(running, client.greedy(prompt, TOKENS)) for prompt in cls.prompts]

    def setUp(self):
        folder = self.enterContext(tempfile.TemporaryDirectory(prefix="isotherm-test-"))
        self.address = f"unix:{folder}/predictor.sock"
        self.predictor = PredictorProcess(self.address)
        self.addCleanup(lambda: self.predictor.kill())

    def test_a_python_predictor_gives_the_same_tokens(self):
        with serve_model(self.address) as running:
            for want, got in zip(self.expected, self.streams(running), strict=True):
                self.assertEqual(want.tokens, got.tokens)
                execution = got.complete.execution
                self.assertEqual((EXACT, "remote:numpy"), (execution.mode, execution.predictor))
                self.assertLess(execution.computed_share, 0.2)
                self.assertGreater(execution.cold_neurons_computed, 0)
            metrics = running.metrics("gpu_worker")
            self.assertEqual(0, metrics.total("isotherm_remote_predictor_failures_total"))
            self.assertGreater(metrics.total("isotherm_remote_predictor_seconds_count"), 0)

    def test_a_lost_predictor_is_replaced_by_computing_all(self):
        with serve_model(self.address) as running:
            request = client.greedy(self.prompts[0], TOKENS)
            killed = []

            def kill_once(stream):
                if not killed and len(stream.tokens) >= 10:
                    killed.append(len(stream.tokens))
                    self.predictor.kill()

            stream = client.generate(running, request, kill_once)
            self.assertTrue(killed)
            self.check_lost(running, stream)
            self.check_lost(running, client.generate(running, request))

            self.predictor.start()
            back = cluster.wait_until(lambda: self.with_predictor(running, request), "the predictor being used again")
            self.assertEqual(self.expected[0].tokens, back.tokens)

    def check_lost(self, running, stream):
        execution = stream.complete.execution
        self.assertEqual(self.expected[0].tokens, stream.tokens)
        self.assertEqual((EXACT, "all (predictor lost)"), (execution.mode, execution.predictor))
        self.assertGreater(execution.computed_share, self.expected[0].complete.execution.computed_share)
        self.assertGreater(running.metrics("gpu_worker").total("isotherm_remote_predictor_failures_total"), 0)

    @staticmethod
    def with_predictor(running, request):
        stream = client.generate(running, request)
        return stream if stream.complete.execution.predictor == "remote:numpy" else None


class Answering(stubs.predictor_grpc.PredictorServiceServicer):
    """Gives the same masks whatever it is asked."""

    def __init__(self, exact, masks):
        self._exact = exact
        self._masks = masks

    def GetPredictor(self, request, context):
        return stubs.predictor.GetPredictorResponse(name="odd", exact=self._exact)

    def Predict(self, requests, context):
        for request in requests:
            yield stubs.predictor.PredictResponse(masks=self._masks(request))


class OddPredictorTest(unittest.TestCase):
    def generate(self, exact, masks):
        with tempfile.TemporaryDirectory(prefix="isotherm-test-") as folder:
            server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
            stubs.predictor_grpc.add_PredictorServiceServicer_to_server(Answering(exact, masks), server)
            address = f"unix:{folder}/predictor.sock"
            server.add_insecure_port(address)
            server.start()
            try:
                with serve_model(address) as running:
                    self.words = (running.model().ffn_size + 63) // 64
                    return client.generate(running, client.greedy("Once upon a time", TOKENS)).complete.execution
            finally:
                server.stop(None).wait()

    def test_masks_of_a_wrong_size_are_not_believed(self):
        for size in (0, 7, 1 << 20):
            with self.subTest(size=size):
                execution = self.generate(True, lambda request: b"\xff" * size)
                self.assertEqual((EXACT, "all (predictor lost)"), (execution.mode, execution.predictor))
                self.assertGreater(execution.computed_share, 0.99)

    def test_a_predictor_that_is_not_exact_is_labelled_so(self):
        execution = self.generate(False, lambda request: bytes(8 * self.words * request.rows))
        self.assertEqual((PREDICTED, "remote:odd"), (execution.mode, execution.predictor))
        self.assertEqual(0, execution.computed_share)

    def test_without_a_predictor_at_its_address_the_worker_says_so(self):
        with tempfile.TemporaryDirectory(prefix="isotherm-test-") as folder:
            result = process.run("gpu_worker", f"--model={suite.MODEL}", f"--listen=unix:{folder}/worker.sock",
                                 "--metrics-listen=", f"--predictor=unix:{folder}/none.sock")
        self.assertEqual(1, result.returncode)
        self.assertIn(f"predictor at unix:{folder}/none.sock", result.stderr.strip().splitlines()[-1])


if __name__ == "__main__":
    suite.main()
