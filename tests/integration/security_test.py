"""Who may come in: certificates, API keys and traces, seen from outside."""

import concurrent.futures
import contextlib
import json
import pathlib
import shutil
import ssl
import tempfile
import time
import unittest

import grpc

import access
import certificates
import client
import cluster
import process
import raw_http2
import stubs
import suite


def folder(test_class):
    """A folder that lives as long as the tests of the class."""
    path = pathlib.Path(tempfile.mkdtemp(prefix="isotherm-test-"))
    test_class.addClassCleanup(shutil.rmtree, path)
    return path


class StartTest(unittest.TestCase):
    """Processes that must not start, and say what to do."""

    @classmethod
    def setUpClass(cls):
        cls.folder = folder(cls)
        cls.authority = certificates.Authority(cls.folder, "ca")
        cls.good = cls.authority.issue("server")

    def ends(self, code, words, *flags, binary="gateway"):
        ended = process.run(binary, f"--model={suite.MODEL}", "--metrics-listen=", *flags)
        self.assertEqual(code, ended.returncode, ended.stderr)
        self.assertIn(words, ended.stderr.splitlines()[-1])

    def test_plain_text_on_the_network_needs_insecure(self):
        words = "in plain text: give --tls-cert and --tls-key, listen on 127.0.0.1 or a Unix socket, or say --insecure"
        for binary in ("gateway", "gpu_worker", "cpu_worker"):
            self.ends(2, words, "--listen=0.0.0.0:0", binary=binary)

    def test_tls_that_lets_everybody_in_needs_insecure(self):
        self.ends(2, "lets in everybody who can reach it", "--listen=0.0.0.0:0", f"--tls-cert={self.good.certificate}",
                  f"--tls-key={self.good.key}")

    def test_a_server_on_the_network_is_not_called_in_plain_text(self):
        self.ends(2, "--worker=192.0.2.1:7071 is on the network", "--listen=127.0.0.1:0", "--worker=192.0.2.1:7071")
        self.ends(2, "--cpu-worker=192.0.2.1:7072 is on the network", "--listen=127.0.0.1:0",
                  "--cpu-worker=192.0.2.1:7072", binary="gpu_worker")
        self.ends(2, "--model-from=192.0.2.1:7071 is on the network", "--listen=127.0.0.1:0", "--model=",
                  "--model-from=192.0.2.1:7071", binary="cpu_worker")

    def test_files_that_do_not_fit_are_named(self):
        other, expired = self.authority.issue("other"), self.authority.issue("expired", days=-1)
        empty = self.folder / "empty.pem"
        empty.write_text("", encoding="ascii")
        for words, certificate, key in (
                ("other.key does not belong to the certificate", self.good.certificate, other.key),
                ("expired on", expired.certificate, expired.key),
                ("nowhere.pem", self.folder / "nowhere.pem", self.good.key),
                ("holds no private key", self.good.certificate, empty),
                ("holds no certificate", empty, self.good.key)):
            with self.subTest(words=words):
                self.ends(1, words, "--listen=127.0.0.1:0", f"--tls-cert={certificate}", f"--tls-key={key}")
        self.ends(2, "both --tls-cert and --tls-key", "--listen=127.0.0.1:0", f"--tls-cert={self.good.certificate}")

    def test_a_key_file_that_is_none_is_refused(self):
        keys = self.folder / "keys"
        keys.write_text("# fine\nalice:md5:00:00:\n", encoding="ascii")
        self.ends(1, "line 2: not NAME:sha256:SALT:HASH:LIMITS", "--listen=127.0.0.1:0", f"--api-keys={keys}")
        keys.write_text("", encoding="ascii")
        keys.chmod(0o666)
        self.ends(1, "chmod o-w", "--listen=127.0.0.1:0", f"--api-keys={keys}")


