#!/usr/bin/env python3
"""Decode speed of two CPU workers on unequal CPUs against the first alone, on one host with device host.

gpu_worker with gateway and the two workers are pinned to cores of their own, hyperthreads included. With --quotas each worker has
part of one core instead, by a cgroup quota, which needs root and two cores: where there are no more, gpu_worker shares the last
worker's core, also while the first works alone. As little as possible is hot, and several streams at once make the cold neurons a matter of computing: a weight that was read serves every row. The
gpu_worker divides the neurons by measured speed; the shares it has come to are printed. A model that suits has FFNs much
larger than its attention and its head:

    isotherm-synthesize --layers 4 --hidden 2048 --ffn 24576 --heads 16 --kv-heads 2 --vocab 4096 --type q8_0 --out cold.gguf
    tests/bench/share_bench.py --bin build/release/bin --model cold.gguf
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import gpu_bench
from cpu_quota import CpuQuota


class Cpus(NamedTuple):
    """What a CPU worker has: cores, or part of one."""
    cores: list[set[int]]
    quota: float | None = None

    @property
    def size(self) -> float:
        return self.quota or len(self.cores)


def physical_cores() -> list[set[int]]:
    """The CPUs of each core that this process may use."""
    allowed = os.sched_getaffinity(0)
    cores = set()
    for cpu in allowed:
        listed = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings = re.findall(r"(\d+)(?:-(\d+))?", listed.read_text()) if listed.exists() else [(str(cpu), "")]
        cores.add(frozenset(each for first, last in siblings for each in range(int(first), int(last or first) + 1)) & allowed)
    return sorted(map(set, cores), key=min)


def by_cores(wanted: str | None) -> tuple[list[set[int]], list[Cpus]]:
    """gpu_worker's cores and those of the two workers."""
    cores = physical_cores()
    counts = [int(count) for count in wanted.split(",")] if wanted else [max(1, 3 * len(cores) // 8), max(1, len(cores) // 4)]
    if len(counts) != 2 or min(counts) < 1 or sum(counts) >= len(cores):
        raise SystemExit(f"two workers on {counts} cores leave none of {len(cores)} for gpu_worker; --quotas needs two")
    first, both = counts[0], sum(counts)
    return cores[both:], [Cpus(cores[:first]), Cpus(cores[first:both])]


def by_quotas(wanted: str) -> tuple[list[set[int]], list[Cpus]]:
    cores = physical_cores()
    quotas = [float(quota) for quota in wanted.split(",")]
    if len(quotas) != 2 or not all(0 < quota <= 1 for quota in quotas) or len(cores) < 2:
        raise SystemExit(f"--quotas {wanted}: two parts of a core above 0 and up to 1, on a machine with two cores")
    return cores[2:] or cores[1:], [Cpus([core], quota if quota < 1 else None) for core, quota in zip(cores, quotas)]


class Servers:
    """gateway, gpu_worker and a CPU worker for each entry of `workers`: the cores that it has to itself."""

    def __init__(self, options: argparse.Namespace, gpu: list[set[int]], workers: list[Cpus], folder: Path):
        self.gateway = f"unix:{folder}/gateway.sock"
        self._log = folder / "log"
        self._processes = []
        self._quotas = []
        addresses = [f"unix:{folder}/cpu{number}.sock" for number in range(len(workers))]
        budget = gpu_bench.budget_of(options, "host")
        for number, (address, cpus) in enumerate(zip(addresses, workers)):
            pid = self._start(options, "cpu_worker", cpus.cores, f"--listen={address}", f"--threads={len(cpus.cores)}")
            if cpus.quota is not None:
                self._quotas.append(CpuQuota(number, cpus.quota, pid))
        self._start(options, "gpu_worker", gpu, f"--listen=unix:{folder}/gpu.sock", f"--threads={len(gpu)}", "--device=host",
                    f"--vram-budget={budget}", f"--predictor={options.predictor}",
                    f"--kv-tokens={options.kv_tokens}", f"--ctx={options.context}",
                    f"--max-decode-rows={options.sequences}", "--nosave-profile", f"--cpu-worker={','.join(addresses)}",
                    *options.gpu_worker_flag)
        self._start(options, "gateway", gpu, f"--listen={self.gateway}", f"--worker=unix:{folder}/gpu.sock")

    def _start(self, options, name, cores, *flags):
        cpus = set().union(*cores)
        with self._log.open("ab") as log:
            self._processes.append(subprocess.Popen(
                [options.bin / name, f"--model={options.model}", "--metrics-listen=", *flags], stdout=log, stderr=log,
                preexec_fn=lambda: os.sched_setaffinity(0, cpus)))
        return self._processes[-1].pid

    def log(self, _name: str) -> str:
        return self._log.read_text()

    def shares(self) -> str:
        """Per cent of the neurons by worker, the last that was logged."""
        found = dict(re.findall(r"CPU worker at (\S+) owns ([0-9.]+) % of the neurons", self._log.read_text()))
        return " and ".join(f"{share} %" for _, share in sorted(found.items()))

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *_) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait()
        for quota in self._quotas:
            quota.close()


def run_streams(options: argparse.Namespace, servers: Servers) -> tuple[str, float]:
    """The first stream's text, and all streams' decode tokens a second."""
    streams = [gpu_bench.generate(options, servers, stream) for stream in range(options.sequences)]
    finished = [gpu_bench.finish(servers, stream) for stream in streams]
    return finished[0][0], sum(gpu_bench.tokens_per_second(said, "decode") for _, said in finished)


def measure(options: argparse.Namespace, gpu: list[set[int]], workers: list[Cpus]) -> tuple[str, list[float], str]:
    with tempfile.TemporaryDirectory(prefix="isotherm-bench.") as folder:
        with Servers(options, gpu, workers, Path(folder)) as servers:
            text, _ = run_streams(options, servers)
            settled = time.monotonic() + (options.settle if len(workers) > 1 else 0)
            while time.monotonic() < settled:
                run_streams(options, servers)
            speeds = [run_streams(options, servers)[1] for _ in range(options.repeats)]
            return text, speeds, servers.shares()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=Path("build/release/bin"))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--cores", help="of the two workers, as 6,4 (default: three and two eighths; the rest is gpu_worker's)")
    parser.add_argument("--quotas", help="parts of a core that the two workers get instead, as 1,0.7")
    parser.add_argument("--gpu-worker-flag", action="append", default=[], help="one more, as --gpu-worker-flag=--micro-batches=1")
    parser.add_argument("--vram-budget", default="+0.01", help="GiB; +GiB: above the least")
    parser.add_argument("--predictor", default="all")
    parser.add_argument("--prompt", default="The king said to his daughter,")
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--settle", type=float, default=15, help="seconds for the shares to settle")
    parser.add_argument("--wait", type=int, default=120, help="seconds for the model to load")
    parser.set_defaults(devices="")
    options = parser.parse_args()
    options.kv_tokens = options.context * options.sequences

    gpu, workers = by_quotas(options.quotas) if options.quotas else by_cores(options.cores)
    print(f"{options.model.name}, {options.sequences} streams; cores: gpu_worker {len(gpu)}, A {workers[0].size:g}, "
          f"B {workers[1].size:g}")
    print(f"load before: {os.getloadavg()[0]:.1f}", flush=True)
    results = []
    for name, used in (("A", workers[:1]), ("A and B", workers)):
        text, speeds, shares = measure(options, gpu, used)
        results.append((text, statistics.median(speeds)))
        print(f"{name}: {results[-1][1]:.1f} tokens/s ({min(speeds):.1f}-{max(speeds):.1f})" +
              (f", shares {shares}" if shares else ""), flush=True)
    cores = sum(each.size for each in workers) / workers[0].size
    print(f"{results[1][1] / results[0][1]:.2f} times the speed of A alone, with {cores:.2f} times its cores; the same text: {results[0][0] == results[1][0]}")


if __name__ == "__main__":
    sys.exit(main())
