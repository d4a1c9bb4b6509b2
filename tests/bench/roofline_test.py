"""The arithmetic of the GPU benchmark, and how it reads what the programs say."""

import pathlib
import sys
import unittest

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "integration"))
import bench_table
import metrics
import phases
import roofline
import suite

SHAPE = roofline.Shape(layers=2, ffn=1000)
RATES = roofline.Rates(cpu=100.0, gpu=1000.0, bus=50.0)
BUNDLE = 24
STEPS, EXCHANGES = 20, 40


def scrape(series):
    return metrics.Metrics("\n".join(f"isotherm_{name} {value}" for name, value in series.items()))


def count(rows=1, late=1):
    """Steps in which each row computes 100 neurons: 60 hot, 30 of the CPU worker, 10 over the bus. 80 of them fire, of which the CPU
    worker computes 24. It is scraped `late` exchanges after the GPU worker, and read 360 bytes in each."""
    gpu_worker = {
        "steps_total": STEPS, "step_rows_sum": STEPS * rows, "neurons_computed_total": STEPS * rows * 100,
        "hot_neurons_computed_total": STEPS * rows * 60, "neurons_active_total": STEPS * rows * 80,
        "exchange_seconds_count": EXCHANGES, "exchange_seconds_sum": EXCHANGES * 5e-6,
        "cpu_worker_wait_seconds_total": EXCHANGES * 1e-6, "hot_neurons_ratio": 0.25,
        'device_memory_bytes{purpose="hot neurons"}': 500 * (BUNDLE + 4), 'device_memory_bytes{purpose="attention"}': 1000,
        'device_memory_bytes{purpose="predictor"}': 16000, 'device_memory_bytes{purpose="head"}': 300}
    seen = EXCHANGES + late
    cpu_worker = {
        "cpu_worker_exchanges_total": seen, "cpu_worker_neurons_computed_total": seen * rows * 15,
        "cpu_worker_neurons_active_total": seen * rows * 12, "cpu_worker_neuron_bytes_total": seen * 360,
        "cpu_worker_exchange_compute_seconds_sum": seen * 4e-6, "cpu_worker_read_bandwidth_bytes_per_second": 120e6}
    none = metrics.Metrics("")
    return roofline.Counted((none, scrape(gpu_worker)), (none, scrape(cpu_worker)))


def read_of(counted, gates_in_predictor=False, has_bus=True):
    return roofline.step_bytes(counted, SHAPE, kv_bytes=40, gates_in_predictor=gates_in_predictor, has_bus=has_bus)


class RooflineTest(unittest.TestCase):
    def test_a_layer_is_a_barrier(self):
        read = roofline.StepBytes(attention=600, kv=100, predictor=200, head=100, hot=500, bus=100, cold=300)
        least = roofline.seconds(read, RATES)
        self.assertEqual({"dense": 1.0, "hot": 0.5, "bus": 2.0, "cold": 3.0, "step": 4.0, "step_without_barriers": 3.0}, least)
        read.cold, read.bus, read.hot = 20, 10, 4000
        self.assertEqual((5.0, 5.0), tuple(roofline.seconds(read, RATES)[name] for name in ("step", "step_without_barriers")))

    def test_one_memory_gives_everything_in_turn(self):
        read = roofline.StepBytes(attention=600, kv=100, predictor=200, head=100, hot=500, cold=300)
        self.assertEqual(18.0, roofline.seconds(read, roofline.Rates(cpu=100.0, one_memory=True))["step"])

    def test_no_roofline_without_a_rate_that_it_needs(self):
        read = roofline.StepBytes(attention=600, kv=100, predictor=200, head=100, hot=500)
        self.assertIsNone(roofline.seconds(read, roofline.Rates(cpu=100.0)))
        self.assertEqual(1.5, roofline.seconds(read, roofline.Rates(gpu=1000.0))["step"], "no cold neuron, no other rate")
        read.cold = 1
        self.assertIsNone(roofline.seconds(read, roofline.Rates(gpu=1000.0)))

    def test_bytes_are_those_of_the_neurons_counted(self):
        read = read_of(count())
        self.assertEqual((1000, 40, 16000, 300), (read.attention, read.kv, read.predictor, read.head))
        self.assertAlmostEqual(720, read.cold)
        self.assertAlmostEqual(720 * 10 / 30, read.bus)
        self.assertAlmostEqual(60 * (80 - 24) / (100 - 30) * BUNDLE, read.hot)
        self.assertEqual(0, read_of(count(), has_bus=False).bus)
        # 16000 bytes of predictor are 8 of each of the 2 x 1000 neurons.
        self.assertAlmostEqual(read.hot * (BUNDLE - 8) / BUNDLE, read_of(count(), gates_in_predictor=True).hot)

    def test_rows_share_what_is_read_once(self):
        one, eight = read_of(count()), read_of(count(rows=8))
        self.assertEqual(8, count(rows=8).rows)
        for part in ("attention", "cold", "bus", "hot"):
            self.assertAlmostEqual(getattr(one, part), getattr(eight, part), msg=part)

    def test_the_cpu_workers_side(self):
        for late in (0, 3):
            counted = count(late=late)
            self.assertAlmostEqual(90e6, counted.cpu_read_rate())
            self.assertEqual(120e6, counted.cpu_read_bandwidth())
            self.assertAlmostEqual(0.6, counted.coverage())
            for name, wanted in (("total", 5), ("computing", 4), ("wait", 1)):
                self.assertAlmostEqual(wanted, counted.exchange_us()[name], msg=name)

    def test_without_cpu_worker(self):
        series = {"steps_total": 10, "step_rows_sum": 10, "neurons_computed_total": 100, "hot_neurons_computed_total": 100,
                  "neurons_active_total": 50, "hot_neurons_ratio": 1, 'device_memory_bytes{purpose="hot neurons"}': 2000 * 28}
        counted = roofline.Counted((metrics.Metrics(""), scrape(series)), None)
        self.assertEqual((0, 0, 5 * BUNDLE), (read_of(counted).cold, read_of(counted).bus, read_of(counted).hot))
        self.assertEqual((None, None, {}), (counted.cpu_read_rate(), counted.cpu_read_bandwidth(), counted.exchange_us()))


