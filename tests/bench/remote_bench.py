#!/usr/bin/env python3
"""A CPU worker on another machine: decode speed over wires of several latencies and rates, against the model of the wire.

Two network namespaces joined by a veth pair stand for the two machines: gateway and gpu_worker in one, cpu_worker in the other.
The rate is the kernel's (tc tbf, or netem where the kernel has it); the round-trip time is netem's, or, on kernels without it,
that of a relay process in the worker's namespace that holds back whatever passes (its own measured round trip is printed, and
that is what enters the model). For each wire greedy tokens must equal those over shared memory on one host (with `--activations
bf16` those over the first wire), and the transport metric must say `inline`. The model: a token takes as long as over the wire
without delay and limit, and for each layer the round trip and the bytes over the rate besides.

With --streams N, N > 1, that many decode at once, and the decode batch as one is compared with two micro-batches in turn.

Needs root and iproute2.

    tests/bench/remote_bench.py --bin build/release/bin --model models/tales/tales-q8_0.gguf
"""

import argparse
import contextlib
import ctypes
import os
import pathlib
import queue
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

GPU, CPU = "isotherm-gpu", "isotherm-cpu"
GPU_ADDRESS, CPU_ADDRESS = "10.213.7.1", "10.213.7.2"
WORKER_PORT, RELAY_PORT, ECHO_PORT, ECHO_RELAY_PORT = 7072, 7172, 7073, 7173
GPU_METRICS = 19402
CLONE_NEWNET = 0x40000000
PR_SET_TIMERSLACK = 29
LIBC = ctypes.CDLL(None, use_errno=True)


def command(*words, check=True):
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=check)


def enter(namespace):
    """Moves this thread, and what it starts, into a network namespace."""
    with open(f"/run/netns/{namespace}", "rb") as handle:
        if LIBC.setns(handle.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter network namespace {namespace}")


# --- The relay: what stands for latency where there is no netem.


def pump(source, sink, delay):
    """Passes bytes on, each `delay` seconds after it came."""
    held = queue.SimpleQueue()

    def send():
        while (item := held.get()) is not None:
            due, data = item
            if (rest := due - time.monotonic()) > 0:
                time.sleep(rest)
            sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    threading.Thread(target=send, daemon=True).start()
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 20):
            held.put((time.monotonic() + delay, data))
    held.put(None)


def relay(port, target_port, delay):
    """Serves for ever. `target_port` 0 echoes what comes, without a delay."""
    LIBC.prctl(PR_SET_TIMERSLACK, 1)  # for the threads to come; the default adds 50 us to every sleep
    server = socket.create_server((CPU_ADDRESS, port))
    while True:
        near, _ = server.accept()
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if target_port == 0:
            threading.Thread(target=pump, args=(near, near, 0), daemon=True).start()
            continue
        try:
            far = socket.create_connection((CPU_ADDRESS, target_port))
        except ConnectionRefusedError:  # as the target would: the peer tries again
            near.close()
            continue
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=pump, args=(source, sink, delay), daemon=True).start()


