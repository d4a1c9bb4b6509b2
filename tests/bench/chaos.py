#!/usr/bin/env python3
"""CPU workers killed and restarted every few seconds under greedy streams, each of which must end with the text that it has
without a disturbance.

The demo model is served with half of its neurons cold; the workers take turns to be killed (kill -9) and are started again at
once. Reported are the kills, the streams that were compared, the longest silence within a stream, how often streams had to wait
because no CPU worker was left, and what the GPU worker's memory and descriptors grew by.

    tests/bench/chaos.py --seconds 300 --streams 8 --cpu-workers 2
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "integration"))

import client
import cluster
import stubs
import tales

WAITING = stubs.inference.GENERATE_PHASE_WAITING_FOR_WORKER
# `gate` is exact, so that a neuron's part does not depend on who computes it.
FLAGS = ("--predictor=gate", *cluster.COLD, "--vram-budget=0.0482", "--kv-tokens=4096")


@dataclasses.dataclass
class Report:
    seconds: float = 0
    kills: int = 0
    streams: int = 0
    tokens: int = 0
    waits: int = 0
    longest_silence: float = 0
    step_failures: int = 0
    memory_growth: int = 0  # bytes, from the end of a warm-up to the end
    descriptor_growth: int = 0

    def __str__(self):
        return (f"{self.kills} kills in {self.seconds:.0f} s: {self.streams} streams with the undisturbed text, "
                f"{self.tokens / self.seconds:.0f} tokens/s, longest silence {self.longest_silence:.2f} s, "
                f"{self.waits} waits, {self.step_failures} failed steps; GPU worker "
                f"{self.memory_growth / 2**20:+.1f} MiB, {self.descriptor_growth:+d} descriptors")


def resident_bytes(process):
    pages = int(pathlib.Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def descriptors(process):
    return len(os.listdir(f"/proc/{process.pid}/fd"))


def compare_stream(running, prompt, expected):
    """One stream: its tokens, its waits and its longest silence. AssertionError for another text than expected."""
    last = time.monotonic()
    silence = 0.0

    def on_event(_):
        nonlocal last, silence
        now = time.monotonic()
        silence, last = max(silence, now - last), now

    stream = client.generate(running, client.greedy(prompt, len(expected)), on_event)
    assert stream.tokens == expected, f"another text after {prompt!r}: {stream.text!r}"
    return len(stream.tokens), stream.phases.count(WAITING), silence


def run(seconds, streams=8, cpu_workers=2, every=5.0, tokens=256, transport="auto"):
    """A Report; AssertionError or grpc.RpcError at the first stream that ends otherwise than it should."""
    prompts = tales.prompts(streams)
    flag = f"--exchange-transport={transport}"
    with cluster.Cluster(gpu_worker=[*FLAGS, flag], cpu_worker=[flag], cpu_workers=cpu_workers) as running, \
            concurrent.futures.ThreadPoolExecutor(streams) as pool:
        expected = [stream.tokens for stream in
                    client.generate_all(running, [client.greedy(prompt, tokens) for prompt in prompts], streams)]
        start = time.monotonic()

        def stream_on(number):
            done = []
            while time.monotonic() < start + seconds:
                done.append(compare_stream(running, prompts[number], expected[number]))
            return done

        report = Report()
        memory, files = resident_bytes(running.gpu_worker), descriptors(running.gpu_worker)
        futures = [pool.submit(stream_on, number) for number in range(streams)]
        while time.monotonic() < start + seconds and not any(future.done() for future in futures):
            time.sleep(every)
            worker = running.cpu_workers[report.kills % cpu_workers]
            worker.kill()
            worker.start()
            report.kills += 1
        for future in futures:
            for count, waits, silence in future.result():
                report.streams += 1
                report.tokens += count
                report.waits += waits
                report.longest_silence = max(report.longest_silence, silence)
        report.seconds = time.monotonic() - start
        running.wait_ready()
        report.step_failures = int(running.metrics("gpu_worker").total("isotherm_step_failures_total"))
        report.memory_growth = resident_bytes(running.gpu_worker) - memory
        report.descriptor_growth = descriptors(running.gpu_worker) - files
        return report


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--cpu-workers", type=int, default=2)
    parser.add_argument("--every", type=float, default=5, help="seconds between two kills")
    parser.add_argument("--tokens", type=int, default=256, help="of a stream")
    parser.add_argument("--transport", default="auto", choices=("auto", "shm", "inline"))
    options = parser.parse_args()
    print(run(options.seconds, options.streams, options.cpu_workers, options.every, options.tokens, options.transport))


if __name__ == "__main__":
    main()
