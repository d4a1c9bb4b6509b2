"""Progress lines on stderr, at most one a second, with elapsed and remaining time."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Counts from 0 to `total` steps of a task named `label`."""

    def __init__(self, label: str, total: int, stream: TextIO | None = None, every_s: float = 1.0) -> None:
        self._label = label
        self._total = max(total, 1)
        self._stream = stream if stream is not None else sys.stderr
        self._every_s = every_s
        self._start = time.monotonic()
        self._last = self._start - every_s

    def update(self, done: int, note: str = "") -> None:
        """Reports `done` of `total` steps; `note` is appended. The last step is always printed."""
        now = time.monotonic()
        if now - self._last < self._every_s and done < self._total:
            return
        self._last = now
        elapsed = now - self._start
        left = elapsed / done * (self._total - done) if done > 0 else float("nan")
        line = f"{self._label}: {done}/{self._total} ({100 * done / self._total:.0f} %), {elapsed:.0f} s"
        if done < self._total and done > 0:
            line += f", {left:.0f} s left"
        print(f"{line}{', ' + note if note else ''}", file=self._stream, flush=True)
