"""How the processes start and end: exit codes, and the last line on standard error as the reason."""

import pathlib
import re
import socket
import tempfile
import time
import unittest

import grpc

import client
import cluster
import process
import raw_http2
import suite

GENERATE = "/isotherm.v1.InferenceService/Generate"
# The default of --drain-timeout.
DRAIN_SECONDS = 30
SERVERS = ("cpu_worker", "gpu_worker", "gateway")


def last_line(result):
    lines = result.stderr.strip().splitlines()
    return lines[-1] if lines else ""


class BadStartTest(unittest.TestCase):
    def run_server(self, binary, *flags):
        return process.run(binary, "--metrics-listen=", *flags)

    def test_a_wrong_flag_is_a_usage_error(self):
        for binary in SERVERS:
            for flag in ("--no-such-flag=1", f"--listen={'' if binary == 'gateway' else 'x'}", "--model="):
                with self.subTest(binary=binary, flag=flag):
                    result = self.run_server(binary, flag)
                    self.assertIn(result.returncode, (1, 2) if flag == "--listen=x" else (2,), result.stderr)
                    self.assertNotEqual("", last_line(result))
        for flag in ("--devices=0,0", "--devices=x", "--inject-device-fault=lost:0"):
            self.assertEqual(2, self.run_server("gpu_worker", f"--model={suite.MODEL}", flag).returncode, flag)
        self.assertEqual(2, process.run("isotherm", "no-such-command").returncode)
        self.assertEqual(2, process.run("isotherm", "generate", "--no-such-flag").returncode)

    def test_help_and_version_are_answers(self):
        for binary in (*SERVERS, "isotherm"):
            result = process.run(binary, "--help")
            self.assertEqual((0, ""), (result.returncode, result.stderr))
            self.assertIn("Usage:", result.stdout)
        for binary in SERVERS:
            self.assertRegex(process.run(binary, "--version").stdout, rf"{binary} \d+\.\d+")

    def test_a_missing_model_is_named(self):
        with tempfile.TemporaryDirectory() as folder:
            for binary in SERVERS:
                with self.subTest(binary=binary):
                    result = self.run_server(binary, f"--model={folder}/absent.gguf", f"--listen=unix:{folder}/socket")
                    self.assertEqual(1, result.returncode, result.stderr)
                    self.assertIn("absent.gguf", last_line(result))

    def test_a_port_taken_is_named(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = str(taken.getsockname()[1])
            with tempfile.TemporaryDirectory() as folder:
                for binary in SERVERS:
                    for flags in ([f"--listen=127.0.0.1:{port}", "--metrics-listen="],
                                  [f"--listen=unix:{folder}/socket", f"--metrics-listen=127.0.0.1:{port}"]):
                        with self.subTest(binary=binary, flags=flags):
                            result = process.run(binary, f"--model={suite.MODEL}", *flags)
                            self.assertEqual(1, result.returncode, result.stderr)
                            self.assertIn(port, last_line(result))

    def test_a_plan_alone_is_printed_and_checked(self):
        flags = (f"--model={suite.MODEL}", "--threads=2", "--max-prefill-rows=128", "--plan-only")
        all_hot = self.run_server("gpu_worker", *flags)
        self.assertEqual(0, all_hot.returncode, all_hot.stderr)
        self.assertIn("100.0 % of neurons hot", all_hot.stdout)
        some = self.run_server("gpu_worker", *flags, "--kv-tokens=2048", "--vram-budget=0.036")
        self.assertEqual(0, some.returncode, some.stderr)
        share = re.search(r"([\d.]+) % of neurons hot", some.stdout)
        self.assertTrue(share and 0 < float(share[1]) < 100, some.stdout)
        none = self.run_server("gpu_worker", *flags, "--vram-budget=0.001")
        self.assertEqual((1, ""), (none.returncode, none.stdout))
        self.assertIn("GiB", last_line(none))

    def test_a_budget_too_small_names_the_least_that_does(self):
        # Different sizes, so that rounding would show in one of them.
        for tokens in (1024, 1072, 1120, 1168):
            flags = ("--threads=2", "--max-prefill-rows=128", "--max-decode-rows=8", f"--kv-tokens={tokens}")
            with self.subTest(flags=flags), tempfile.TemporaryDirectory() as folder:
                result = self.run_server("gpu_worker", f"--model={suite.MODEL}", f"--listen=unix:{folder}/socket", *flags,
                                         "--vram-budget=0.001")
                self.assertEqual(1, result.returncode, result.stderr)
                least = re.search(r"need (\d+\.\d+) GiB", last_line(result))
                self.assertIsNotNone(least, last_line(result))
                with cluster.Cluster(gpu_worker=[*flags, f"--vram-budget={least.group(1)}"]) as running:
                    self.assertLess(running.model().hot_share, 0.1)


class DoctorTest(unittest.TestCase):
    def test_ports_and_shared_memory_are_looked_at(self):
        with socket.socket() as taken, tempfile.TemporaryDirectory(dir="/dev/shm") as shared:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            result = process.run("isotherm", "doctor", f"--ports={port}", f"--shm-directory={shared}")
            self.assertRegex(result.stdout, rf"note  port {port} .*in use")
        result = process.run("isotherm", "doctor", "--ports=ssh,65536", f"--shm-directory={shared}")
        self.assertEqual(1, result.returncode)
        self.assertEqual(3, result.stdout.count("BAD "), result.stdout)
        self.assertIn("3 problems", last_line(result))


class EndTest(unittest.TestCase):
    def test_the_gateway_drains_a_running_stream(self):
        with cluster.Cluster(gpu_worker=cluster.COLD) as running:
            request = client.greedy("Once upon a time", 400)
            undisturbed = client.generate(running, request)
            told = []

            def terminate_once(stream):
                if not told and len(stream.tokens) >= 20:
                    told.append(len(stream.tokens))
                    running.gateway.terminate()

            stream = client.generate(running, request, terminate_once)
            self.assertTrue(told)
            self.assertEqual(undisturbed.tokens, stream.tokens)
            self.assertEqual(0, running.gateway.wait())

    def drain_unread(self, running, tokens, window):
        """The connection of a client that reads nothing, to a gateway that was told to end while its stream runs."""
        request = client.greedy("Once upon a time", tokens).SerializeToString()
        connection = raw_http2.Connection(running.address("gateway").removeprefix("unix:"),
                                          raw_http2.call(GENERATE, request, window))
        self.addCleanup(connection.close)
        cluster.wait_until(lambda: running.metrics("gateway").total("isotherm_generation_tokens_total"), "the first token")
        running.gateway.terminate()
        cluster.wait_until(lambda: "draining: 1 calls" in running.gateway.log(), "the drain")
        return connection

    def test_a_slow_reader_gets_the_end_of_its_stream(self):
        with cluster.Cluster(gpu_worker=cluster.COLD) as running:
            connection = self.drain_unread(running, tokens=50, window=64)
            connection.send(raw_http2.more_window(1 << 20, stream=1))
            cluster.wait_until(lambda: "Generate: OK" in running.gateway.log(), "the end of the stream")
            time.sleep(0.5)
            self.assertTrue(connection.send(raw_http2.frame(raw_http2.PING, bytes(8))), "hung up on who had not read")
            self.assertIn(b"grpc-status", connection.received(1))
            self.assertEqual(0, running.gateway.wait())

    def test_who_does_not_read_at_all_is_left_when_time_is_up(self):
        with cluster.Cluster(gateway=["--drain-timeout=1s"], gpu_worker=cluster.COLD) as running:
            # More chunks than a socket holds.
            self.drain_unread(running, tokens=480, window=1 << 20)
            told_at = time.monotonic()
            self.assertEqual(0, running.gateway.wait())
            self.assertLess(time.monotonic() - told_at, DRAIN_SECONDS / 2)
            self.assertIn("Generate: CANCELLED", running.gateway.log())

    def test_a_worker_told_to_end_under_a_stream_may_come_back(self):
        with cluster.Cluster(gpu_worker=cluster.COLD) as running:
            for worker in (running.cpu_worker, running.gpu_worker):
                with self.subTest(worker=worker.name):
                    told = []

                    def restart(stream):
                        if not told and len(stream.tokens) >= 20:
                            told.append(True)
                            told_at = time.monotonic()
                            worker.terminate()
                            self.assertEqual(0, worker.wait(), worker.log())
                            self.assertLess(time.monotonic() - told_at, DRAIN_SECONDS / 2)
                            worker.start()

                    stream = client.generate(running, client.greedy("Once upon a time", 200), restart)
                    self.assertEqual(200, len(stream.tokens))

    def test_a_second_signal_cancels_what_runs(self):
        with cluster.Cluster(gpu_worker=cluster.COLD) as running:
            tokens = 450
            call = running.inference.Generate(client.greedy("Once upon a time", tokens), timeout=suite.PATIENCE)
            next(call)
            running.gateway.terminate()
            cluster.wait_until(lambda: "draining" in running.gateway.log(), "the first signal being seen")
            running.gateway.terminate()
            came = 0
            with self.assertRaises(grpc.RpcError):
                for response in call:
                    came += len(response.chunk.tokens)
            self.assertLess(came, tokens)
            self.assertEqual(0, running.gateway.wait())


class CommandLineClientTest(unittest.TestCase):
    def test_generate_streams_text_and_reports(self):
        with cluster.Cluster(gpu_worker=cluster.COLD) as running:
            expected = client.generate(running, client.greedy("Once upon a time", 20, ignore_eos=False))
            result = process.run("isotherm", "generate", f"--address={running.address('gateway')}", "--temperature=0",
                                 "--max-tokens=20", "--require-cold", "Once upon a time")
            self.assertEqual(0, result.returncode, result.stderr)
            self.assertIn(expected.text, result.stdout)
            for word in ("prefill", "decode", "neurons", "mode", "exchange", "shm"):
                self.assertIn(word, result.stderr)

    def test_text_the_gateway_cannot_take_is_refused_with_the_reason(self):
        with cluster.Cluster(gpu_worker=cluster.COLD) as running, tempfile.TemporaryDirectory() as folder:
            address = running.address("gateway")
            for command in ("generate", "tokenize", "score"):
                result = process.run("isotherm", command, f"--address={address}", "not \udcff UTF-8")
                self.assertEqual((1, "error: text: is not valid UTF-8"), (result.returncode, result.stderr.strip()))
            long_text = pathlib.Path(folder) / "long.txt"
            long_text.write_text("Once upon a time. " * 300_000, encoding="utf-8")
            result = process.run("isotherm", "perplexity", f"--server={address}", f"--text={long_text}")
            self.assertEqual(1, result.returncode)
            self.assertIn("--max-message-mib", last_line(result))

    def test_without_a_gateway_it_fails_with_the_reason(self):
        with tempfile.TemporaryDirectory() as folder:
            result = process.run("isotherm", "generate", f"--address=unix:{folder}/none", "--wait=100ms", "Hello")
        self.assertEqual(1, result.returncode)
        self.assertIn("no gateway answers", last_line(result))


if __name__ == "__main__":
    suite.main()
