"""The example that the documentation shows, against a real gateway."""

import subprocess
import sys
import tempfile
import unittest

import client
import cluster
import suite

EXAMPLE = suite.SOURCE / "tools/python/examples/generate.py"


def run_example(*arguments):
    return subprocess.run([sys.executable, "-B", str(EXAMPLE), *arguments], capture_output=True, encoding="utf-8",
                          timeout=suite.PATIENCE, check=False)


class ExampleClientTest(unittest.TestCase):
    def test_streams_the_text(self):
        with cluster.Cluster(gpu_worker=cluster.COLD) as running:
            expected = client.generate(running, client.greedy("The king said", 30, ignore_eos=False))
            result = run_example("--address", running.address("gateway"), "--max-tokens=30", "The king said")
        self.assertEqual(0, result.returncode, result.stderr)
        self.assertEqual(expected.text, result.stdout)
        self.assertIn("FINISH_REASON_MAX_TOKENS, 30 tokens", result.stderr)

    def test_says_why_it_failed(self):
        with tempfile.TemporaryDirectory() as folder:
            result = run_example("--address", f"unix:{folder}/none", "Hello")
        self.assertEqual(1, result.returncode)
        self.assertIn("UNAVAILABLE: ", result.stderr)


if __name__ == "__main__":
    suite.main()