class Wire:
    """Namespaces and veth pair with a rate and a round trip; this thread is moved into the GPU worker's side."""

    def __init__(self, round_trip, rate):
        self._home = os.open("/proc/self/ns/net", os.O_RDONLY)
        self._relays = []
        self.worker_port = WORKER_PORT
        try:
            self._build(round_trip, rate)
        except BaseException:
            self.close()
            raise

    def _build(self, round_trip, rate):
        for namespace in (GPU, CPU):
            command("ip", "netns", "add", namespace)
        command("ip", "link", "add", "gpu0", "netns", GPU, "type", "veth", "peer", "name", "cpu0", "netns", CPU)
        for namespace, device, address in ((GPU, "gpu0", GPU_ADDRESS), (CPU, "cpu0", CPU_ADDRESS)):
            command("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", device)
            command("ip", "-n", namespace, "link", "set", device, "up")
            command("ip", "-n", namespace, "link", "set", "lo", "up")
            qdisc = ["tc", "-n", namespace, "qdisc", "add", "dev", device, "root"]
            if round_trip and command(*qdisc, "netem", "delay", f"{round_trip / 2 * 1e6:.0f}us", *(
                    ["rate", f"{rate:.0f}"] if rate else []), "limit", 20000, check=False).returncode == 0:
                continue
            if round_trip:
                self.worker_port = RELAY_PORT
            if rate:
                # What passes at once is not delayed at all: less than an exchange, yet a packet and 20 us of the kernel's timer.
                burst = max(2000, int(rate / 8 * 20e-6))
                command(*qdisc, "tbf", "rate", f"{rate:.0f}bit", "burst", burst, "latency", "100ms")
        relayed = self.worker_port == RELAY_PORT
        self._start_relay(ECHO_PORT, 0, 0)
        if relayed:
            self._start_relay(RELAY_PORT, WORKER_PORT, round_trip / 2)
            self._start_relay(ECHO_RELAY_PORT, ECHO_PORT, round_trip / 2)
        enter(GPU)
        self.round_trip = self._measure(ECHO_RELAY_PORT if relayed else ECHO_PORT)
        self.how = "relay" if relayed else "netem" if round_trip else "veth"

    def _start_relay(self, *arguments):
        self._relays.append(subprocess.Popen(
            ["ip", "netns", "exec", CPU, sys.executable, "-B", __file__, "--relay", *map(str, arguments)]))

    @staticmethod
    def _measure(port):
        """Median seconds of a byte's round trip."""
        for _ in range(100):
            with contextlib.suppress(OSError):
                peer = socket.create_connection((CPU_ADDRESS, port), timeout=5)
                peer.sendall(b"x")
                if peer.recv(1) == b"x":
                    break
            time.sleep(0.05)
        else:
            raise SystemExit(f"nobody listens on {CPU_ADDRESS}:{port}")
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = []
        for _ in range(200):
            start = time.monotonic()
            peer.sendall(b"x")
            assert peer.recv(1) == b"x", "the echo is gone"
            trips.append(time.monotonic() - start)
        peer.close()
        return statistics.median(trips)

    def close(self):
        for each in self._relays:
            each.kill()
            each.wait()
        LIBC.setns(self._home, CLONE_NEWNET)
        os.close(self._home)
        for namespace in (GPU, CPU):
            command("ip", "netns", "delete", namespace, check=False)


# --- What is measured.


class Servers:
    """gateway, gpu_worker and cpu_worker; `wire` None puts all on one host with shared memory."""

    def __init__(self, options, wire=None, gpu_flags=()):
        self._folder = tempfile.TemporaryDirectory(prefix="isotherm-bench.")
        folder = pathlib.Path(self._folder.name)
        self.address = f"unix:{folder}/gateway.sock"
        self.log = folder / "log"
        self._processes = []
        on_wire = ["--insecure"] if wire is not None else []
        model = f"--model={options.model}"
        listen = f"unix:{folder}/cpu.sock" if wire is None else f"{CPU_ADDRESS}:{WORKER_PORT}"
        address = listen if wire is None else f"{CPU_ADDRESS}:{wire.worker_port}"
        self._start(["ip", "netns", "exec", CPU] if wire is not None else [], options.bin / "cpu_worker", model,
                    f"--listen={listen}", "--metrics-listen=", f"--threads={options.cpu_threads}", *on_wire)
        self._start([], options.bin / "gpu_worker", model, f"--listen=unix:{folder}/gpu.sock", "--nosave-profile",
                    f"--metrics-listen=127.0.0.1:{GPU_METRICS}", f"--cpu-worker={address}",
                    f"--threads={options.gpu_threads}", *options.gpu_flags.split(), *on_wire, *gpu_flags)
        self._start([], options.bin / "gateway", model, f"--listen={self.address}", f"--worker=unix:{folder}/gpu.sock",
                    "--metrics-listen=")

    def _start(self, prefix, binary, *flags):
        with self.log.open("ab") as log:
            self._processes.append(subprocess.Popen([*prefix, str(binary), *flags], stdout=log, stderr=log))

    def generate(self, options, tokens):
        """Texts of greedy continuations, all streams at once, and their tokens a second together."""
        prompts = [options.prompt, *(f"{options.prompt} {number}" for number in range(2, options.streams + 1))]
        streams = [subprocess.Popen([options.bin / "isotherm", "generate", f"--address={self.address}", "--wait=120s",
                                     "--temperature=0", "--ignore-eos", f"--max-tokens={tokens}", prompt],
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for prompt in prompts]
        texts, speeds = [], []
        for stream in streams:
            text, said = stream.communicate()
            speed = re.search(r"decode .* ([0-9.]+) tokens/s", said)
            if speed is None:
                raise SystemExit(f"generate failed:\n{said}\n{self.log.read_text()}")
            texts.append(text)
            speeds.append(float(speed.group(1)))
        return texts, sum(speeds)

    def metric(self, name):
        with urllib.request.urlopen(f"http://127.0.0.1:{GPU_METRICS}/metrics", timeout=10) as response:
            lines = response.read().decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if re.match(rf"{name}[ {{]", line)}

    def total(self, name):
        return sum(self.metric(name).values())

    def close(self):
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            process.wait()
        self._folder.cleanup()


