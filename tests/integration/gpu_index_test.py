"""PowerInfer's index file as a placement: what it marks is hot, and a budget that is too small for it is refused."""

import pathlib
import struct
import tempfile
import unittest

import client
import cluster
import process
import suite

LAYERS, NEURONS = 6, 1280
# As PowerInfer numbers it.
I32 = 18
# Every third neuron in all layers but the last, which has none.
HOT = [list(range(layer, NEURONS, 3)) for layer in range(LAYERS - 1)] + [[]]


def string(text):
    return struct.pack("<Q", len(text)) + text.encode()


def write_index(path, hot, neurons=NEURONS):
    """An index file as PowerInfer's solver writes it, of layers of so many neurons."""
    tensors = []
    for layer, bucket in enumerate(hot):
        tensors.append((f"blk.{layer}.gpu_idx", [int(neuron in set(bucket)) for neuron in range(neurons)]))
        tensors.append((f"blk.{layer}.gpu_bucket", bucket))
    header = b"PWRI" + struct.pack("<IQQ", 3, len(tensors), 3)
    header += string("general.architecture") + struct.pack("<I", 8) + string("generic.gpu_index")
    header += string("generic.gpu_index.block_count") + struct.pack("<II", 4, len(hot))
    header += string("split.vram_capacity") + struct.pack("<IQ", 10, 1 << 33)
    data = b""
    for name, values in tensors:
        header += string(name) + struct.pack("<IQIQ", 1, len(values), I32, len(data))
        data += struct.pack(f"<{len(values)}i", *values)
        data += bytes(-len(data) % 32)
    path.write_bytes(header + bytes(-len(header) % 32) + data)


class GpuIndexTest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="isotherm-test-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.index = self.folder / "tales.gguf.generated.gpuidx"

    def test_its_hot_neurons_are_hot(self):
        write_index(self.index, HOT)
        request = client.greedy("Once upon a time", 60)
        with cluster.Cluster(cpu_worker=None, gpu_worker=["--predictor=gate"]) as running:
            expected = client.generate(running, request)
        with cluster.Cluster(gpu_worker=["--predictor=gate", f"--placement={self.index}"]) as running:
            stream = client.generate(running, request)
            share = sum(map(len, HOT)) / (LAYERS * NEURONS)
            self.assertAlmostEqual(share, running.model().hot_share, places=6)
        self.assertEqual(expected.tokens, stream.tokens)
        self.assertGreater(stream.complete.execution.cold_neurons_computed, 0)
        self.assertGreater(stream.complete.execution.hot_share, 0)

    def refusal(self, *flags):
        result = process.run("gpu_worker", f"--model={suite.MODEL}", f"--placement={self.index}", "--metrics-listen=",
                             f"--listen=unix:{self.folder}/socket", *flags)
        self.assertEqual(1, result.returncode, result.stderr)
        return result.stderr.strip().splitlines()[-1]

    def test_what_does_not_fit_is_refused(self):
        write_index(self.index, HOT)
        self.assertRegex(self.refusal(*cluster.COLD, "--vram-budget=0.0252"), "Raise the budget to 0.0.. GiB")
        write_index(self.index, HOT[1:])
        self.assertIn("is of 5 layers, the model has 6", self.refusal())
        write_index(self.index, [*HOT[:-1], [5, 3]])
        self.assertIn("does not list, ascending", self.refusal())


if __name__ == "__main__":
    suite.main()