class MutualTlsTest(unittest.TestCase):
    """All three processes on TCP with mutual TLS, the exchange through shared memory."""

    transport = "shm"

    @classmethod
    def setUpClass(cls):
        cls.folder = folder(cls)
        cls.authority = certificates.Authority(cls.folder, "ca")
        cls.stranger = certificates.Authority(cls.folder, "stranger")
        cls.identity = {name: cls.authority.issue(name) for name in ("gateway", "gpu_worker", "cpu_worker", "client")}
        cls.ports = {name: cluster.free_port() for name in ("gateway", "gpu_worker", "cpu_worker")}
        flags = {name: cls.authority.server_flags(cls.identity[name]) for name in cls.ports}
        gpu_worker = [*cluster.COLD, f"--listen=127.0.0.1:{cls.ports['gpu_worker']}",
                      f"--exchange-transport={cls.transport}", f"--cpu-worker=localhost:{cls.ports['cpu_worker']}",
                      *flags["gpu_worker"], *cls.authority.client_flags(cls.identity["gpu_worker"])]
        cls.running = cls.enterClassContext(access.GatewayOnTcpToo(
            cls.ports["gateway"], gpu_worker=gpu_worker,
            cpu_worker=[f"--listen=127.0.0.1:{cls.ports['cpu_worker']}", *flags["cpu_worker"]],
            gateway=[f"--worker=127.0.0.1:{cls.ports['gpu_worker']}", *flags["gateway"],
                     *cls.authority.client_flags(cls.identity["gateway"])]))

    def address(self, name):
        return f"localhost:{self.ports[name]}"

    def test_text_comes_through_with_certificates_all_the_way(self):
        request = client.greedy("Once upon a time", 16)
        expected = client.generate(self.running, request)
        self.assertEqual(self.transport, expected.complete.execution.transport)
        with self.authority.channel(self.address("gateway"), self.identity["client"]) as channel:
            stub = stubs.inference_grpc.InferenceServiceStub(channel)
            self.assertEqual(expected.tokens, client.collect(stub.Generate(request, timeout=suite.PATIENCE)).tokens)

    def test_the_command_line_shows_its_certificate(self):
        flags = [f"--address={self.address('gateway')}", *self.authority.client_flags(self.identity["client"])]
        ended = process.run("isotherm", "tokenize", *flags, "Once")
        self.assertEqual(0, ended.returncode, ended.stderr)

    def test_without_a_certificate_a_call_learns_what_is_missing(self):
        with self.authority.channel(self.address("gateway")) as channel:
            error = access.refusal(lambda: access.list_models(channel))
            self.assertEqual(grpc.StatusCode.UNAUTHENTICATED, error.code())
            self.assertIn("no client certificate", error.details())
            channel.unary_unary(access.HEALTH)(b"", timeout=suite.PATIENCE)  # open to everybody
        for name, method in (("gpu_worker", "ModelRunnerService/GetRunner"), ("gpu_worker", "ModelFileService/ListModelFiles"),
                             ("cpu_worker", "NeuronService/GetNeuronWorker")):
            with self.authority.channel(self.address(name)) as channel:
                call = channel.unary_unary(f"/isotherm.worker.v1.{method}")
                self.assertEqual(grpc.StatusCode.UNAUTHENTICATED,
                                 access.refusal(lambda: call(b"", timeout=suite.PATIENCE)).code())

    def test_a_model_is_fetched_with_a_certificate(self):
        cache = self.folder / f"cache-{self.transport}"
        worker = process.Process(
            "cpu_worker", [f"--model-from={self.address('gpu_worker')}", f"--model-dir={cache}", "--metrics-listen=",
                           f"--listen=unix:{cache}.sock", *self.authority.client_flags(self.identity["cpu_worker"])],
            self.folder / f"log-{self.transport}")
        worker.start()
        self.addCleanup(worker.stop)
        cluster.wait_until(lambda: "of neurons ready" in worker.log() or not worker.running(), "the model")
        self.assertEqual([suite.MODEL.read_bytes()], [copy.read_bytes() for copy in cache.glob("*/*")], worker.log())

    def test_certificates_nobody_vouches_for_are_refused(self):
        expired = self.authority.issue("late", days=-1)
        for name in self.ports:
            for identity in (self.stranger.issue("spy"), expired):
                with self.authority.channel(self.address(name), identity) as channel:
                    self.assertEqual(grpc.StatusCode.UNAVAILABLE, access.refusal(lambda: access.list_models(channel)).code())
            with self.stranger.channel(self.address(name), self.identity["client"]) as channel:
                error = access.refusal(lambda: access.list_models(channel))
                self.assertEqual(grpc.StatusCode.UNAVAILABLE, error.code())
            with grpc.insecure_channel(self.address(name)) as channel:
                self.assertEqual(grpc.StatusCode.UNAVAILABLE, access.refusal(lambda: access.list_models(channel)).code())
        self.assertIn("certificate verify failed", self.running.gateway.log())

    def test_certificates_are_rotated_under_live_traffic(self):
        def served(name):
            context = ssl.create_default_context(cafile=self.authority.certificate)
            context.load_cert_chain(self.identity["client"].certificate, self.identity["client"].key)
            with contextlib.closing(raw_http2.Connection(self.ports[name])) as connection:
                with context.wrap_socket(connection.socket, server_hostname="localhost") as secure:
                    return secure.getpeercert()["serialNumber"]

        request = client.greedy("In a deep forest", 200)
        expected = client.generate(self.running, request).tokens
        before = {name: served(name) for name in self.ports}
        stream = client.Stream()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(client.generate, self.running, request)
            for name, identity in self.identity.items():
                identity.replace(self.authority.issue(f"{name}-renewed", days=60))
            for name in self.ports:
                cluster.wait_until(lambda: served(name) != before[name], f"{name} using its new certificate")
            stream = running.result()
        self.assertEqual(expected, stream.tokens)
        # What connects anew shows the new certificate too.
        self.running.cpu_worker.kill()
        self.running.cpu_worker.start()
        self.assertEqual(expected, client.generate(self.running, request).tokens)
        for name in self.ports:
            ends = self.running.metrics(name).values("isotherm_tls_certificate_not_after_seconds",
                                                     file=str(self.identity[name].certificate))
            self.assertGreater(ends[0], time.time() + 50 * 86400)


