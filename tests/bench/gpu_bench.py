#!/usr/bin/env python3
"""Decode speed of gpu_worker's device cuda beside a CPU worker, its text against device host, and how far from a roofline it is.

Each run starts the three processes on Unix sockets, generates greedily and reads the statistics that `isotherm generate`
prints. The first run of each number of sequences is not timed, but the workers' counters are read when it begins and ends
(roofline.py). `--compare` runs device host first and fails unless device cuda's text is the same.

    tests/bench/gpu_bench.py --bin build/release/bin --model model.gguf --vram-budget 8 --sequences 1 4 16 --json result.json
    tests/bench/bench_table.py result.json
"""

import argparse
import dataclasses
import functools
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import phases
import roofline
from decode_bench import read_bandwidth

sys.path.append(str(Path(__file__).resolve().parents[1] / "integration"))
import metrics
from process import free_port

WORKERS = ("gpu_worker", "cpu_worker")
KV_BLOCK = 16  # tokens that the KV cache's room is counted in
# Streams end one after another: of so few steps those at the end are a tenth.
MIN_STEPS = 20


class Servers:
    """gateway, gpu_worker and cpu_worker; their logs are kept in `folder`."""

    def __init__(self, options: argparse.Namespace, device: str, folder: Path, flags: tuple[str, ...] = ()):
        self.folder = folder
        self.gateway = f"unix:{folder}/gateway.sock"
        self.processes = []
        self._metrics_ports = {}
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
        port = self._metrics_ports[name] = free_port()
        with (self.folder / f"{name}.log").open("w") as log:
            self.processes.append(subprocess.Popen(
                [options.bin / name, f"--model={options.model}", f"--metrics-listen=127.0.0.1:{port}", *flags],
                stdout=log, stderr=log))

    def scrape(self, name: str) -> metrics.Metrics | None:
        """None where there is no such process."""
        return metrics.scrape(self._metrics_ports[name]) if name in self._metrics_ports else None

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


def first_words(streams: list[subprocess.Popen]) -> None:
    """Returns when each has written something: all prompts are through."""
    for stream in streams:
        os.read(stream.stdout.fileno(), 1 << 16)


def count(options: argparse.Namespace, servers: Servers, sequences: int) -> tuple[roofline.Counted, list[str]]:
    """The counters of the steps in which all of so many streams are decoded, and the streams' statistics."""
    streams = [generate(options, servers, stream) for stream in range(sequences)]
    first_words(streams)
    before = {name: servers.scrape(name) for name in WORKERS}
    while all(stream.poll() is None for stream in streams):
        time.sleep(0.001)
    after = {name: servers.scrape(name) for name in WORKERS}
    told = [finish(servers, stream)[1] for stream in streams]
    gpu_worker, cpu_worker = ((before[name], after[name]) if before[name] else None for name in WORKERS)
    return roofline.Counted(gpu_worker, cpu_worker), told


def kv_bytes(options: argparse.Namespace, counted: roofline.Counted, told: list[str]) -> float:
    """Of the KV rows that a step reads when half of the tokens are there."""
    prompts = [int(re.search(r"prefill   (\d+) tokens", each).group(1)) for each in told]
    capacity = options.kv_tokens // KV_BLOCK * KV_BLOCK
    return counted.planned("KV cache") / capacity * (statistics.mean(prompts) + options.tokens / 2) * counted.rows


def against_roofline(options: argparse.Namespace, servers: Servers, sequences: int, rates: roofline.Rates) -> dict:
    """What a run reads, and how fast that could be read; without `roofline` where a rate is missing, and nothing where the
    streams were over before they had been decoded together for long."""
    counted, told = count(options, servers, sequences)
    if counted.steps < MIN_STEPS:
        print(f"    {sequences} sequences: decoded together for {counted.steps:.0f} steps, too few to count; raise --tokens",
              flush=True)
        return {}
    cpu_read_bandwidth = counted.cpu_read_bandwidth()
    if not rates.one_memory:
        rates = rates._replace(cpu=cpu_read_bandwidth)
    predictor = re.search(r"predictor (\w+)", told[0]).group(1)
    read = roofline.step_bytes(counted, options.shape, kv_bytes=kv_bytes(options, counted, told),
                               gates_in_predictor=predictor == "gate", has_bus=not rates.one_memory)
    result = {"counted_steps": counted.steps, "rows_a_step": counted.rows, "coverage": counted.coverage(),
              "cpu_read_rate": counted.cpu_read_rate(), "cpu_read_bandwidth": cpu_read_bandwidth, "rates": rates._asdict(),
              "step_bytes": dataclasses.asdict(read), "exchange_us": counted.exchange_us()}
    if least := roofline.seconds(read, rates):
        result["roofline"] = {"seconds": least, "tokens_per_second": counted.rows / least["step"],
                              "tokens_per_second_without_barriers": counted.rows / least["step_without_barriers"]}
    return result


