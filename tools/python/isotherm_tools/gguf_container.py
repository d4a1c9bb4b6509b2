"""GGUF as a container: what a file holds, and copies of it with other tensors beside the same ones.

Reads GGUF versions 2 and 3 and PowerInfer's form of it, which differs in its first four bytes alone. Needs no other
package than numpy, unless values are asked for. Shapes are in torch's order; a file lists dimensions reversed.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from isotherm_tools.errors import UserError

GGUF = b"GGUF"
POWERINFER = b"PWRI"

F32, F16, Q8_0 = 0, 1, 8
"""Tensor types by ggml's numbers."""

_BLOCKS = {F32: (1, 4), F16: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), Q8_0: (32, 34),
           10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 24: (1, 1), 25: (1, 2), 26: (1, 4), 30: (1, 2)}
"""Weights and bytes of a block: Q4_0, Q4_1, Q5_0 and Q5_1 from 2 on, Q2_K to Q6_K from 10 on, integers from 24 on, BF16 is 30."""

_POWERINFER_INTEGERS = {16: 24, 17: 25, 18: 26}
"""PowerInfer's numbers of I8, I16 and I32, which newer types have taken over."""

_ALIGNMENT_KEY = "general.alignment"
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_FLOAT = 6
_COPY_BYTES = 16 << 20


@dataclass(frozen=True)
class Tensor:
    """An entry of the tensor table and where its data lies in the file."""

    name: str
    shape: tuple[int, ...]
    kind: int
    """ggml's number of the type."""
    start: int
    size: int


@dataclass(frozen=True)
class NewTensor:
    """A tensor to be written: encoded data of `kind`."""

    name: str
    shape: tuple[int, ...]
    kind: int
    data: np.ndarray


class _Cursor:
    """Reads little-endian values one after the other."""

    def __init__(self, data: np.ndarray, path: Path) -> None:
        self._data = data
        self._path = path
        self.at = 0

    def take(self, layout: str) -> tuple[Any, ...]:
        size = struct.calcsize(layout)
        if self.at + size > len(self._data):
            raise UserError(f"{self._path} is damaged: it ends inside its header; fetch it again")
        self.at += size
        return struct.unpack(layout, self._data[self.at - size:self.at].tobytes())

    def string(self) -> str:
        (size,) = self.take("<Q")
        return str(self.take(f"<{min(size, len(self._data))}s")[0], "utf-8", "replace")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            element, count = self.take("<IQ")
            if element in _SCALARS:
                return list(self.take(f"<{min(count, len(self._data))}{_SCALARS[element]}"))
            return [self.value(element) for _ in range(count)]
        if kind not in _SCALARS:
            raise UserError(f"{self._path} has a metadata value of unknown type {kind}")
        return self.take(f"<{_SCALARS[kind]}")[0]