class InlineMutualTlsTest(MutualTlsTest):
    """The same with activations inside gRPC messages."""

    transport = "inline"


class ApiKeysTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = folder(cls)
        cls.keys = cls.folder / "keys"
        cls.secrets = {"plain": cls.create("plain"),
                       "slow": cls.create("slow", "--requests-per-minute=2"),
                       "short": cls.create("short", "--tokens-per-minute=30"),
                       "single": cls.create("single", "--concurrent=1")}
        off = cls.create("off")
        cls.keys.write_text(cls.keys.read_text(encoding="ascii").rstrip("\n") + "disabled\n", encoding="ascii")
        cls.secrets["off"] = off
        cls.running = cls.enterClassContext(_Keyed(
            gateway=[f"--api-keys={cls.keys}"], gpu_worker=cluster.COLD, key=cls.secrets["plain"]))

    @classmethod
    def create(cls, name, *limits):
        made = process.run("isotherm", "key", "create", name, f"--keys={cls.keys}", *limits)
        assert made.returncode == 0, made.stderr
        return made.stdout.strip()

    def call(self, key):
        with grpc.insecure_channel(self.running.address("gateway")) as channel:
            return access.list_models(channel, [("authorization", f"Bearer {key}")])

    def test_no_key_and_wrong_keys_are_unauthenticated(self):
        with grpc.insecure_channel(self.running.address("gateway")) as channel:
            error = access.refusal(lambda: access.list_models(channel))
            self.assertEqual(grpc.StatusCode.UNAUTHENTICATED, error.code())
            self.assertIn("authorization: Bearer KEY", error.details())
            channel.unary_unary(access.HEALTH)(b"", timeout=suite.PATIENCE)
            basic = access.refusal(lambda: access.list_models(channel, [("authorization", "Basic x")]))
            self.assertEqual(grpc.StatusCode.UNAUTHENTICATED, basic.code())
        good = self.secrets["plain"]
        for wrong in ("", "plain", "plain.", good[:-1], good + "0", good.replace("plain", "single"), "nobody.00"):
            with self.subTest(key=wrong):
                self.assertEqual(grpc.StatusCode.UNAUTHENTICATED, access.refusal(lambda: self.call(wrong)).code())
        self.call(good)

    def test_a_disabled_key_is_denied(self):
        error = access.refusal(lambda: self.call(self.secrets["off"]))
        self.assertEqual(grpc.StatusCode.PERMISSION_DENIED, error.code())
        self.assertIn("'off' is disabled", error.details())

    def check_limited(self, error, words):
        self.assertEqual(grpc.StatusCode.RESOURCE_EXHAUSTED, error.code())
        self.assertIn(words, error.details())
        details = dict(error.trailing_metadata())["grpc-status-details-bin"]
        (retry,) = stubs.error_details.Status.FromString(details).details
        self.assertTrue(retry.type_url.endswith("google.rpc.RetryInfo"))
        delay = stubs.error_details.RetryInfo.FromString(retry.value).retry_delay
        self.assertTrue(0 < delay.ToTimedelta().total_seconds() <= 120)

    def test_requests_a_minute(self):
        for _ in range(2):
            self.call(self.secrets["slow"])
        self.check_limited(access.refusal(lambda: self.call(self.secrets["slow"])), "2 requests a minute")

    def test_tokens_a_minute(self):
        self.running.generate(self.secrets["short"], client.greedy("Once", 60))
        self.check_limited(access.refusal(lambda: self.call(self.secrets["short"])), "30 tokens a minute")
        self.assertGreaterEqual(self.running.metrics("gateway").total("isotherm_api_key_tokens_total", key="short"), 60)

    def test_calls_at_once(self):
        key = self.secrets["single"]
        with grpc.insecure_channel(self.running.address("gateway")) as channel:
            stub = stubs.inference_grpc.InferenceServiceStub(channel)
            metadata = [("authorization", f"Bearer {key}")]
            stream = stub.Generate(client.greedy("Once", 400), metadata=metadata, timeout=suite.PATIENCE)
            next(iter(stream))
            self.check_limited(access.refusal(lambda: self.call(key)), "1 calls at once")
            stream.cancel()

            def free_again():
                try:
                    return self.call(key)
                except grpc.RpcError:
                    return None

            cluster.wait_until(free_again, "the call's end being noticed")

    def test_keys_come_and_go_while_the_gateway_runs(self):
        def outcome():
            try:
                self.call(fresh)
                return "in"
            except grpc.RpcError as error:
                self.assertEqual(grpc.StatusCode.UNAUTHENTICATED, error.code())
                return "out"

        before = self.keys.read_text(encoding="ascii")
        fresh = self.create("fresh")
        cluster.wait_until(lambda: outcome() == "in", "the new key")
        self.keys.write_text("nonsense\n", encoding="ascii")
        cluster.wait_until(lambda: "the API keys stay as they were" in self.running.gateway.log(), "the complaint")
        self.assertEqual("in", outcome())
        self.keys.write_text(before, encoding="ascii")
        cluster.wait_until(lambda: outcome() == "out", "the key's end")

    def test_the_command_line_takes_the_key_from_a_file(self):
        path = self.folder / "plain.key"
        path.write_text(self.secrets["plain"] + "\n", encoding="ascii")
        address = f"--address={self.running.address('gateway')}"
        self.assertEqual(0, process.run("isotherm", "tokenize", address, f"--api-key-file={path}", "Once").returncode)
        without = process.run("isotherm", "tokenize", address, "Once")
        self.assertIn("no API key", without.stderr)

    def test_a_name_has_one_key(self):
        again = process.run("isotherm", "key", "create", "plain", f"--keys={self.keys}")
        self.assertEqual(1, again.returncode)
        self.assertIn("has a key 'plain' already", again.stderr)
        self.assertEqual(0o600, self.keys.stat().st_mode & 0o777)


