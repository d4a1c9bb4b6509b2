"""Reads .safetensors files with numpy alone, bf16 included.

The format: u64 length of a JSON header, the header ({name: {dtype, shape, data_offsets}}), the data.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from isotherm_tools.errors import UserError
from isotherm_tools.stored_tensor import MappedFile, StoredTensor

_KINDS = {"F64": "f64", "F32": "f32", "F16": "f16", "BF16": "bf16", "I64": "i64", "I32": "i32"}

_MOST_HEADER = 100 << 20


class SafetensorsFile:
    """One file; `entries` has a header entry for every tensor name."""

    def __init__(self, path: Path) -> None:
        self._file = MappedFile(path)
        length = int.from_bytes(self._file.bytes(0, 8), "little")
        self._start = 8 + length
        if length > _MOST_HEADER or self._start > self._file.size:
            raise UserError(f"{path} has no safetensors header; download it again")
        try:
            header = json.loads(self._file.bytes(8, length))
        except ValueError as error:
            raise UserError(f"{path} has a damaged safetensors header ({error}); download it again") from error
        self.entries = {name: entry for name, entry in header.items() if name != "__metadata__"}

    def tensor(self, name: str) -> StoredTensor:
        """The tensor of that name, which is there."""
        entry = self.entries[name]
        origin = f"{self._file.path}: {name}"
        kind = _KINDS.get(entry["dtype"])
        if kind is None:
            raise UserError(f"{origin} is of type {entry['dtype']}; save the checkpoint as F32, F16 or BF16 first")
        shape = tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        data = self._file.array(kind, self._start + begin, math.prod(shape))
        if data.nbytes != end - begin:
            raise UserError(f"{origin} has {end - begin} bytes for shape {list(shape)}; download it again")
        return StoredTensor(origin, kind, data.reshape(shape))

    def release(self) -> None:
        self._file.release()
