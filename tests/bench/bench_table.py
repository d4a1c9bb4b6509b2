#!/usr/bin/env python3
"""The results of gpu_bench.py as tables in Markdown, and with --kernels what gpu_kernel_bench said beside its copy.

    tests/bench/bench_table.py result.json
    tests/bench/bench_table.py --kernels kernels.txt
"""

import argparse
import json
import re
import sys
from pathlib import Path

from phases import EXCHANGE_OVERHEAD, PHASES

NONE = "-"


def row(*cells) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def header(*cells) -> list[str]:
    return [row(*cells), row(*["---"] * len(cells))]


def speed_cells(batch: dict) -> list[str]:
    """From decode tokens/s on."""
    cells = ["{decode_tokens_per_second:.1f} ({spread[0]:.1f}-{spread[1]:.1f})".format(**batch)]
    cells.append(f"{batch['coverage']:.1%}" if "coverage" in batch else NONE)
    if batch.get("cpu_read_rate") and batch.get("cpu_read_bandwidth"):
        cells.append(f"{batch['cpu_read_rate'] / 1e9:.1f}, {batch['cpu_read_rate'] / batch['cpu_read_bandwidth']:.0%}")
    else:
        cells.append(NONE)
    exchange = batch.get("exchange_us")
    cells.append("{total:.0f}, {computing:.0f}, {wait:.0f}".format(**exchange) if exchange else NONE)
    least = batch.get("roofline")
    if least is None:
        return cells + [NONE] * 3
    milliseconds = (f"{1e3 * least['seconds'][part]:.2f}" for part in ("dense", "hot", "bus", "cold"))
    return cells + [", ".join(milliseconds),
                    f"{least['tokens_per_second']:.1f}, {least['tokens_per_second_without_barriers']:.1f}", f"{least['ratio']:.2f}"]


def decode_table(results: list[dict]) -> list[str]:
    lines = header("model", "VRAM budget", "predictor", "sequences", "decode tokens/s (min-max)", "coverage",
                   "CPU worker GB/s, share of its read bandwidth", "exchange: total, computing, waited (us)",
                   "least ms of dense, hot, bus, cold", "roofline tokens/s, without barriers", "ratio")
    for result in results:
        lines += [row(result["model"], f"{result['vram_budget']} GiB", result["predictor"], batch["sequences"], *speed_cells(batch))
                  for batch in result["batches"]]
    return lines


def prefill_table(results: list[dict]) -> list[str]:
    rows = [row(result["model"], f"{result['vram_budget']} GiB", tokens, f"{median:.0f} ({least:.0f}-{most:.0f})")
            for result in results for tokens, (least, median, most) in result["prefill_tokens_per_second"].items()]
    return [*header("model", "VRAM budget", "prompt tokens", "prefill tokens/s (min-max)"), *rows] if rows else []


def phase_table(results: list[dict]) -> list[str]:
    rows = []
    for result in results:
        if timed := result.get("timed"):
            overhead = timed["operators"].get(EXCHANGE_OVERHEAD)
            rows.append(row(result["model"], timed["sequences"], *(f"{timed['us_a_layer'].get(phase, 0):.1f}" for phase in PHASES),
                            f"{overhead['median_us']:.1f}" if overhead else NONE))
    return [*header("model", "sequences", *(f"{phase} us" for phase in PHASES), "exchange overhead us"), *rows] if rows else []


def kernel_table(said: str) -> list[str]:
    lines = header("kernel", "us (min-max)", "GB/s", "share of the copy's")
    copy = None
    for line in said.splitlines():
        kernel = re.fullmatch(r"(.+?) +([0-9.]+) us \(([0-9.]+) to ([0-9.]+)\)(?: +([0-9.]+) GB/s)?", line)
        if kernel is None:
            lines.append(row(line, "", "", ""))
            continue
        name, median, least, most, rate = kernel.groups()
        copy = copy or float(rate)  # the first one listed
        lines.append(row(name, f"{median} ({least}-{most})", rate or NONE, f"{float(rate) / copy:.0%}" if rate else NONE))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--kernels", action="store_true")
    options = parser.parse_args()
    text = options.file.read_text()
    if options.kernels:
        tables = [kernel_table(text)]
    else:
        results = [json.loads(line) for line in text.splitlines()]
        tables = [decode_table(results), prefill_table(results), phase_table(results)]
    sys.stdout.write("\n\n".join("\n".join(table) for table in tables if table) + "\n")


if __name__ == "__main__":
    main()
