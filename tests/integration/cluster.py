"""Gateway, gpu_worker and cpu_worker on Unix sockets in a folder of their own."""

import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

import grpc

import metrics
import process
import stubs
import suite
from process import free_port

# Leaves half of the demo model's neurons cold, with predictor `gate` two thirds. The budget pays for each thread's scratch, too.
COLD = ("--threads=2", "--vram-budget=0.0292", "--kv-tokens=1024", "--max-prefill-rows=128", "--max-decode-rows=8")
# What every GPU worker of these tests computes on: host or cuda.
DEVICE = os.environ.get("ISOTHERM_TEST_DEVICE", "host")

_BUDGET = "--vram-budget="


@functools.cache
def _least_budget(device, model, flags):
    """GiB that a GPU worker says it needs on the device before the first hot neuron."""
    refused = process.run("gpu_worker", f"--model={model}", "--listen=127.0.0.1:0", "--metrics-listen=", *flags,
                          f"--device={device}", f"{_BUDGET}0.001")
    parts = re.findall(r"(\d+\.\d) MiB", refused.stderr.splitlines()[-1])
    assert parts, f"the least budget cannot be told from:\n{refused.stderr}"
    return sum(float(part) for part in parts) / 1024


def device_count():
    """How many of DEVICE a model can be divided among; of host devices there are as many as anyone asks for."""
    if DEVICE == "host":
        return 2
    listed = subprocess.run(["nvidia-smi", "--list-gpus"], capture_output=True, text=True, check=True)
    return len(listed.stdout.splitlines())


def on_device(flags, model):
    """Flags of a GPU worker for device host as they are on DEVICE: with a budget that leaves as much for hot neurons, or a MiB
    more, as a message gives parts to a tenth."""
    if DEVICE == "host":
        return list(flags)
    others = tuple(flag for flag in flags if not flag.startswith((_BUDGET, "--attention-offload", "--cpu-worker")))
    more = _least_budget(DEVICE, model, others) - _least_budget("host", model, others) + 1 / 1024
    return [f"--device={DEVICE}"] + [
        f"{_BUDGET}{float(flag.removeprefix(_BUDGET)) + more:.4f}" if flag.startswith(_BUDGET) else flag for flag in flags]


def wait_until(condition, what, timeout=suite.PATIENCE):
    """Polls `condition` until it gives something true, and returns that."""
    end = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"{what}: not within {timeout} s")
        time.sleep(0.02)


class Cluster:
    """Serves the demo model between __enter__ and __exit__.

    gateway, gpu_worker, cpu_worker: further flags of each process; cpu_worker=None runs without one, cpu_workers says how
    many share the cold neurons. On exit every process that a test has not killed must end with 0 on SIGTERM and leave
    nothing in the shared-memory folder; otherwise AssertionError.
    """

    def __init__(self, gateway=(), gpu_worker=(), cpu_worker=(), cpu_workers=1, model=suite.MODEL):
        self._folder = pathlib.Path(tempfile.mkdtemp(prefix="isotherm-test-"))
        self._shm = pathlib.Path(tempfile.mkdtemp(prefix="isotherm-test-", dir="/dev/shm"))
        self._metrics_ports = {}
        self._channel = None
        shm = f"--shm-directory={self._shm}"
        names = ["cpu_worker"] + [f"cpu_worker-{number}" for number in range(2, cpu_workers + 1)]
        self.cpu_workers = [] if cpu_worker is None else [self._process(name, model, [shm, *cpu_worker]) for name in names]
        self.cpu_worker = self.cpu_workers[0] if self.cpu_workers else None
        # A test's server leaves nothing beside its model, and the next one places neurons as it did.
        self.gpu_worker = self._process(
            "gpu_worker", model,
            [shm, f"--cpu-worker={','.join(map(self.address, names))}", "--nosave-profile",
             *on_device(gpu_worker, model)])
        self.gateway = self._process("gateway", model, [shm, f"--worker={self.address('gpu_worker')}", *gateway])
        self.processes = [*self.cpu_workers, self.gpu_worker, self.gateway]

    def _process(self, name, model, flags):
        self._metrics_ports[name] = free_port()
        return process.Process(name.partition("-")[0],
                               [f"--model={model}", f"--listen={self.address(name)}",
                                f"--metrics-listen=127.0.0.1:{self._metrics_ports[name]}", *flags],
                               self._folder / f"{name}.log", name)

    def address(self, name):
        return f"unix:{self._folder}/{name}.sock"

    def __enter__(self):
        try:
            for each in self.processes:
                each.start()
            self.connect()
            self.wait_ready()
        except BaseException:
            self._print_logs()
            self._tear_down()
            raise
        return self

    def connect(self):
        """A new connection to the gateway; needed after it was restarted."""
        if self._channel is not None:
            self._channel.close()
        # The socket may appear a moment after the first attempt to connect.
        self._channel = grpc.insecure_channel(self.address("gateway"), [("grpc.initial_reconnect_backoff_ms", 50)])
        self.inference = stubs.inference_grpc.InferenceServiceStub(self._channel)
        self.models = stubs.model_grpc.ModelServiceStub(self._channel)

    def model(self):
        """What ModelService says."""
        return self.models.GetModel(stubs.model.GetModelRequest(), wait_for_ready=True, timeout=suite.PATIENCE).model

    def wait_ready(self):
        def ready():
            for each in self.processes:
                assert each.running(), f"{each.name} ended with {each.wait()}:\n{each.log()}"
            return self.model().state == stubs.model.MODEL_STATE_READY

        wait_until(ready, "the model being ready")

    def metrics(self, name):
        return metrics.scrape(self._metrics_ports[name])

    def __exit__(self, kind, error, trace):
        problems = self._tear_down(keep_folder=True)
        if error is not None or problems:
            self._print_logs()
        shutil.rmtree(self._folder)
        assert error is not None or not problems, "; ".join(problems)

    def _tear_down(self, keep_folder=False):
        if self._channel is not None:
            self._channel.close()
        problems = [problem for each in reversed(self.processes) if (problem := each.stop()) is not None]
        left = sorted(path.name for path in self._shm.iterdir())
        if left:
            problems.append(f"left in the shared-memory folder: {left}")
        shutil.rmtree(self._shm)
        if not keep_folder:
            shutil.rmtree(self._folder)
        return problems

    def _print_logs(self):
        for each in self.processes:
            print(f"--- log of {each.name} ---\n{each.log()}", file=sys.stderr)
