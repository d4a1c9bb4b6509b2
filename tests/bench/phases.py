"""The operators that gpu_worker --time-operators logs, as phases of a layer.

A timed operator starts when the one before it has ended, which it otherwise need not: phases do not add up to the time of a step
that is not timed, and what runs beside a step on a stream of its own (--look-ahead's prediction) is in none of them.
"""

import re
from typing import NamedTuple

# From the GPU's request to the answer, less the CPU worker's computing: logged beside the operators and no time of one.
EXCHANGE_OVERHEAD = "exchange overhead"
PHASES = ("attention", "predictor", "send", "hot", "merge", "head", "other")

_PHASE_OF = {
    "norm": "attention", "add and norm": "attention", "add": "attention", "matrix products": "attention", "bias": "attention",
    "RoPE": "attention", "attention": "attention",
    "relu": "predictor", "mask of all": "predictor", "mask from scores": "predictor", "sketch input": "predictor",
    "sketch scores": "predictor", "uploading masks": "predictor",
    "sending cold neurons": "send", "expecting cold neurons": "send", "joining a fork": "send",
    "gates": "hot", "gates and up projection": "hot", "up projection": "hot", "down projection": "hot",
    "clearing the FFN output": "hot",
    # The wait for the CPU worker's answer is part of merging it.
    "merging cold neurons": "merge", "merging cold neurons, add and norm": "merge", "uploading an answer": "merge", "merging an answer": "merge",
    "gather rows": "head", "log-probabilities": "head",
}


class Widths(NamedTuple):
    """Of a model, by which its matrices are told apart."""
    hidden: int
    query: int
    key: int
    vocabulary: int


def operator_times(log: str) -> dict[str, dict]:
    """Microseconds by operator, of what gpu_worker logs at its end."""
    found = re.findall(r"operator time: (.*): (\d+) times, median ([0-9.]+) us, sum ([0-9.]+) us", log)
    return {name: {"times": int(times), "median_us": float(median), "sum_us": float(total)}
            for name, times, median, total in found}


def phase_of(operator: str, widths: Widths) -> str:
    """A single product is told by its shape, "matrix product ROWS x COLUMNS": what is neither the head nor of attention is a
    predictor's factor, unless its rank is the width of the keys."""
    product = re.fullmatch(r"matrix product (\d+) x (\d+)", operator)
    if product is None:
        return _PHASE_OF.get(operator, "other")
    rows, columns = map(int, product.groups())
    if (rows, columns) == (widths.vocabulary, widths.hidden):
        return "head"
    of_attention = {(widths.hidden, widths.query), (widths.query, widths.hidden), (widths.key, widths.hidden)}
    return "attention" if (rows, columns) in of_attention else "predictor"


def phases(operators: dict[str, dict], widths: Widths) -> dict[str, float]:
    """Microseconds a layer by phase; of the head, a step. An operator counts with its median as often as it came."""
    layers = operators.get("attention", {"times": 0})["times"]  # passes times layers
    if layers == 0:
        return {}
    heads = max((times["times"] for name, times in operators.items() if phase_of(name, widths) == "head"), default=0)
    totals = dict.fromkeys(PHASES, 0.0)
    for name, times in operators.items():
        if name == EXCHANGE_OVERHEAD:
            continue
        phase = phase_of(name, widths)
        totals[phase] += times["median_us"] * times["times"] / (heads if phase == "head" else layers)
    return totals
