"""The least time of a decode step on a machine, from bytes that a run counted and rates measured on that machine.

A layer is a barrier: its neurons are known when its attention and its predictor are through, and then GPU, bus and CPU
worker compute theirs side by side. So that a step takes at least

    dense / gpu + max(hot / gpu, bus / bus rate, cold / cpu)

    dense   attention's weights and the KV cache's rows, the predictor, the head: once for all rows of the step
    hot     bundles of the hot neurons that fire for one row. Several rows want more, and less than their sum: how many is not
            counted, so that this is from below
    bus     cold bundles that the GPU reads over the bus, cold those that the CPU worker reads, each once for all rows

Layers are taken to be alike, which is from below, too: the sum of their maxima is at least the maximum of their sums. A CPU
worker that is told a layer early what to fetch (--look-ahead) reads during attention, which the barrier denies it: then
a run can pass this roofline, up to the one where nothing waits, max((dense + hot) / gpu, bus / bus rate, cold / cpu). The model is
that of S. Williams, A. Waterman, D. Patterson: Roofline (2009), with memories as the only limit; what caches keep from one step to the
next would lift it. On device host all bytes come from one memory, one after another.
"""

import dataclasses
import re
from typing import NamedTuple

_ID_BYTES = 4  # that lie beside each hot bundle


class Rates(NamedTuple):
    """Bytes a second; None: not known. With `one_memory` that of the CPU is all there is."""
    cpu: float | None = None
    gpu: float | None = None
    bus: float | None = None
    one_memory: bool = False


class Shape(NamedTuple):
    layers: int
    ffn: int


@dataclasses.dataclass
class StepBytes:
    """What a decode step reads."""
    attention: float
    kv: float
    predictor: float
    head: float
    hot: float
    bus: float = 0
    cold: float = 0

    @property
    def dense(self) -> float:
        return self.attention + self.kv + self.predictor + self.head


def seconds(read: StepBytes, rates: Rates) -> dict[str, float] | None:
    """Of a decode step by what it waits for, `step` and, had it no barriers, `step_without_barriers`. None where a rate is
    missing."""
    of_part = {"dense": rates.gpu, "hot": rates.gpu, "bus": rates.bus, "cold": rates.cpu}
    if rates.one_memory:
        of_part = dict.fromkeys(of_part, rates.cpu)
    if any(getattr(read, part) > 0 and not rate for part, rate in of_part.items()):
        return None
    parts = {part: getattr(read, part) / rate if rate else 0.0 for part, rate in of_part.items()}
    if rates.one_memory:
        return {**parts, "step": sum(parts.values()), "step_without_barriers": sum(parts.values())}
    beside = max(parts["bus"], parts["cold"])
    return {**parts, "step": parts["dense"] + max(parts["hot"], beside),
            "step_without_barriers": max(parts["dense"] + parts["hot"], beside)}


def kernel_rate(said: str, kernel: str) -> float:
    """Bytes a second of a kernel that gpu_kernel_bench lists."""
    return 1e9 * float(re.search(rf"^{re.escape(kernel)}.* ([0-9.]+) GB/s$", said, re.MULTILINE).group(1))


class Counted:
    """What the workers' counters say of the steps between two scrapes of each, (before, after). The two workers are not scraped at
    the same moment, so each one's counters are taken by its own steps or exchanges."""

    def __init__(self, gpu_worker: tuple, cpu_worker: tuple | None):
        self._gpu, self._cpu = gpu_worker, cpu_worker
        self.steps = self._gpu_total("isotherm_steps_total")
        self.rows = self._gpu_total("isotherm_step_rows_sum") / self.steps if self.steps else 0.0

    @staticmethod
    def _difference(scrapes: tuple, name: str) -> float:
        before, after = scrapes
        return after.total(name) - before.total(name)

    def _gpu_total(self, name: str) -> float:
        return self._difference(self._gpu, name)

    def a_step(self, name: str) -> float:
        """Of a counter of the GPU worker."""
        return self._gpu_total(name) / self.steps

    def of_cpu_worker(self, name: str) -> float:
        """Of a counter of the CPU worker, in a step."""
        exchanges = self._difference(self._cpu, "isotherm_cpu_worker_exchanges_total") if self._cpu else 0
        if not exchanges:
            return 0.0
        return self._difference(self._cpu, name) / exchanges * self.a_step("isotherm_exchange_seconds_count")

    def cpu_read_rate(self) -> float | None:
        """Bytes a second while the CPU worker computed."""
        taken = self.of_cpu_worker("isotherm_cpu_worker_exchange_compute_seconds_sum")
        return self.of_cpu_worker("isotherm_cpu_worker_neuron_bytes_total") / taken if taken else None

    def cpu_read_bandwidth(self) -> float | None:
        """Bytes a second that the CPU worker measured after loading."""
        return self._cpu[1].total("isotherm_cpu_worker_read_bandwidth_bytes_per_second") if self._cpu else None

    def exchange_us(self) -> dict[str, float]:
        """Mean microseconds of an exchange: from request to answer, of that computing, and what the GPU worker waited."""
        exchanges = self.a_step("isotherm_exchange_seconds_count")
        if not exchanges:
            return {}
        return {"total": 1e6 * self.a_step("isotherm_exchange_seconds_sum") / exchanges,
                "computing": 1e6 * self.of_cpu_worker("isotherm_cpu_worker_exchange_compute_seconds_sum") / exchanges,
                "wait": 1e6 * self.a_step("isotherm_cpu_worker_wait_seconds_total") / exchanges}

    def coverage(self) -> float:
        """Hot share of the neurons computed."""
        return self._gpu_total("isotherm_hot_neurons_computed_total") / self._gpu_total("isotherm_neurons_computed_total")

    def planned(self, purpose: str) -> float:
        """Bytes of device memory."""
        return self._gpu[1].total("isotherm_device_memory_bytes", purpose=purpose)

    def hot_bundle_bytes(self, shape: Shape) -> float:
        count = round(self._gpu[1].total("isotherm_hot_neurons_ratio") * shape.layers * shape.ffn)
        return self.planned("hot neurons") / count - _ID_BYTES if count else 0.0


def step_bytes(counted: Counted, shape: Shape, *, kv_bytes: float, gates_in_predictor: bool, has_bus: bool) -> StepBytes:
    """Bytes of a mean step; `kv_bytes`: of the KV rows that it reads. `gates_in_predictor`: the predictor is the gate matrix, so
    that bundles are read without their gate rows."""
    computed = counted.a_step("isotherm_neurons_computed_total")
    hot = counted.a_step("isotherm_hot_neurons_computed_total")
    cold_computed = counted.of_cpu_worker("isotherm_cpu_worker_neurons_computed_total")
    cold = counted.of_cpu_worker("isotherm_cpu_worker_neuron_bytes_total")
    # The bus has every so many-th neuron by number, which says nothing of how often it fires.
    bus = cold * max(0.0, computed - hot - cold_computed) / cold_computed if has_bus and cold_computed else 0.0
    firing = counted.a_step("isotherm_neurons_active_total") - counted.of_cpu_worker("isotherm_cpu_worker_neurons_active_total")
    firing_share = firing / (computed - cold_computed) if computed > cold_computed else 0.0  # of those hot or over the bus
    bundle = counted.hot_bundle_bytes(shape)
    if gates_in_predictor and bundle:
        bundle -= counted.planned("predictor") / (shape.layers * shape.ffn)
    return StepBytes(attention=counted.planned("attention"), kv=kv_bytes, predictor=counted.planned("predictor"),
                     head=counted.planned("head"), hot=bundle * hot * firing_share / counted.rows, bus=bus, cold=cold)