class _Keyed(cluster.Cluster):
    """A cluster whose own calls carry a key."""

    def __init__(self, key, **flags):
        self._metadata = [("authorization", f"Bearer {key}")]
        super().__init__(**flags)

    def model(self):
        request = stubs.model.GetModelRequest()
        return self.models.GetModel(request, metadata=self._metadata, wait_for_ready=True, timeout=suite.PATIENCE).model

    def generate(self, key, request):
        metadata = [("authorization", f"Bearer {key}")]
        return client.collect(self.inference.Generate(request, metadata=metadata, timeout=suite.PATIENCE))


class TracingTest(unittest.TestCase):
    """Which request a log line is about."""

    @classmethod
    def setUpClass(cls):
        cls.running = cls.enterClassContext(cluster.Cluster(gpu_worker=cluster.COLD, gateway=["--log-format=json"]))

    def traced(self, *metadata):
        """What the answer to a call says about its trace, and its log line."""
        request = stubs.inference.TokenizeRequest(text="Once")
        _, call = self.running.inference.Tokenize.with_call(request, metadata=metadata, timeout=suite.PATIENCE)
        answer = dict(call.initial_metadata())

        def line():
            lines = (json.loads(text) for text in self.running.gateway.log().splitlines())
            return next((line for line in lines if line.get("request_id") == answer["x-request-id"]), None)

        return answer, cluster.wait_until(line, "the log line")

    def test_a_trace_goes_on(self):
        trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
        answer, line = self.traced(("traceparent", f"00-{trace}-{parent}-01"), ("x-request-id", "order-7"))
        self.assertEqual("order-7", answer["x-request-id"])
        self.assertEqual(f"00-{trace}-{line['span_id']}-01", answer["traceparent"])
        self.assertEqual((trace, parent), (line["trace_id"], line["parent_id"]))
        self.assertIn("isotherm.v1.InferenceService/Tokenize: OK", line["message"])

    def test_what_is_missing_or_invalid_is_replaced(self):
        for metadata in ((), (("traceparent", "00-zz-zz-01"), ("x-request-id", "no spaces"))):
            answer, line = self.traced(*metadata)
            self.assertRegex(answer["traceparent"], "^00-[0-9a-f]{32}-[0-9a-f]{16}-01$")
            self.assertRegex(answer["x-request-id"], "^[0-9a-f]{32}$")
            self.assertNotIn("parent_id", line)


