"""Tensors that lie in a mapped file, read a few rows at a time."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isotherm_tools.errors import UserError

DTYPES: dict[str, np.dtype] = {
    "f64": np.dtype("<f8"),
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype("<u2"),  # numpy has no such type: the upper half of an F32's bits
    "i64": np.dtype("<i8"),
    "i32": np.dtype("<i4"),
}
"""Element types that checkpoints hold, and how numpy reads their bytes."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in torch order; `data` views the mapped file and costs no memory until it is read."""

    origin: str
    """File and name, for messages."""
    kind: str
    """A key of DTYPES."""
    data: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape


def to_f32(raw: np.ndarray, kind: str) -> np.ndarray:
    """The values of stored elements as F32."""
    if kind == "bf16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32)


class MappedFile:
    """A file's bytes, mapped; pages that were read can be given back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            self.size = path.stat().st_size
            if self.size == 0:
                raise UserError(f"{path} is empty; download it again")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if self._map[:20] == b"version https://git-":
            raise UserError(f"{path} is a Git LFS pointer, not the file itself; fetch it with 'git lfs pull'")

    def array(self, kind: str, offset: int, count: int) -> np.ndarray:
        """`count` elements from byte `offset` on, as a view."""
        dtype = DTYPES[kind]
        if offset < 0 or count < 0 or offset + count * dtype.itemsize > self.size:
            raise UserError(f"{self.path} ends at byte {self.size}, before its tensors do; download it again")
        if count == 0:
            return np.empty(0, dtype)
        return np.frombuffer(self._map, dtype, count, offset)

    def bytes(self, offset: int, count: int) -> bytes:
        """A copy of at most `count` bytes."""
        return self._map[offset:offset + count]

    def release(self) -> None:
        """Gives back the memory of the pages read so far; reading them again brings them back."""
        self._map.madvise(mmap.MADV_DONTNEED)
