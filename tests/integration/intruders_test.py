"""What strangers do to a gateway that they can reach: refused, bounded, and nobody else is disturbed."""

import concurrent.futures
import pathlib
import re
import resource
import sys
import threading
import time
import unittest

import grpc

import access
import client
import cluster
import raw_http2
import stubs
import suite

GENERATE = "/isotherm.v1.InferenceService/Generate"


def resident_mib(pid, most=False):
    """Now, or the most since forget_most_resident."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.search(rf"{'VmHWM' if most else 'VmRSS'}:\s+(\d+)", status).group(1)) / 1024


def forget_most_resident(pid):
    pathlib.Path(f"/proc/{pid}/clear_refs").write_text("5")


class IntrudersTest(unittest.TestCase):
    """What strangers do to a gateway on TCP, while a stream runs beside them."""

    MOST_CONNECTIONS = 40
    HANDSHAKE = 2
    # What intruders may cost it: gRPC 1.51 takes a message in before it says that it is too long, up to what a connection
    # may send. Sanitizers keep what was freed for a while.
    GROWTH_MIB = 400

    @classmethod
    def setUpClass(cls):
        cls.port = cluster.free_port()
        limits = [f"--max-connections={cls.MOST_CONNECTIONS}", f"--handshake-timeout={cls.HANDSHAKE}s",
                  "--idle-timeout=4s"]
        cls.running = cls.enterClassContext(access.GatewayOnTcpToo(cls.port, gateway=limits, gpu_worker=cluster.COLD))
        cls.request = client.greedy("Far away by the sea", 120)
        cls.expected = client.generate(cls.running, cls.request).tokens

    def setUp(self):
        """A stream beside every test, again and again; nothing may disturb it."""
        forget_most_resident(self.running.gateway.pid)
        before = resident_mib(self.running.gateway.pid)
        over, streams = threading.Event(), 0

        def stream_on():
            nonlocal streams
            while not over.is_set() or streams == 0:
                self.assertEqual(self.expected, client.generate(self.running, self.request).tokens)
                streams += 1

        pool = concurrent.futures.ThreadPoolExecutor(1)
        beside = pool.submit(stream_on)

        def finish():
            over.set()
            beside.result()
            pool.shutdown()
            most = resident_mib(self.running.gateway.pid, most=True)
            print(f"\n{self._testMethodName}: {streams} streams beside it, {before:.0f} MiB before, {most:.0f} at most",
                  file=sys.stderr)
            self.assertLess(most - before, self.GROWTH_MIB)

        self.addCleanup(finish)

    def intruder(self):
        return grpc.insecure_channel(f"127.0.0.1:{self.port}", [("grpc.max_send_message_length", -1),
                                                                ("grpc.enable_retries", 0)])

    def open(self, first_bytes=b""):
        connection = raw_http2.Connection(self.port, first_bytes)
        self.addCleanup(connection.close)
        return connection

    def connections(self, name="isotherm_connections"):
        return self.running.metrics("gateway").total(name)

    def leave(self, connections):
        """Closes them, and waits until the gateway has noticed."""
        for connection in connections:
            connection.close()
        cluster.wait_until(lambda: self.connections() < self.MOST_CONNECTIONS / 2, "room for connections")

    def flood(self, count):
        """So many connections at once; the server keeps to its limit and has room again when they are gone."""
        refused = self.connections("isotherm_connections_refused_total")
        connections = [self.open() for _ in range(count)]
        # Those that it took make room again when their handshake is overdue.
        cluster.wait_until(
            lambda: self.connections("isotherm_connections_refused_total") >= refused + count / 4, "the refusals")
        self.assertLessEqual(self.connections(), self.MOST_CONNECTIONS)
        self.leave(connections)
        with self.intruder() as channel:
            access.list_models(channel)

    def test_too_many_connections(self):
        self.flood(200)

    @suite.slow
    def test_ten_thousand_connections(self):
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if hard < 11_000:
            self.skipTest(f"this process may have {hard} descriptors")
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.addCleanup(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        self.flood(10_000)

    def test_a_connection_too_many_is_told_so(self):
        connections = [self.open() for _ in range(self.MOST_CONNECTIONS + 5)]
        said = connections[-1].received(2)
        self.assertIn(b"too many connections", said)
        self.leave(connections)

    def test_slow_loris(self):
        """Connections that say nothing, or a byte now and then, are closed when the handshake is overdue."""
        silent, dribbling = self.open(), self.open()
        start = time.monotonic()
        for byte in raw_http2.PREFACE:
            if not dribbling.send(bytes([byte])):
                break
            time.sleep(0.25)
        self.assertLess(time.monotonic() - start, 0.25 * len(raw_http2.PREFACE), "the dribbling one was never closed")
        silent.seconds_until_closed(4 * self.HANDSHAKE)

    def test_idle_connections_are_closed(self):
        idle = self.open(raw_http2.PREFACE + raw_http2.frame(raw_http2.SETTINGS))
        idle.seconds_until_closed(20)

    def test_a_request_that_never_arrives_takes_no_thread(self):
        stalled = self.open(raw_http2.PREFACE + raw_http2.frame(raw_http2.SETTINGS))
        for stream in range(1, 200, 2):
            stalled.send(raw_http2.frame(raw_http2.HEADERS, raw_http2.request_headers(GENERATE),
                                         raw_http2.END_HEADERS, stream))
            stalled.send(raw_http2.frame(raw_http2.DATA, b"\0\0\0\x10\0half", 0, stream))
        threads = len(list(pathlib.Path(f"/proc/{self.running.gateway.pid}/task").iterdir()))
        self.assertLess(threads, 60)

    def send_message(self, size):
        """The error that a message of so many bytes ends with."""
        with self.intruder() as channel:
            call = channel.unary_stream(GENERATE, request_serializer=lambda size: bytes(size))
            return access.refusal(lambda: list(call(size, timeout=suite.PATIENCE)))

    def test_a_huge_message(self):
        error = self.send_message(32 << 20)
        self.assertEqual(grpc.StatusCode.RESOURCE_EXHAUSTED, error.code(), error.details())
        self.assertIn("larger than max", error.details())

    def cut_off(self, size):
        error = self.send_message(size)
        self.assertEqual(grpc.StatusCode.UNAVAILABLE, error.code(), error.details())
        self.assertIn("closing a connection that sent more than 128 MiB", self.running.gateway.log())

    def test_a_message_without_end(self):
        self.cut_off(256 << 20)

    @suite.slow
    def test_a_message_of_a_gibibyte(self):
        self.cut_off(1 << 30)

    def test_many_large_messages_at_once(self):
        """Each within the limit; zeros are no request."""
        with self.intruder() as channel:
            call = channel.unary_stream(GENERATE)
            calls = [call(bytes(4_000_000), timeout=suite.PATIENCE) for _ in range(20)]
            codes = {access.refusal(lambda each=each: list(each)).code() for each in calls}
        self.assertEqual({grpc.StatusCode.INVALID_ARGUMENT}, codes)

    def test_a_prompt_of_a_hundred_thousand_tokens(self):
        with self.intruder() as channel:
            stub = stubs.inference_grpc.InferenceServiceStub(channel)
            error = access.refusal(lambda: client.collect(stub.Generate(client.greedy([5] * 100_000, 1),
                                                                 timeout=suite.PATIENCE)))
        self.assertEqual(grpc.StatusCode.INVALID_ARGUMENT, error.code())
        self.assertIn("100000 tokens", error.details())

    def test_malformed_http2(self):
        start = raw_http2.PREFACE + raw_http2.frame(raw_http2.SETTINGS)
        headers = raw_http2.request_headers(GENERATE)
        for what, said in {
                "no HTTP/2": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
                "noise": bytes(range(256)) * 16,
                "a frame larger than allowed": start + raw_http2.frame(raw_http2.DATA, bytes(1 << 18), 0, 1),
                "data on a stream that was never opened": start + raw_http2.frame(raw_http2.DATA, b"x", 0, 7),
                "settings of half a field": start + raw_http2.frame(raw_http2.SETTINGS, b"\0\1\0"),
                "an index beyond the header table": start + raw_http2.frame(
                    raw_http2.HEADERS, b"\xff\xff\xff\xff\x0f", raw_http2.END_HEADERS, 1),
                "headers without an end": start + raw_http2.frame(raw_http2.HEADERS, headers, 0, 1) + start,
        }.items():
            with self.subTest(what):
                # Closed by the protocol's rules, at the latest when it has been idle for too long.
                self.open(said).seconds_until_closed(30)


if __name__ == "__main__":
    suite.main()
