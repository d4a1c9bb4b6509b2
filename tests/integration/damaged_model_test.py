"""Model files cut short or scribbled over: an error with exit code 1, never a crash."""

import pathlib
import tempfile
import unittest

import process
import suite

PARTS = 64
# The servers open files with the same code; a few cuts show that they report what it says.
SERVED_PARTS = (0, 1, 32, 63)


class DamagedModelTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory(prefix="isotherm-test-")))
        cls.model = suite.MODEL.read_bytes()

    def damaged(self, content):
        path = self.folder / "damaged.gguf"
        path.write_bytes(content)
        return path

    def check_refused(self, binary, *arguments):
        result = process.run(binary, *arguments)
        self.assertEqual(1, result.returncode, result.stderr)
        last_line = result.stderr.strip().splitlines()[-1]
        self.assertIn("error: ", last_line)
        self.assertIn("damaged.gguf", last_line)

    def serving_flags(self, path):
        return [f"--model={path}", f"--listen=unix:{self.folder}/socket", "--metrics-listen="]

    def test_a_file_cut_at_any_part_is_refused(self):
        for part in range(PARTS):
            path = self.damaged(self.model[:len(self.model) * part // PARTS])
            with self.subTest(part=part):
                self.check_refused("isotherm", "inspect", path)
                if part not in SERVED_PARTS:
                    continue
                for binary in ("cpu_worker", "gpu_worker", "gateway"):
                    with self.subTest(binary=binary):
                        self.check_refused(binary, *self.serving_flags(path))

    def test_one_byte_short_is_refused(self):
        path = self.damaged(self.model[:-1])
        self.check_refused("isotherm", "inspect", path)
        self.check_refused("gpu_worker", *self.serving_flags(path))

    def test_a_flipped_byte_in_the_header_never_crashes(self):
        for offset in range(0, 512, 3):
            content = bytearray(self.model[:1 << 20])
            content[offset] ^= 0xFF
            path = self.damaged(bytes(content))
            with self.subTest(offset=offset):
                self.assertEqual(1, process.run("isotherm", "inspect", path).returncode)


if __name__ == "__main__":
    suite.main()
