#!/usr/bin/env python3
"""How long the workers take to load MODEL, against the time of reading the file once.

Loading is timed from the start of the process until it says that it serves the model; reading with read() into one buffer of
4 MiB, in turn with it; and, as a model stays in memory, with read() into fresh memory for the whole file. The latter tells what
fresh memory costs here: in a virtual machine it may come from the host first, at a second for a gigabyte. Cold rounds begin with
an empty page cache, which takes root; without it they are left out. Beside the time that passed stands the processor time of
all threads, which neither a busy machine nor a slow disk changes.

    tests/bench/load_bench.py --bin build/release/bin --model synthetic.gguf --threads 2
"""

import argparse
import mmap
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

# The workers that start at once; {folder} is where their sockets are.
WORKERS = {
    "gpu_worker --predictor=all": [["gpu_worker", "--predictor=all"]],
    "gpu_worker --predictor=sketch": [["gpu_worker", "--predictor=sketch"]],
    "cpu_worker": [["cpu_worker"]],
    "gpu_worker --vram-budget=1.5 and cpu_worker": [
        ["gpu_worker", "--vram-budget=1.5", "--kv-tokens=1024", "--ctx=1024", "--cpu-worker=unix:{folder}/cpu_worker.sock"],
        ["cpu_worker"],
    ],
}
# What each says once the model is in memory; another service of the GPU worker serves before.
SERVING = {"gpu_worker": "ModelRunnerService is serving", "cpu_worker": "NeuronService is serving"}
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def drop_caches() -> None:
    os.sync()
    DROP_CACHES.write_text("3")


def read_seconds(model: Path) -> float:
    piece = bytearray(4 << 20)
    with model.open("rb", buffering=0) as file:
        start = time.perf_counter()
        while file.readinto(piece):
            pass
        return time.perf_counter() - start


def read_and_keep_seconds(model: Path) -> float:
    size = model.stat().st_size
    with model.open("rb", buffering=0) as file, mmap.mmap(-1, size) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        start = time.perf_counter()
        with memoryview(memory) as view:
            done = 0
            while done < size:
                done += file.readinto(view[done:])
        return time.perf_counter() - start


def processor_seconds(pid: int) -> float:
    """Of all threads of the process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start(options: argparse.Namespace, worker: list[str], folder: str) -> subprocess.Popen:
    name = worker[0]
    arguments = [argument.format(folder=folder) for argument in worker[1:]]
    if name == "gpu_worker":
        arguments.append("--nosave-profile")
    command = [options.bin / name, *arguments, f"--model={options.model}", f"--listen=unix:{folder}/{name}.sock",
               f"--threads={options.threads}", "--metrics-listen="]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def wait_until_serving(name: str, process: subprocess.Popen) -> None:
    log = []
    for line in process.stderr:
        log.append(line)
        if SERVING[name] in line:
            return
    raise SystemExit(f"{name} did not load the model:\n{''.join(log)}")


def load_seconds(options: argparse.Namespace, workers: list[list[str]]) -> tuple[float, float]:
    """Time passed and processor time."""
    for worker in workers:
        # The program and its libraries are not the model.
        subprocess.run([options.bin / worker[0], "--help"], stdout=subprocess.DEVNULL, check=True)
    processes = []
    with tempfile.TemporaryDirectory(prefix="isotherm-bench.") as folder:
        try:
            begin = time.perf_counter()
            for worker in workers:
                processes.append(start(options, worker, folder))
            for worker, process in zip(workers, processes):
                wait_until_serving(worker[0], process)
            return time.perf_counter() - begin, sum(processor_seconds(process.pid) for process in processes)
        finally:
            for process in processes:
                process.terminate()
                process.communicate()


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def bench(options: argparse.Namespace, name: str, cold: bool) -> None:
    rounds = []
    for _ in range(options.repeats):
        times = []
        for timed in (read_seconds, read_and_keep_seconds, lambda model: load_seconds(options, WORKERS[name])):
            if cold:
                drop_caches()
            times.append(timed(options.model))
        rounds.append(times)
    reads, keeps, loads = zip(*rounds)
    ratios = [passed / read for (passed, _), read in zip(loads, reads)]
    columns = [f"`{name}`", "cold" if cold else "warm", spread(reads), spread(keeps), spread([passed for passed, _ in loads]),
               spread([processor for _, processor in loads]), spread(ratios)]
    print(f"| {' | '.join(columns)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=Path("build/release/bin"))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--workers", nargs="+", choices=WORKERS, default=list(WORKERS), metavar="NAME")
    options = parser.parse_args()

    print(f"{options.model.name}, {options.model.stat().st_size / 1e9:.2f} GB, {options.threads} threads, "
          f"{time.strftime('%Y-%m-%d')}; medians of {options.repeats} (min-max)")
    print("| worker | page cache | reading once (s) | reading and keeping (s) | loading (s) | its processor time (s) "
          "| loading / reading once |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    read_seconds(options.model)
    for name in options.workers:
        bench(options, name, cold=False)
    if not os.access(DROP_CACHES, os.W_OK):
        print("Cold rounds need root, to empty the page cache.")
        return
    for name in options.workers:
        bench(options, name, cold=True)


if __name__ == "__main__":
    main()
