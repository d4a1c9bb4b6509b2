#!/usr/bin/env python3
"""Decode speed of gpu_worker's device host on this machine, against what its memory can give.

For each predictor a server is started on MODEL with every neuron hot, and greedy continuations are timed. Beside tokens/s
stands the bytes a token must read (weights of attention, head and predictor, gate rows of predicted neurons, up and down rows
of active ones) and the share of the measured read bandwidth that makes. The bandwidth is measured before and after each run, as
shared machines are noisy.

    tests/bench/decode_bench.py --bin build/release/bin --model synthetic.gguf --threads 2

`isotherm-synthesize` (tools/python) makes models of any shape; the default one of the table in docs/benchmarks.md is
    isotherm-synthesize --layers 16 --hidden 2048 --ffn 5632 --heads 16 --vocab 32000 --type f16 --active 0.1 --out synthetic.gguf
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path

METRICS_PORT = 19402


def read_bandwidth(binaries: Path) -> float:
    """Bytes a second, as `isotherm doctor` measures it with every core."""
    text = subprocess.run([binaries / "isotherm", "doctor"], capture_output=True, text=True).stdout
    return float(re.search(r"memory bandwidth\s+([0-9.]+) GB/s", text).group(1)) * 1e9


class Server:
    """gpu_worker and gateway on Unix sockets in a temporary folder."""

    def __init__(self, options: argparse.Namespace, predictor: str):
        self.folder = tempfile.TemporaryDirectory(prefix="isotherm-bench.")
        folder = Path(self.folder.name)
        self.address = f"unix:{folder}/gateway.sock"
        self.log = folder / "gpu_worker.log"
        common = [f"--model={options.model}"]
        self.processes = [
            subprocess.Popen(
                [options.bin / "gpu_worker", *common, f"--listen=unix:{folder}/gpu.sock", f"--predictor={predictor}",
                 f"--threads={options.threads}", f"--metrics-listen=127.0.0.1:{METRICS_PORT}", "--kv-tokens=4096",
                 "--nosave-profile"], stderr=self.log.open("w")),
            subprocess.Popen(
                [options.bin / "gateway", *common, f"--listen={self.address}", f"--worker=unix:{folder}/gpu.sock",
                 "--metrics-listen="], stderr=subprocess.DEVNULL)]

    def wait_until_serving(self) -> None:
        while "ModelRunnerService is serving" not in self.log.read_text():
            if self.processes[0].poll() is not None:
                raise SystemExit(f"gpu_worker ended:\n{self.log.read_text()}")
            time.sleep(0.1)

    def generate(self, binaries: Path, tokens: int) -> float:
        """Tokens a second of one greedy continuation."""
        text = subprocess.run(
            [binaries / "isotherm", "generate", f"--address={self.address}", "--wait=600s", "--temperature=0",
             "--ignore-eos", f"--max-tokens={tokens}", "Once upon a time"], capture_output=True, text=True)
        match = re.search(r"decode .* ([0-9.]+) tokens/s", text.stderr)
        if match is None:
            raise SystemExit(f"generate failed:\n{text.stderr}\n{self.log.read_text()}")
        return float(match.group(1))

    def metric(self, name: str) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics") as response:
            text = response.read().decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))

    def planned_mebibytes(self, purpose: str) -> float:
        return float(re.search(rf"{purpose} ([0-9.]+) MiB", self.log.read_text()).group(1))

    def stop(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()
        self.folder.cleanup()


def bench(options: argparse.Namespace, predictor: str) -> dict:
    server = Server(options, predictor)
    try:
        server.wait_until_serving()
        server.generate(options.bin, options.tokens)  # warm-up
        computed, active = server.metric("isotherm_neurons_computed_total"), server.metric("isotherm_neurons_active_total")
        before = read_bandwidth(options.bin)
        speeds = [server.generate(options.bin, options.tokens) for _ in range(options.repeats)]
        after = read_bandwidth(options.bin)
        computed = server.metric("isotherm_neurons_computed_total") - computed
        active = server.metric("isotherm_neurons_active_total") - active
        mebi = 2**20
        ffn = server.planned_mebibytes("hot neurons") * mebi
        dense = server.planned_mebibytes("attention") * mebi + options.head_bytes + server.planned_mebibytes("predictor") * mebi
        rows = server.metric("isotherm_step_rows_sum")
    finally:
        server.stop()
    # Every step row computes `total` neurons in a dense model; shares are over the timed runs.
    total_rows = rows * options.repeats / (options.repeats + 1)
    total = total_rows * options.neurons
    bytes_per_token = dense + ffn if predictor == "all" else dense + ffn * (computed / 3 + active * 2 / 3) / total
    speed = statistics.median(speeds)
    bandwidth = statistics.median([before, after])
    return {"predictor": predictor, "tokens_per_second": speed, "spread": [min(speeds), max(speeds)],
            "megabytes_per_token": bytes_per_token / 1e6, "gigabytes_per_second": bytes_per_token * speed / 1e9,
            "read_bandwidth": [before / 1e9, after / 1e9], "share_of_bandwidth": bytes_per_token * speed / bandwidth,
            "computed_share": computed / total, "active_share": active / total}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=Path("build/release/bin"))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--predictors", default="all,sketch")
    parser.add_argument("--json", type=Path, help="also write the results here")
    options = parser.parse_args()

    shape = subprocess.run([options.bin / "isotherm", "inspect", options.model], capture_output=True, text=True,
                           check=True).stdout
    number = lambda pattern: int(re.search(pattern, shape).group(1).replace(",", ""))
    options.neurons = number(r"block_count\D+([0-9]+)") * number(r"feed_forward_length\D+([0-9]+)")
    options.head_bytes = 2 * number(r"embedding_length\D+([0-9]+)") * number(r"vocab_size\D+([0-9]+)")

    machine = f"{platform.processor() or platform.machine()}, {options.threads} threads, {time.strftime('%Y-%m-%d')}"
    print(f"{options.model.name}; {machine}; {options.repeats} x {options.tokens} tokens, batch 1")
    print("| predictor | tokens/s (min-max) | MB/token | GB/s | read bandwidth GB/s | share | computed | active |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    results = []
    for predictor in options.predictors.split(","):
        result = bench(options, predictor)
        results.append(result)
        print("| {predictor} | {tokens_per_second:.2f} ({spread[0]:.2f}-{spread[1]:.2f}) | {megabytes_per_token:.0f} | "
              "{gigabytes_per_second:.1f} | {read_bandwidth[0]:.1f}, {read_bandwidth[1]:.1f} | {share_of_bandwidth:.0%} | "
              "{computed_share:.1%} | {active_share:.1%} |".format(**result), flush=True)
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1))


if __name__ == "__main__":
    main()