def decode(options: argparse.Namespace, servers: Servers, sequences: int, rates: roofline.Rates | None) -> dict:
    """Tokens a second of so many streams at once, all together; without `rates` that alone."""
    result = against_roofline(options, servers, sequences, rates) if rates is not None else {}  # also warms up
    runs = []
    for _ in range(options.repeats):
        streams = [generate(options, servers, stream) for stream in range(sequences)]
        finished = [finish(servers, stream)[1] for stream in streams]
        runs.append(sum(tokens_per_second(stream, "decode") for stream in finished))
    result.update(sequences=sequences, decode_tokens_per_second=statistics.median(runs), spread=[min(runs), max(runs)],
                  statistics=finished[-1].splitlines())
    if "roofline" in result:
        result["roofline"]["ratio"] = result["decode_tokens_per_second"] / result["roofline"]["tokens_per_second"]
    return result


def time_operators(options: argparse.Namespace) -> dict:
    """Of the fewest streams that are measured, on servers of their own."""
    with tempfile.TemporaryDirectory(prefix="isotherm-bench.") as folder:
        with Servers(options, "cuda", Path(folder), ("--time_operators",)) as servers:
            streams = [generate(options, servers, stream) for stream in range(min(options.batches))]
            for stream in streams:
                finish(servers, stream)
        operators = phases.operator_times(servers.log("gpu_worker"))
    return {"sequences": min(options.batches), "operators": operators, "us_a_layer": phases.phases(operators, options.widths)}


def device_rates(options: argparse.Namespace) -> roofline.Rates:
    """Of device cuda as gpu_kernel_bench measures them, which lies beside the binaries or among the build's tests."""
    if options.device == "host":
        return roofline.Rates(cpu=read_bandwidth(options.bin), one_memory=True)
    for program in (options.bin / "gpu_kernel_bench", options.bin.parent / "tests/gpu_kernel_bench"):
        if program.exists():
            said = subprocess.run([program, "rates"], capture_output=True, text=True, check=True).stdout
            rate = functools.partial(roofline.kernel_rate, said)
            return roofline.Rates(gpu=max(rate("copy of 1 GiB"), rate("product with 1 GiB")), bus=rate("copy from the host"))
    print("    no gpu_kernel_bench beside the binaries: no roofline", flush=True)
    return roofline.Rates()


def shape_of(options: argparse.Namespace) -> tuple[roofline.Shape, phases.Widths]:
    said = subprocess.run([options.bin / "isotherm", "inspect", options.model], capture_output=True, text=True, check=True).stdout
    number = lambda pattern: int(re.search(pattern, said, re.MULTILINE).group(1))
    head = number(r"^  attention .* heads of (\d+),")
    return (roofline.Shape(number(r"^  layers +(\d+)$"), number(r"^  FFN +(\d+) neurons")),
            phases.Widths(number(r"^  hidden size +(\d+)$"), head * number(r"^  attention +(\d+) heads"),
                          head * number(r", (\d+) for keys and values$"), number(r"^  vocabulary +(\d+) tokens")))


def measure(options: argparse.Namespace, device: str, rates: roofline.Rates | None) -> dict:
    with tempfile.TemporaryDirectory(prefix="isotherm-bench.") as folder:
        memory = DeviceMemory(Path(folder), options.devices) if device == "cuda" else None
        with Servers(options, device, Path(folder)) as servers:
            text, _ = finish(servers, generate(options, servers))  # loads, warms up, captures
            batches = [decode(options, servers, sequences, rates) for sequences in options.batches]
            prefills = {tokens: prefill(options, servers, tokens) for tokens in options.prefill}
            plan = re.search(r"plan: (.*)", servers.log("gpu_worker"))
            return {"device": device, "text": text, "batches": batches, "prefill_tokens_per_second": prefills,
                    "plan": plan.group(1) if plan else "", "vram_mib": memory.peaks() if memory else []}


