"""Processes under test."""

import os
import socket
import subprocess

import suite


def free_port():
    """A loopback port that nobody listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Process:
    """A binary with its flags; may be started again after it ended. Its log is kept over all its lives."""

    def __init__(self, binary, flags, log, name=None):
        self.name = name or binary
        self.flags = list(flags)  # those of its next life
        self._binary = binary
        self._log = log
        self._process = None
        self._expect_death = False

    def start(self):
        assert not self.running(), f"{self.name} runs already"
        self._expect_death = False
        with open(self._log, "ab") as log:
            command = [str(suite.BIN / self._binary), *self.flags]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def running(self):
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self):
        return self._process.pid

    def kill(self):
        """kill -9; returns when the process is gone."""
        self._expect_death = True
        self._process.kill()
        self._process.wait(suite.PATIENCE)

    def terminate(self):
        """Sends SIGTERM and does not wait."""
        self._process.terminate()

    def wait(self):
        """The exit code; negative for a signal."""
        return self._process.wait(suite.PATIENCE)

    def stop(self):
        """Ends the process; returns what was wrong with its end, or None."""
        if self._process is None or self._expect_death:
            return None
        if self.running():
            self.terminate()
        try:
            code = self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            return f"{self.name} did not end on SIGTERM"
        return None if code == 0 else f"{self.name} ended with {code}"

    def cpu_seconds(self):
        """Time its threads have computed so far."""
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as stat:
            fields = stat.read().rpartition(")")[2].split()
        user, system = int(fields[11]), int(fields[12])  # utime and stime; proc(5), counted after the name
        return (user + system) / os.sysconf("SC_CLK_TCK")

    def log(self):
        return self._log.read_text(errors="replace") if self._log.exists() else ""


def run(binary, *arguments, timeout=suite.PATIENCE, **options):
    """Runs a binary to its end."""
    return subprocess.run([str(suite.BIN / binary), *map(str, arguments)], capture_output=True, encoding="utf-8",
                          errors="replace", stdin=subprocess.DEVNULL, timeout=timeout, check=False, **options)
