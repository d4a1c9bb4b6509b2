#!/usr/bin/env python3
"""Every kind of predictor on the demo model: what it keeps, what that costs in perplexity, what it reads, how fast.

The table of docs/predictors.md. Each kind is served by gateway and gpu_worker with every neuron hot; the text is scored window
by window, as tests/integration/perplexity_test.py does, and greedy continuations are timed one at a time.

    tests/bench/predictor_table.py --bin build/release/bin --text valid.txt trained=trained.gguf svd=svd.gguf

`kept / fire` is neurons computed over neurons that fire; recall is those that fire and were computed, over those that fire when
all are computed.
"""

import argparse
import os
import pathlib
import statistics
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests/integration"), str(ROOT / "tools/python")]

FLAGS = ("--kv-tokens=4096", "--max-prefill-rows=128", "--max-decode-rows=8")


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lowrank", nargs="*", metavar="NAME=FILE", help="demo models with low-rank predictors")
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build/release/bin")
    parser.add_argument("--text", type=pathlib.Path, required=True, help="a folder's tales/valid.txt")
    parser.add_argument("--windows", type=int, default=40, help="of 512 tokens to score; 504 are the whole text")
    parser.add_argument("--tokens", type=int, default=256, help="of each timed continuation")
    parser.add_argument("--repeats", type=int, default=3)
    return parser.parse_args()


def bytes_for_prediction(running, model, kind):
    """What prediction reads for a token."""
    if kind == "lowrank":
        from isotherm_tools.gguf_container import GgufFile

        return sum(tensor.size for name, tensor in GgufFile(model).tensors.items() if ".pred_" in name or ".fc" in name)
    return running.metrics("gpu_worker").total("isotherm_device_memory_bytes", purpose="predictor")


def measure(options, kind, model):
    import client
    import cluster
    import perplexity_test
    import tales

    with cluster.Cluster(gpu_worker=[*FLAGS, f"--predictor={kind}"], cpu_worker=None, model=model) as running:
        windows = tales.validation_windows(running)[:options.windows]
        responses = perplexity_test.score_all(running, windows)
        metrics = running.metrics("gpu_worker")
        computed, active = (metrics.total(f"isotherm_neurons_{what}_total") for what in ("computed", "active"))
        client.generate(running, client.greedy(tales.prompts(1)[0], options.tokens))  # warm-up
        speeds = []
        for prompt in tales.prompts(options.repeats):
            timings = client.generate(running, client.greedy(prompt, options.tokens)).complete.timings
            speeds.append((options.tokens - 1) / timings.decode.ToTimedelta().total_seconds())
        return {"perplexity": perplexity_test.perplexity_of(responses),
                "scored": sum(len(response.log_probabilities) for response in responses), "computed": computed,
                "active": active, "speeds": speeds, "bytes": bytes_for_prediction(running, model, kind)}


def main():
    options = parse_arguments()
    os.environ["ISOTHERM_BIN"] = str(options.bin.resolve())
    os.environ["ISOTHERM_TEST_DATA"] = str(options.text.resolve().parents[1])
    import suite

    rows = [("all", "all", suite.MODEL), ("gate", "gate", suite.MODEL), ("sketch", "sketch", suite.MODEL)]
    for each in options.lowrank:
        name, _, file = each.partition("=")
        rows.append((f"lowrank, {name}", "lowrank", pathlib.Path(file).resolve()))
    results = [(name, measure(options, kind, model)) for name, kind, model in rows]
    exact = dict(results)["gate"]
    print(f"{exact['scored']} scored tokens; medians of {options.repeats} x {options.tokens} tokens, batch 1")
    print("| predictor | recall | precision | kept / fire | perplexity | against exact | KB a token for prediction "
          "| tokens/s (min-max) |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, r in results:
        speeds = r["speeds"]
        print(f"| {name} | {100 * r['active'] / exact['active']:.2f} % | {100 * r['active'] / r['computed']:.1f} % | "
              f"{r['computed'] / exact['active']:.2f} | {r['perplexity']:.4f} | "
              f"{100 * (r['perplexity'] / exact['perplexity'] - 1):+.3f} % | {r['bytes'] / 1e3:.0f} | "
              f"{statistics.median(speeds):.0f} ({min(speeds):.0f}-{max(speeds):.0f}) |")


if __name__ == "__main__":
    main()