def measure(servers, options, expected=None):
    """(texts, median tokens/s, bytes of a request and its answer) after a warm-up."""
    text, _ = servers.generate(options, options.tokens)
    if expected is not None and text != expected:
        raise SystemExit(f"other tokens than before:\n{text}\n---\n{expected}")
    before = [servers.total(name) for name in ("isotherm_exchange_bytes_total", "isotherm_exchange_seconds_count")]
    speeds = [servers.generate(options, options.tokens)[1] for _ in range(options.repeats)]
    moved, exchanges = (servers.total(name) - start for name, start in zip(
        ("isotherm_exchange_bytes_total", "isotherm_exchange_seconds_count"), before))
    return text, statistics.median(speeds), moved / exchanges


@contextlib.contextmanager
def closing(thing):
    try:
        yield thing
    finally:
        thing.close()


def wires(options):
    with closing(Servers(options, gpu_flags=["--exchange-transport=shm"])) as servers:
        expected, speed, _ = measure(servers, options)
    print(f"shared memory: {speed:.1f} tokens/s")
    layers = int(re.search(r"block_count\D+([0-9]+)", command(options.bin / "isotherm", "inspect",
                                                              options.model).stdout).group(1))
    print("| round trip ms (measured) | Gbit/s | bytes an exchange | tokens/s | model | of the model |")
    print("| --- | --- | --- | --- | --- | --- |")
    if options.activations != "f32":  # rounded: the same over every wire, but not as without
        expected = None
    base = None
    for milliseconds, gigabits in [(0, 0), *((m, g) for g in options.gigabits for m in options.milliseconds)]:
        with closing(Wire(milliseconds / 1e3, gigabits * 1e9)) as wire:
            flags = ["--exchange-transport=inline", f"--exchange-activations={options.activations}"]
            with closing(Servers(options, wire, flags)) as servers:
                expected, speed, size = measure(servers, options, expected)
                transport = servers.metric("isotherm_exchange_transport")
        assert any('transport="inline"' in series and value == 1 for series, value in transport.items()), transport
        if base is None:
            base, base_trip = 1 / speed, wire.round_trip
        wired = layers * (wire.round_trip - base_trip + (size * 8 / (gigabits * 1e9) if gigabits else 0))
        predicted = 1 / (base + wired)
        print(f"| {milliseconds} ({wire.round_trip * 1e3:.2f}, {wire.how}) | {gigabits or 'none'} | {size:.0f} "
              f"| {speed:.1f} | {predicted:.1f} | {speed / predicted:.0%} |", flush=True)


def micro_batches(options):
    print(f"{options.streams} streams")
    print("| round trip ms (measured) | Gbit/s | one batch, tokens/s | two micro-batches | auto (passes divided) |")
    print("| --- | --- | --- | --- | --- |")
    expected = None
    for milliseconds, gigabits in ((m, g) for g in options.gigabits for m in options.milliseconds):
        speeds = {}
        with closing(Wire(milliseconds / 1e3, gigabits * 1e9)) as wire:
            for choice in ("1", "2", "auto"):
                flags = ["--exchange-transport=inline", f"--micro-batches={choice}"]
                with closing(Servers(options, wire, flags)) as servers:
                    expected, speeds[choice], _ = measure(servers, options, expected)
                    passes = servers.metric("isotherm_decode_passes_total")
        divided = sum(count for series, count in passes.items() if 'micro_batches="2"' in series) / sum(passes.values())
        one, two, auto = speeds.values()
        print(f"| {milliseconds} ({wire.round_trip * 1e3:.2f}, {wire.how}) | {gigabits:g} | {one:.1f} "
              f"| {two:.1f} ({two / one:.2f} x) | {auto:.1f} ({divided:.0%}) |", flush=True)


def main():
    if sys.argv[1:2] == ["--relay"]:
        return relay(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=pathlib.Path("build/release/bin"))
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--gpu-flags", default="--predictor=gate --vram-budget=0.0275 --kv-tokens=1024 --max-prefill-rows=128 "
                        "--max-decode-rows=8", help="what leaves neurons cold; the default is for the demo model")
    parser.add_argument("--activations", choices=["f32", "bf16"], default="f32", help="on the wire")
    parser.add_argument("--gpu-threads", type=int, default=1)
    parser.add_argument("--cpu-threads", type=int, default=1)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--milliseconds", type=float, nargs="+", default=[0.1, 0.5, 1])
    parser.add_argument("--gigabits", type=float, nargs="+", default=[1, 10])
    options = parser.parse_args()
    return micro_batches(options) if options.streams > 1 else wires(options)


if __name__ == "__main__":
    sys.exit(main())
