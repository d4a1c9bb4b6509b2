"""Makes, encodes and writes random matrices, with numpy or on a device of torch, which makes the next while one is written."""

from __future__ import annotations

import collections
import queue
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from isotherm_tools import gguf_llama as gl
from isotherm_tools.arrays import Arrays, TorchArrays
from isotherm_tools.gguf_output import GgufOutput

_BLOCK = 32
"""Weights of a Q8_0 or Q4_0 block."""


class NumpyMill:
    """Everything in order, in this thread. Use as a context manager, as every mill."""

    def __init__(self, arrays: Arrays, seed: int) -> None:
        self.arrays = arrays
        self.rng = np.random.Generator(np.random.SFC64(seed))
        """For what is small, on every device."""

    def __enter__(self) -> NumpyMill:
        return self

    def __exit__(self, *exc: object) -> None:
        """Returns when everything is written."""

    def normal(self, rows: int, columns: int, std: float) -> Any:
        """An F32 normal matrix [rows, columns]."""
        matrix = self.rng.standard_normal((rows, columns), dtype=np.float32)
        matrix *= np.float32(std)
        return matrix

    def zeros(self, rows: int, columns: int) -> Any:
        return np.zeros((rows, columns), dtype=np.float32)

    def encode(self, matrix: Any, type_name: str) -> tuple[Any, Any]:
        """(encoded rows, the F32 values they stand for)."""
        encoded = gl.encode(matrix, type_name)
        return encoded, gl.decode(encoded, gl.TYPES[type_name])

    def write(self, name: str, encoded: Any, outputs: Sequence[GgufOutput]) -> None:
        """Writes a whole tensor to each output."""
        for output in outputs:
            output.write(name, encoded)


class TorchMill(NumpyMill):
    """On a torch device. Slices of a tensor are copied to the host and written by several threads while the caller goes on."""

    STAGE_BYTES = 64 << 20
    STAGES = 16
    THREADS = 8

    def __init__(self, arrays: TorchArrays, seed: int) -> None:
        import torch

        super().__init__(arrays, seed)
        self._torch = torch
        self._device = torch.device(arrays.name)
        self._generator = torch.Generator(self._device).manual_seed(seed)
        self._cuda = self._device.type == "cuda"
        self._stages: queue.SimpleQueue[Any] = queue.SimpleQueue()
        if self._cuda:
            for _ in range(self.STAGES):
                self._stages.put(torch.empty(self.STAGE_BYTES, dtype=torch.uint8, pin_memory=True))
        self._pool = ThreadPoolExecutor(self.THREADS)
        self._writes: collections.deque[Future[None]] = collections.deque()

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=exc[0] is not None)
        if exc[0] is None:
            for write in self._writes:
                write.result()

    def normal(self, rows: int, columns: int, std: float) -> Any:
        matrix = self._torch.empty((rows, columns), dtype=self._torch.float32, device=self._device)
        return matrix.normal_(0.0, std, generator=self._generator)

    def zeros(self, rows: int, columns: int) -> Any:
        return self._torch.zeros((rows, columns), dtype=self._torch.float32, device=self._device)

    def encode(self, matrix: Any, type_name: str) -> tuple[Any, Any]:
        match type_name:
            case "f32":
                return matrix, matrix
            case "f16":
                half = matrix.half()
                return half, half.float()
            case "q8_0":
                return self._encode_q8_0(matrix)
            case "q4_0":
                return self._encode_q4_0(matrix)
        raise ValueError(f"type {type_name} is not encoded on torch devices")

    def _encode_q8_0(self, matrix: Any) -> tuple[Any, Any]:
        blocks = matrix.reshape(-1, _BLOCK)
        scale = blocks.abs().amax(dim=1, keepdim=True) / 127
        inverse = self._torch.where(scale == 0, 0, 1 / scale)
        quants = (blocks * inverse).round()
        stored = scale.half()
        rows = self._torch.cat([stored.view(self._torch.uint8), quants.to(self._torch.int8).view(self._torch.uint8)], dim=1)
        return rows.reshape(matrix.shape[0], -1), (quants * stored.float()).reshape(matrix.shape)

    def _encode_q4_0(self, matrix: Any) -> tuple[Any, Any]:
        blocks = matrix.reshape(-1, _BLOCK)
        largest = blocks.gather(1, blocks.abs().argmax(dim=1, keepdim=True))
        scale = largest / -8
        inverse = self._torch.where(scale == 0, 0, 1 / scale)
        quants = (blocks * inverse + 8.5).trunc_().clamp_(0, 15)
        stored = scale.half()
        nibbles = quants.to(self._torch.uint8)
        packed = nibbles[:, :_BLOCK // 2] | (nibbles[:, _BLOCK // 2:] << 4)
        rows = self._torch.cat([stored.view(self._torch.uint8), packed], dim=1)
        return rows.reshape(matrix.shape[0], -1), ((quants - 8) * stored.float()).reshape(matrix.shape)

    def write(self, name: str, encoded: Any, outputs: Sequence[GgufOutput]) -> None:
        outputs = list(outputs)
        while self._writes and self._writes[0].done():
            self._writes.popleft().result()  # raises what a write failed with
        if not isinstance(encoded, self._torch.Tensor) or not self._cuda:
            values = self.arrays.get(encoded) if isinstance(encoded, self._torch.Tensor) else encoded
            self._writes += [self._pool.submit(output.write, name, values) for output in outputs]
            return
        rows = encoded.reshape(encoded.shape[0], -1).view(self._torch.uint8)
        step = max(1, self.STAGE_BYTES // rows.shape[1])
        for first in range(0, rows.shape[0], step):
            part = rows[first:first + step]
            stage = self._stages.get()
            stage[:part.numel()].copy_(part.reshape(-1), non_blocking=True)
            copied = self._torch.cuda.Event()
            copied.record()
            self._writes.append(self._pool.submit(self._write_stage, name, outputs, stage, part.numel(), first, copied))

    def _write_stage(self, name: str, outputs: list[GgufOutput], stage: Any, size: int, first: int, copied: Any) -> None:
        try:
            copied.synchronize()
            for output in outputs:
                output.write(name, stage[:size].numpy(), first)
        finally:
            self._stages.put(stage)


def mill_on(arrays: Arrays, seed: int) -> NumpyMill:
    """The mill for where `arrays` are."""
    return TorchMill(arrays, seed) if isinstance(arrays, TorchArrays) else NumpyMill(arrays, seed)
