"""A control group that gives a process part of one core."""

import os
import pathlib


class CpuQuota:
    """Needs root and a writable cgroup v1 cpu hierarchy or v2. The process has ended when this is closed."""

    PERIOD = 5000  # us; short, so that a throttled worker stalls a layer for milliseconds at most
    TIMES_USUAL_WEIGHT = 10  # against what else wants the core, so that the quota alone bounds it

    def __init__(self, number, share, pid):
        root = pathlib.Path("/sys/fs/cgroup")
        v1 = (root / "cpu").is_dir()
        self._path = (root / "cpu" if v1 else root) / f"isotherm-bench-{os.getpid()}-{number}"
        self._path.mkdir()
        quota = int(share * self.PERIOD)
        if v1:
            (self._path / "cpu.cfs_period_us").write_text(str(self.PERIOD))
            (self._path / "cpu.cfs_quota_us").write_text(str(quota))
            (self._path / "cpu.shares").write_text(str(self.TIMES_USUAL_WEIGHT * 1024))
        else:
            (self._path / "cpu.max").write_text(f"{quota} {self.PERIOD}")
            (self._path / "cpu.weight").write_text(str(self.TIMES_USUAL_WEIGHT * 100))
        (self._path / "cgroup.procs").write_text(str(pid))

    def close(self):
        self._path.rmdir()