class GenerateTraceTest(unittest.TestCase):
    """One request's lines in the logs of all three processes, from one span to the next."""

    TRACE, PARENT, REQUEST = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", "order-8"

    def of_request(self, process, said):
        """The line of that process that says it about the request, once it is there."""

        def line():
            lines = (json.loads(text) for text in process.log().splitlines())
            return next((line for line in lines if line.get("request_id") == self.REQUEST and said in line["message"]), None)

        return cluster.wait_until(line, f"'{said}' in the log of {process.name}")

    def test_all_processes_log_the_trace(self):
        for transport in ("shm", "inline"):
            with self.subTest(transport):
                json_lines = ("--log-format=json",)
                gpu_worker = (*cluster.COLD, f"--exchange-transport={transport}", *json_lines)
                with cluster.Cluster(gateway=json_lines, gpu_worker=gpu_worker, cpu_worker=json_lines) as running:
                    metadata = [("traceparent", f"00-{self.TRACE}-{self.PARENT}-01"), ("x-request-id", self.REQUEST)]
                    client.collect(running.inference.Generate(client.greedy("Once", 5), metadata=metadata,
                                                              timeout=suite.PATIENCE))
                    parent = self.PARENT
                    for process_, said in ((running.gateway, ["Generate: OK"]), (running.gpu_worker, ["begins", "is over: "]),
                                           (running.cpu_worker, ["begins", "is over"])):
                        lines = [self.of_request(process_, each) for each in said]
                        self.assertEqual({(self.TRACE, parent)}, {(line["trace_id"], line["parent_id"]) for line in lines})
                        parent = lines[0]["span_id"]
                        self.assertEqual({parent}, {line["span_id"] for line in lines})


if __name__ == "__main__":
    suite.main()