LOG = """
info    gpu_worker: operator time: attention: 40 times, median 7.00 us, sum 300 us
info    gpu_worker: operator time: add and norm: 40 times, median 2.00 us, sum 80 us
info    gpu_worker: operator time: matrix product 128 x 128: 40 times, median 3.00 us, sum 120 us
info    gpu_worker: operator time: matrix product 32 x 128: 40 times, median 1.50 us, sum 60 us
info    gpu_worker: operator time: matrix product 512 x 32: 40 times, median 2.50 us, sum 100 us
info    gpu_worker: operator time: matrix product 4096 x 128: 20 times, median 9.00 us, sum 180 us
info    gpu_worker: operator time: gates and up projection: 40 times, median 10.00 us, sum 400 us
info    gpu_worker: operator time: merging cold neurons: 20 times, median 30.00 us, sum 700 us
info    gpu_worker: operator time: something new: 40 times, median 0.25 us, sum 10 us
info    gpu_worker: operator time: exchange overhead: 20 times, median 11.50 us, sum 240 us
"""


class PhasesTest(unittest.TestCase):
    def test_operators_become_phases_of_a_layer(self):
        operators = phases.operator_times(LOG)
        self.assertEqual({"times": 40, "median_us": 7.0, "sum_us": 300.0}, operators["attention"])
        found = phases.phases(operators, phases.Widths(hidden=128, query=128, key=64, vocabulary=4096))
        self.assertEqual({"attention": 12.0, "predictor": 4.0, "send": 0.0, "hot": 10.0, "merge": 15.0, "head": 9.0, "other": 0.25},
                         found)
        self.assertEqual({}, phases.phases({}, phases.Widths(1, 1, 1, 1)))


KERNELS = """\
copy of 1 GiB, read and written                792.46 us (790.00 to 800.10)     2710 GB/s
1 x add and norm                                 3.10 us (3.00 to 3.20)
1 x Q, K and V                                  36.90 us (36.00 to 37.00)     2725 GB/s
"""


class TablesTest(unittest.TestCase):
    def test_kernels_beside_the_copy(self):
        self.assertEqual(2710e9, roofline.kernel_rate(KERNELS, "copy of 1 GiB"))
        self.assertEqual(["| copy of 1 GiB, read and written | 792.46 (790.00-800.10) | 2710 | 100% |",
                          "| 1 x add and norm | 3.10 (3.00-3.20) | - | - |",
                          "| 1 x Q, K and V | 36.90 (36.00-37.00) | 2725 | 101% |"], bench_table.kernel_table(KERNELS)[2:])

    def test_what_was_not_measured_is_left_out(self):
        result = {"model": "m.gguf", "vram_budget": "8", "predictor": "auto", "prefill_tokens_per_second": {},
                  "batches": [{"sequences": 4, "decode_tokens_per_second": 10.0, "spread": [9.0, 11.0]}]}
        self.assertEqual("| m.gguf | 8 GiB | auto | 4 | 10.0 (9.0-11.0) | - | - | - | - | - | - |",
                         bench_table.decode_table([result])[-1])
        self.assertEqual(([], []), (bench_table.prefill_table([result]), bench_table.phase_table([result])))


if __name__ == "__main__":
    suite.main()
