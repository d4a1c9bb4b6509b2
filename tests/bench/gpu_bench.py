#!/usr/bin/env python3
"""Decode speed of gpu_worker's device cuda beside a CPU worker, and its text against device host.

Each run starts the three processes on Unix sockets, generates greedily and reads the statistics that `isotherm generate`
prints. `--compare` runs device host first and fails unless device cuda's text is the same.

    tests/bench/gpu_bench.py --bin build/release/bin --model model.gguf --vram-budget 8 --json result.json
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

class Servers:
    """gateway, gpu_worker and cpu_worker; their logs are kept in `folder`."""

    def __init__(self, options: argparse.Namespace, device: str, folder: Path, flags: tuple[str, ...] = ()):
        self.folder = folder
        self.gateway = f"unix:{folder}/gateway.sock"
        self.processes = []
        gpu = [f"--device={device}", f"--kv-tokens={options.kv_tokens}", f"--ctx={options.context}",
               f"--max-decode-rows={options.sequences}", f"--predictor={options.predictor}", f"--kv-type={options.kv_type}",
               "--nosave-profile"]
        if options.stream_rows is not None:
            gpu.append(f"--stream-rows={options.stream_rows}")
        if device == "cuda" and "," in options.devices:
            gpu.append(f"--devices={options.devices}")
        if budget := budget_of(options, device):
            gpu += [f"--vram-budget={budget}", f"--cpu-worker=unix:{folder}/cpu.sock"]
            self._start(options, "cpu_worker", f"--listen=unix:{folder}/cpu.sock", f"--threads={options.threads}",
                        *options.cpu_worker_flag)
        self._start(options, "gpu_worker", f"--listen=unix:{folder}/gpu.sock", *gpu, *flags, *options.gpu_worker_flag)
        self._start(options, "gateway", f"--listen={self.gateway}", f"--worker=unix:{folder}/gpu.sock")

    def _start(self, options: argparse.Namespace, name: str, *flags: str) -> None:
        with (self.folder / f"{name}.log").open("w") as log:
            self.processes.append(subprocess.Popen(
                [options.bin / name, f"--model={options.model}", "--metrics-listen=", *flags], stdout=log, stderr=log))

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def __enter__(self) -> "Servers":
        return self

    def __exit__(self, *_) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait()


def budget_of(options: argparse.Namespace, device: str) -> float:
    """GiB; `+0.01` is so much more than the least that device cuda says it needs."""
    if not options.vram_budget.startswith("+"):
        return float(options.vram_budget)
    refused = subprocess.run(
        [options.bin / "gpu_worker", f"--model={options.model}", f"--device={device}", "--vram-budget=0.001",
         "--listen=127.0.0.1:0", "--metrics-listen=", f"--kv-tokens={options.kv_tokens}", f"--ctx={options.context}",
         f"--max-decode-rows={options.sequences}", f"--predictor={options.predictor}", f"--devices={options.devices}"],
        capture_output=True, text=True, check=False)
    least = re.search(r"need ([0-9.]+) GiB", refused.stdout + refused.stderr)
    if least is None:
        raise SystemExit(f"gpu_worker does not name its least budget:\n{refused.stderr}")
    return float(least.group(1)) + float(options.vram_budget)


class DeviceMemory:
    """MiB that each device says are in use: before anything starts, and the most of what follows."""

    def __init__(self, folder: Path, devices: str):
        self.query = ["nvidia-smi", "--query-gpu=index,memory.used", "--format=csv,noheader,nounits", f"--id={devices}"]
        self.before = self._most(subprocess.run(self.query, capture_output=True, text=True, check=True).stdout)
        self.file = folder / "memory.log"
        with self.file.open("w") as log:
            self.process = subprocess.Popen([*self.query, "--loop-ms=100"], stdout=log)

    @staticmethod
    def _most(lines: str) -> dict[int, int]:
        most: dict[int, int] = {}
        for line in lines.splitlines():
            device, used = map(int, line.split(","))
            most[device] = max(used, most.get(device, 0))
        return most

    def peaks(self) -> list[int]:
        self.process.terminate()
        self.process.wait()
        return [used - self.before[device] for device, used in self._most(self.file.read_text()).items()]


def operator_times(log: str) -> dict[str, dict]:
    """Microseconds by operator, of what gpu_worker logs at its end."""
    found = re.findall(r"operator time: (.*): (\d+) times, median ([0-9.]+) us, sum ([0-9.]+) us", log)
    return {name: {"times": int(times), "median_us": float(median), "sum_us": float(total)}
            for name, times, median, total in found}


def generate(options: argparse.Namespace, servers: Servers, stream: int = 0) -> subprocess.Popen:
    """Starts stream number `stream`; each has a prompt of its own, as equal ones would want equal neurons."""
    prompt = options.prompt if stream == 0 else f"{options.prompt} {stream} of {options.sequences * 7919 // stream}"
    return subprocess.Popen(
        [options.bin / "isotherm", "generate", f"--address={servers.gateway}", f"--wait={options.wait}s",
         "--temperature=0", "--ignore-eos", f"--max-tokens={options.tokens}", prompt],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def prompt_of(options: argparse.Namespace, servers: Servers, tokens: int, seed: int) -> str:
    """Words of exactly so many tokens; another seed shares no prefix but the token that begins a sequence."""
    letters = random.Random(seed)
    words = []
    while True:
        listed = subprocess.run([options.bin / "isotherm", "tokenize", f"--address={servers.gateway}", "--ids-only",
                                 f"--wait={options.wait}s", " ".join(words) or "a"], capture_output=True, text=True, check=True)
        missing = tokens - len(listed.stdout.split())
        if missing == 0:
            return " ".join(words)
        if missing < 0:
            del words[missing // 2 - 1:]
        # No word has more tokens than letters, and a blank; the last ones come letter by letter.
        for _ in range(max(1, missing // 6)):
            words.append("".join(letters.choices("abcdefghijklmnopqrstuvwxyz", k=4 if missing > 12 else 1)))


def prefill(options: argparse.Namespace, servers: Servers, tokens: int) -> list[float]:
    """Least, median and most prompt tokens a second of prompts of so many tokens, one after another."""
    speeds = []
    for seed in range(1 + options.repeats):
        prompt = prompt_of(options, servers, tokens, seed)
        process = subprocess.Popen(
            [options.bin / "isotherm", "generate", f"--address={servers.gateway}", "--temperature=0", "--ignore-eos",
             "--max-tokens=2", prompt], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        _, statistics_text = finish(servers, process)
        if f"prefill   {tokens} tokens" not in statistics_text:
            raise SystemExit(f"not {tokens} prompt tokens:\n{statistics_text}")
        speeds.append(tokens_per_second(statistics_text, "prefill"))
    speeds = speeds[1:]  # the first one warms up
    return [min(speeds), statistics.median(speeds), max(speeds)]


def finish(servers: Servers, process: subprocess.Popen) -> tuple[str, str]:
    """Text and statistics."""
    text, statistics_text = process.communicate()
    if process.returncode != 0:
        logs = "\n".join(servers.log(path.stem) for path in servers.folder.glob("*.log"))
        raise SystemExit(f"generate failed:\n{statistics_text}\n{logs}")
    return text, statistics_text


def tokens_per_second(statistics_text: str, phase: str) -> float:
    return float(re.search(rf"{phase} .* ([0-9.]+) tokens/s", statistics_text).group(1))


def time_operators(options: argparse.Namespace) -> dict[str, dict]:
    with tempfile.TemporaryDirectory(prefix="isotherm-bench.") as folder:
        with Servers(options, "cuda", Path(folder), ("--time_operators",)) as servers:
            streams = [generate(options, servers, stream) for stream in range(options.sequences)]
            for stream in streams:
                finish(servers, stream)
        return operator_times(servers.log("gpu_worker"))


def measure(options: argparse.Namespace, device: str) -> dict:
    with tempfile.TemporaryDirectory(prefix="isotherm-bench.") as folder:
        memory = DeviceMemory(Path(folder), options.devices) if device == "cuda" else None
        with Servers(options, device, Path(folder)) as servers:
            text, _ = finish(servers, generate(options, servers))  # loads, warms up, captures
            runs = []
            for _ in range(options.repeats):
                streams = [generate(options, servers, stream) for stream in range(options.sequences)]
                finished = [finish(servers, stream)[1] for stream in streams]
                runs.append(sum(tokens_per_second(stream, "decode") for stream in finished))
            prefills = {tokens: prefill(options, servers, tokens) for tokens in options.prefill}
            plan = re.search(r"plan: (.*)", servers.log("gpu_worker"))
            return {"device": device, "text": text, "decode_tokens_per_second": statistics.median(runs),
                    "spread": [min(runs), max(runs)], "statistics": finished[-1].splitlines(),
                    "prefill_tokens_per_second": prefills,
                    "plan": plan.group(1) if plan else "", "vram_mib": memory.peaks() if memory else []}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=Path, default=Path("build/release/bin"))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--vram-budget", default="0", help="GiB; 0: every neuron is hot; +GiB: above the least")
    parser.add_argument("--devices", default="0", help="GPUs that share the layers")
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("--predictor", default="auto")
    parser.add_argument("--prompt", default="The king said to his daughter,")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--prefill", type=int, nargs="*", default=[], help="also measure prompts of so many tokens")
    parser.add_argument("--stream-rows", type=int, help="of gpu_worker (default: its own)")
    parser.add_argument("--gpu-worker-flag", action="append", default=[], help="one more for gpu_worker: --gpu-worker-flag=--look-ahead=off")
    parser.add_argument("--cpu-worker-flag", action="append", default=[])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--kv-tokens", type=int, help="that the KV cache holds (default: a context for each stream)")
    parser.add_argument("--sequences", type=int, default=1, help="streams at once; their tokens/s are added up")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="of the CPU worker")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--wait", type=int, default=600, help="seconds for the model to load")
    parser.add_argument("--time-operators", action="store_true", help="load once more and time the operators of decode steps")
    parser.add_argument("--compare", action="store_true", help="fail unless device host gives the same text")
    parser.add_argument("--json", type=Path, help="append the result to this file, a line each")
    options = parser.parse_args()
    options.kv_tokens = options.kv_tokens or options.context * options.sequences

    reference = measure(options, "host") if options.compare else None
    result = measure(options, "cuda")
    result.update(model=options.model.name, vram_budget=options.vram_budget, predictor=options.predictor,
                  sequences=options.sequences, tokens=options.tokens, threads=options.threads)
    if reference is not None:
        result["same_text_as_host"] = reference["text"] == result["text"]
        result["host_tokens_per_second"] = reference["decode_tokens_per_second"]
    print("| {model} | {vram_budget} GiB | {predictor} | {sequences} | {decode_tokens_per_second:.1f} "
          "({spread[0]:.1f}-{spread[1]:.1f}) |".format(**result), flush=True)
    for tokens, (least, median, most) in result["prefill_tokens_per_second"].items():
        print(f"    prefill of {tokens} tokens: {median:.0f} tokens/s ({least:.0f}-{most:.0f})", flush=True)
    print(f"    {' + '.join(map(str, result['vram_mib']))} MiB of device memory; " + "; ".join(result["statistics"]), flush=True)
    if options.time_operators:
        result["operators"] = time_operators(options)
        for name, times in sorted(result["operators"].items(), key=lambda item: -item[1]["sum_us"]):
            print("    {:<24} {times:>6} times, median {median_us:8.2f} us".format(name, **times), flush=True)
    if options.json:
        with options.json.open("a") as out:
            out.write(json.dumps(result) + "\n")
    if reference is not None and not result["same_text_as_host"]:
        sys.exit(f"texts differ:\nhost: {reference['text']}\ncuda: {result['text']}")


if __name__ == "__main__":
    main()
