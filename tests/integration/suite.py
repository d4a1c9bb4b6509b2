"""What every module of these tests shares: where things are, which tests are slow, how a run ends."""

import os
import pathlib
import sys
import unittest

SOURCE = pathlib.Path(os.environ.get("ISOTHERM_SOURCE_DIR", pathlib.Path(__file__).resolve().parents[2]))
BIN = pathlib.Path(os.environ.get("ISOTHERM_BIN", SOURCE / "build/release/bin"))
MODEL = SOURCE / "models/tales/tales-q8_0.gguf"

# For whatever should take a second or two: sanitizers and busy machines take many times as long.
PATIENCE = 120.0
# What CTest knows as SKIP_RETURN_CODE.
SKIPPED = 77


def slow(test):
    """Marks a test or a class of tests that only `MODULE --slow` runs."""
    test.slow = True
    return test


def test_data(path):
    """A file below ISOTHERM_TEST_DATA; skips the test where there is none."""
    root = os.environ.get("ISOTHERM_TEST_DATA")
    if not root:
        raise unittest.SkipTest("ISOTHERM_TEST_DATA is not set")
    found = pathlib.Path(root) / path
    if not found.exists():
        raise unittest.SkipTest(f"ISOTHERM_TEST_DATA has no {path}")
    return found


class _Loader(unittest.TestLoader):
    def __init__(self, want_slow):
        super().__init__()
        self._want_slow = want_slow

    def getTestCaseNames(self, case):
        def is_slow(name):
            return getattr(case, "slow", False) or getattr(getattr(case, name), "slow", False)

        return [name for name in super().getTestCaseNames(case) if is_slow(name) == self._want_slow]


def main():
    """Runs the calling module's tests, with --slow its slow ones. A run that skips every test says so to CTest."""
    want_slow = "--slow" in sys.argv
    arguments = [argument for argument in sys.argv if argument != "--slow"]
    program = unittest.main(module="__main__", argv=arguments, testLoader=_Loader(want_slow), verbosity=2, exit=False)
    result = program.result
    if not result.wasSuccessful() or result.testsRun == 0 and not result.skipped:
        sys.exit(1)
    ran = result.testsRun - len(result.skipped)
    sys.exit(SKIPPED if ran <= 0 else 0)
