"""What a GGUF file says about itself: PowerInfer's form too, which the `gguf` package does not read."""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Any

from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

from isotherm_tools.errors import UserError

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_POWERINFER_INTEGERS = {16: 24, 17: 25, 18: 26}
"""PowerInfer's numbers of I8, I16 and I32, which newer types have taken over."""

_SAMPLE_BYTES = 256
_FNV_BASIS = 0x6C62272E07BB014262B821756295C58D
_FNV_PRIME = (1 << 88) | 0x13B


class ModelFile:
    """Metadata (arrays left out) and digest of a model file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, Any] = {}
        with path.open("rb") as file:
            self._bytes = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._at = 0
        try:
            self._parse()
        except (struct.error, UnicodeDecodeError, KeyError, ValueError) as error:
            raise UserError(f"{path} is no GGUF file or a damaged one; fetch it again") from error

    def integer(self, key: str) -> int:
        """The value of an integer key, "ARCHITECTURE.block_count" for ".block_count"."""
        name = f"{self.metadata.get('general.architecture')}{key}" if key.startswith(".") else key
        value = self.metadata.get(name)
        if not isinstance(value, int):
            raise UserError(f"{self.path} has no {name}; is it a model?")
        return value

    def digest(self) -> str:
        """Of header, tensor table and samples of every tensor, as the workers compute it: 128-bit FNV-1a in hexadecimal."""
        state = _update(_FNV_BASIS, self._bytes[:self._header_bytes])
        for start, size in self._tensors:
            length = min(_SAMPLE_BYTES, size)
            for begin in (0, (size - length) // 2, size - length):
                state = _update(state, self._bytes[start + begin:start + begin + length])
        return f"{state:032x}"

    def _parse(self) -> None:
        magic, version, tensors, pairs = self._take("4sIQQ")
        if magic not in (b"GGUF", b"PWRI") or version not in (2, 3):
            raise ValueError
        for _ in range(pairs):
            key = self._string()
            self.metadata[key] = self._value(*self._take("I"))
        if self.metadata.get("split.count", 0) > 1:
            raise UserError(f"{self.path} is a part of a split model; merge it with llama-gguf-split --merge")
        table = [self._tensor(magic == b"PWRI") for _ in range(tensors)]
        self._header_bytes = self._at
        alignment = self.metadata.get("general.alignment", 32)
        data = -(-self._at // alignment) * alignment
        self._tensors = [(data + offset, size) for offset, size in table]

    def _tensor(self, powerinfer: bool) -> tuple[int, int]:
        """Offset and bytes of the next tensor of the table."""
        self._string()
        dimensions = self._take(f"{self._take('I')[0]}Q")
        kind, offset = self._take("IQ")
        kind = _POWERINFER_INTEGERS.get(kind, kind) if powerinfer else kind
        weights, size = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        count = 1
        for dimension in dimensions:
            count *= dimension
        return offset, count // weights * size

    def _take(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from(f"<{layout}", self._bytes, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return values

    def _string(self) -> str:
        (size,) = self._take("Q")
        self._at += size
        if self._at > len(self._bytes):
            raise ValueError
        return self._bytes[self._at - size:self._at].decode()

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._take(_SCALARS[kind])[0]
        element, count = self._take("IQ")
        if element in _SCALARS:
            self._at += count * struct.calcsize(f"<{_SCALARS[element]}")
        else:
            for _ in range(count):
                self._value(element)
        return None


def _update(state: int, data: bytes) -> int:
    for byte in data:
        state = (state ^ byte) * _FNV_PRIME & (1 << 128) - 1
    return state