class GgufFile:
    """One file, mapped read-only. UserError says why a file cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.stat().st_size < 24:
            raise UserError(f"{path} is too short to be a GGUF file; fetch it again")
        self._bytes = np.memmap(path, dtype=np.uint8, mode="r")
        cursor = _Cursor(self._bytes, path)
        self.magic, self.version, tensors, pairs = cursor.take("<4sIQQ")
        if self.magic not in (GGUF, POWERINFER) or self.version not in (2, 3):
            raise UserError(f"{path} is no GGUF file of version 2 or 3; fetch it again")
        self.metadata: dict[str, Any] = {}
        self._pairs: dict[str, bytes] = {}
        for _ in range(pairs):
            start, key = cursor.at, cursor.string()
            self.metadata[key] = cursor.value(cursor.take("<I")[0])
            self._pairs[key] = self._bytes[start:cursor.at].tobytes()
        table = []
        for _ in range(tensors):
            name = cursor.string()
            dimensions = cursor.take(f"<{cursor.take('<I')[0]}Q")
            table.append((name, tuple(reversed(dimensions)), *cursor.take("<IQ")))
        self.alignment = int(self.metadata.get(_ALIGNMENT_KEY, _DEFAULT_ALIGNMENT))
        self._header_bytes = cursor.at
        data = self._padded(cursor.at)
        self.tensors = {name: self._located(name, shape, kind, data + offset) for name, shape, kind, offset in table}

    def _located(self, name: str, shape: tuple[int, ...], kind: int, start: int) -> Tensor:
        known = _POWERINFER_INTEGERS.get(kind, kind) if self.magic == POWERINFER else kind
        if known not in _BLOCKS:
            raise UserError(f"{self.path}: tensor {name} has type number {kind}, which is not supported")
        size = encoded_size(shape, known)
        if start + size > len(self._bytes):
            raise UserError(f"{self.path} is damaged: it ends before the data of tensor {name}; fetch it again")
        return Tensor(name, shape, kind, start, size)

    def header(self) -> bytes:
        """Everything before the tensors' data, metadata and tensor table included, without the padding."""
        return self._bytes[:self._header_bytes].tobytes()

    def raw(self, name: str) -> np.ndarray:
        """The encoded bytes of a tensor."""
        tensor = self.tensors[name]
        return self._bytes[tensor.start:tensor.start + tensor.size]

    def values(self, name: str) -> np.ndarray:
        """A tensor as F32 in torch's shape. Needs the gguf package."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize, quant_shape_to_byte_shape

        if name not in self.tensors:
            raise UserError(f"{self.path} has no tensor {name}")
        tensor = self.tensors[name]
        kind = GGMLQuantizationType(tensor.kind)
        if tensor.kind in (F32, F16):
            return self.raw(name).view(np.float32 if tensor.kind == F32 else np.float16).astype(np.float32).reshape(tensor.shape)
        rows = self.raw(name).reshape(quant_shape_to_byte_shape(tensor.shape, kind))
        return dequantize(rows, kind).astype(np.float32, copy=False).reshape(tensor.shape)

    def write_copy(self, out: Path, *, magic: bytes, without_tensors: Collection[str], tensors: Sequence[NewTensor],
                   without_keys: Collection[str], pairs: Mapping[str, str | float],
                   copied: Callable[[int], None] = lambda done: None) -> None:
        """Writes this file as `out` under another magic, without some tensors and keys and with new ones after the
        others; everything else keeps its bytes. `copied(bytes)` hears how far it is.

        The file appears under its name when it is complete: a failure leaves nothing, or what was there before.
        """
        kept = [tensor for name, tensor in self.tensors.items() if name not in without_tensors]
        keys = [pair for key, pair in self._pairs.items() if key not in without_keys and key not in pairs]
        keys += [_encode_pair(key, value) for key, value in pairs.items()]
        entries = [(t.name, t.shape, t.kind, t.size) for t in kept]
        entries += [(t.name, t.shape, t.kind, t.data.nbytes) for t in tensors]
        header = [struct.pack("<4sIQQ", magic, self.version, len(entries), len(keys)), *keys]
        offset = 0
        for name, shape, kind, size in entries:
            header.append(_encode_string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, offset))
            offset += self._padded(size)
        part = out.with_name(f"{out.name}.part")
        try:
            with part.open("wb") as file:
                done = 0
                file.write(b"".join(header))
                self._pad(file)
                for data in [*(self.raw(t.name) for t in kept), *(np.ascontiguousarray(t.data) for t in tensors)]:
                    flat = data.reshape(-1).view(np.uint8)
                    for start in range(0, flat.size, _COPY_BYTES):
                        file.write(flat[start:start + _COPY_BYTES].data)
                        done += min(_COPY_BYTES, flat.size - start)
                        copied(done)
                    self._pad(file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(out)
        finally:
            part.unlink(missing_ok=True)

    def _padded(self, size: int) -> int:
        return -(-size // self.alignment) * self.alignment

    def _pad(self, file: Any) -> None:
        file.write(bytes(self._padded(file.tell()) - file.tell()))


def encoded_size(shape: tuple[int, ...], kind: int) -> int:
    """Bytes of a tensor's data."""
    weights, size = _BLOCKS[kind]
    return math.prod(shape) // weights * size


def _encode_string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _encode_pair(key: str, value: str | float) -> bytes:
    """A string or an F32."""
    if isinstance(value, str):
        return _encode_string(key) + struct.pack("<I", _STRING) + _encode_string(value)
    return _encode_string(key) + struct.pack("<If", _FLOAT, value)
