#!/usr/bin/env python3
"""How fast --adapt finds a hot set whose popularity was permuted, and what it costs where nothing changes.

Firing counts of a text are taken first. Recovery: a server placed by these counts (fresh), one placed by the same counts
permuted within each layer with --adapt=on (adapting), and one with --adapt=off (wrong) generate the same streams by turns; the
table has each one's hot share of the neurons computed and its tokens/s over the tokens generated so far. Cost: two servers
placed by the right counts, --adapt=on and off, generate by turns.

    tests/bench/adapt_bench.py --bin build/release/bin --model model.gguf --vram-budget 8 --text corpus.txt --device cuda
"""

import argparse
import contextlib
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import gpu_bench

sys.path.append(str(Path(__file__).resolve().parents[1] / "contract"))
from gguf_tensors import permute_counts


def start(options: argparse.Namespace, folder: Path, *flags: str) -> gpu_bench.Servers:
    """`flags`: further ones of gpu_worker."""
    folder.mkdir()
    return gpu_bench.Servers(options, options.device, folder, flags)


def run(options: argparse.Namespace, servers: gpu_bench.Servers, stream: int) -> dict:
    _, told = gpu_bench.finish(servers, gpu_bench.generate(options, servers, stream))
    return {"tokens_per_second": gpu_bench.tokens_per_second(told, "decode"),
            "hot_share": float(re.search(r"computed, ([0-9.]+) % of those hot", told).group(1)) / 100}


def measure_recovery(options: argparse.Namespace, folder: Path, right: Path, wrong: Path) -> list:
    placed = {"fresh": [f"--profile={right}", "--adapt=off"], "adapting": [f"--profile={wrong}", "--adapt=on"],
              "wrong": [f"--profile={wrong}", "--adapt=off"]}
    rows = []
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(start(options, folder / name, *flags)) for name, flags in placed.items()}
        print("| tokens | " + " | ".join(f"{name}: hot share, tokens/s" for name in placed) + " |")
        print("| --- " * (1 + len(placed)) + "|")
        for stream in range(options.streams):
            row = {name: run(options, each, stream + 1) for name, each in servers.items()}
            rows.append({"tokens": (stream + 1) * options.tokens, **row})
            cells = (f"{row[name]['hot_share']:.3f}, {row[name]['tokens_per_second']:.1f}" for name in placed)
            print(f"| {rows[-1]['tokens']} | " + " | ".join(cells) + " |", flush=True)
    return rows


def measure_cost(options: argparse.Namespace, folder: Path, right: Path) -> dict:
    runs = {"on": [], "off": []}
    with contextlib.ExitStack() as stack:
        servers = {adapt: stack.enter_context(start(options, folder / adapt, f"--profile={right}", f"--adapt={adapt}"))
                   for adapt in runs}
        for pair in range(options.pairs + 1):
            for adapt in (runs if pair % 2 else reversed(runs)):
                result = run(options, servers[adapt], pair + 1)
                if pair > 0:  # the first one loads and warms up
                    runs[adapt].append(result["tokens_per_second"])
    medians = {adapt: statistics.median(speeds) for adapt, speeds in runs.items()}
    cost = 1 - statistics.median(on / off for on, off in zip(runs["on"], runs["off"]))
    print(f"nothing changes: {medians['on']:.1f} tokens/s with --adapt=on, {medians['off']:.1f} with off; "
          f"median cost of {options.pairs} pairs {100 * cost:.2f} %", flush=True)
    return {"runs": runs, "medians": medians, "cost": cost}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    gpu_bench.add_server_options(parser)
    parser.set_defaults(device="host", tokens=256, threads=1)
    parser.add_argument("--text", type=Path, required=True, help="what the firing counts are taken of")
    parser.add_argument("--streams", type=int, default=12, help="of the recovery, one after another")
    parser.add_argument("--pairs", type=int, default=9, help="of streams for the cost; 0 leaves it out")
    parser.add_argument("--json", type=Path, help="append the result to this file, a line")
    options = parser.parse_args()
    if options.vram_budget == "0":
        parser.error("--vram-budget must leave some neurons cold")
    options.sequences, options.kv_tokens = 1, options.kv_tokens or options.context
    if options.device == "host":
        options.cpu_worker_flag.append("--spin-us=-1")  # both workers share the cores

    with tempfile.TemporaryDirectory(prefix="isotherm-bench.") as name:
        folder = Path(name)
        right, wrong = folder / "right.gguf", folder / "wrong.gguf"
        subprocess.run([options.bin / "isotherm", "profile", options.model, f"--text={options.text}", f"--out={right}",
                        f"--device={options.device}", f"--wait={options.wait}s"], check=True, stdout=subprocess.DEVNULL)
        permute_counts(right, wrong)
        result = {"model": options.model.name, "device": options.device, "vram_budget": options.vram_budget,
                  "predictor": options.predictor}
        if options.streams > 0:
            result["recovery"] = measure_recovery(options, folder, right, wrong)
        if options.pairs > 0:
            result["cost"] = measure_cost(options, folder, right)
    if options.json:
        with options.json.open("a") as out:
            out.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