def show(result: dict) -> None:
    for batch in result["batches"]:
        line = ("| {model} | {vram_budget} GiB | {predictor} | ".format(**result) +
                "{sequences} | {decode_tokens_per_second:.1f} ({spread[0]:.1f}-{spread[1]:.1f}) |".format(**batch))
        if least := batch.get("roofline"):
            line += f" {least['ratio']:.2f} of {least['tokens_per_second']:.1f} |"
        print(line, *(f"    {told}" for told in batch["statistics"] if told), sep="\n", flush=True)
    for tokens, (least, median, most) in result["prefill_tokens_per_second"].items():
        print(f"    prefill of {tokens} tokens: {median:.0f} tokens/s ({least:.0f}-{most:.0f})", flush=True)
    if result["vram_mib"]:
        print(f"    {' + '.join(map(str, result['vram_mib']))} MiB of device memory", flush=True)
    for name, times in sorted(result.get("timed", {}).get("operators", {}).items(), key=lambda item: -item[1]["sum_us"]):
        print("    {:<32} {times:>6} times, median {median_us:8.2f} us".format(name, **times), flush=True)


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """What Servers and generate read, but for `sequences`."""
    parser.add_argument("--bin", type=Path, default=Path("build/release/bin"))
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--vram-budget", default="0", help="GiB; 0: every neuron is hot; +GiB: above the least")
    parser.add_argument("--device", choices=("cuda", "host"), default="cuda")
    parser.add_argument("--devices", default="0", help="GPUs that share the layers")
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("--predictor", default="auto")
    parser.add_argument("--prompt", default="The king said to his daughter,")
    parser.add_argument("--tokens", type=int, default=64, help="of a stream")
    parser.add_argument("--stream-rows", type=int, help="of gpu_worker (default: its own)")
    parser.add_argument("--gpu-worker-flag", action="append", default=[], help="one more for gpu_worker: --gpu-worker-flag=--look-ahead=off")
    parser.add_argument("--cpu-worker-flag", action="append", default=[])
    parser.add_argument("--context", type=int, default=512)
    parser.add_argument("--kv-tokens", type=int, help="that the KV cache holds (default: a context for each stream)")
    parser.add_argument("--threads", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="of the CPU worker")
    parser.add_argument("--wait", type=int, default=600, help="seconds for the model to load")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_server_options(parser)
    parser.add_argument("--prefill", type=int, nargs="*", default=[], help="also measure prompts of so many tokens")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1], help="streams at once, one number after another; their "
                        "tokens/s are added up")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--time-operators", action=argparse.BooleanOptionalAction, default=False,
                        help="load once more and time the operators of decode steps")
    parser.add_argument("--compare", action="store_true", help="fail unless device host gives the same text first")
    parser.add_argument("--json", type=Path, help="append the result to this file, a line each")
    options = parser.parse_args()
    options.batches = options.sequences
    options.sequences = max(options.batches)  # that the servers serve
    options.kv_tokens = options.kv_tokens or options.context * options.sequences
    options.shape, options.widths = shape_of(options)

    reference = measure(options, "host", rates=None) if options.compare else None
    result = measure(options, options.device, device_rates(options))
    result.update(model=options.model.name, vram_budget=options.vram_budget, predictor=options.predictor, tokens=options.tokens,
                  context=options.context, kv_tokens=options.kv_tokens, threads=options.threads)
    if reference is not None:
        result["same_text_as_host"] = reference["text"] == result["text"]
        result["host_tokens_per_second"] = reference["batches"][0]["decode_tokens_per_second"]
    if options.time_operators and options.device == "cuda":
        result["timed"] = time_operators(options)
    show(result)
    if options.json:
        with options.json.open("a") as out:
            out.write(json.dumps(result) + "\n")
    if reference is not None and not result["same_text_as_host"]:
        sys.exit(f"texts differ:\nhost: {reference['text']}\n{options.device}: {result['text']}")


if __name__ == "__main__":
    main()
