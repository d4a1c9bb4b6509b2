"""`isotherm quantize` from the command line: what it writes is served, and what it refuses leaves nothing behind."""

import os
import pathlib
import resource
import signal
import tempfile
import unittest

import client
import cluster
import process
import suite

PROMPT = "The king said to his daughter,"
TOKENS = 24


def limit_file_size():
    # A full disk, for the one process: writing more fails instead of killing it.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, resource.RLIM_INFINITY))


class QuantizeTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.out = self.folder / "out.gguf"

    def assert_refused(self, result, code, message):
        self.assertEqual(code, result.returncode, result.stderr)
        self.assertIn(message, result.stderr.strip().splitlines()[-1])
        self.assertEqual([], sorted(self.folder.iterdir()))

    def text(self, model):
        with cluster.Cluster(gpu_worker=cluster.COLD, model=model) as running:
            return client.generate(running, client.greedy(PROMPT, TOKENS)).text

    def test_a_quantised_model_is_served(self):
        result = process.run("isotherm", "quantize", str(suite.MODEL), str(self.out), "Q4_0", "--transpose-down")
        self.assertEqual(0, result.returncode, result.stderr)
        self.assertIn("blk.0.ffn_down_t.weight", result.stdout)
        self.assertEqual([self.out], sorted(self.folder.iterdir()))
        self.assertLess(self.out.stat().st_size, 0.7 * os.stat(suite.MODEL).st_size)
        text = self.text(self.out)
        print(f"\n{text!r}", flush=True)
        # English, as the demo model writes it.
        self.assertGreaterEqual(sum(word in text.split() for word in ("the", "I", "you", "will", "and", "he", "to")), 2, text)

    def test_bad_arguments_are_usage_errors(self):
        model, out = str(suite.MODEL), str(self.out)
        self.assert_refused(process.run("isotherm", "quantize", model, out), 2, "IN, OUT and TYPE are expected")
        self.assert_refused(process.run("isotherm", "quantize", model, out, "Q9"), 2, "known are F16, BF16")
        self.assert_refused(process.run("isotherm", "quantize", model, model, "Q4_0"), 2, "are the same file")
        self.assert_refused(process.run("isotherm", "quantize", model, out, "Q4_0", "--threads=-1"), 2, "--threads")

    def test_wrong_files_are_named(self):
        absent = str(self.folder / "absent.gguf")
        self.assert_refused(process.run("isotherm", "quantize", absent, str(self.out), "Q4_0"), 1, "absent.gguf")
        self.assert_refused(process.run("isotherm", "quantize", __file__, str(self.out), "Q4_0"), 1, "is no GGUF file")
        self.assert_refused(process.run("isotherm", "quantize", str(suite.MODEL), str(self.folder / "no/folder"), "Q4_0"), 1,
                            "no/folder: cannot be written")
        self.assert_refused(process.run("isotherm", "quantize", str(suite.MODEL), "/dev/full", "Q4_0"), 1,
                            "/dev/full: is not a regular file")

    def test_a_full_disk_leaves_nothing(self):
        result = process.run("isotherm", "quantize", str(suite.MODEL), str(self.out), "Q4_0", preexec_fn=limit_file_size,
                             restore_signals=False)
        self.assert_refused(result, 1, "out.gguf: its ")


if __name__ == "__main__":
    suite.main()
