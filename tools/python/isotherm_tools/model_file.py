"""What a model file says about itself, and the digest by which workers know it."""

from __future__ import annotations

from pathlib import Path

from isotherm_tools.errors import UserError
from isotherm_tools.gguf_container import GgufFile

_SAMPLE_BYTES = 256
_FNV_BASIS = 0x6C62272E07BB014262B821756295C58D
_FNV_PRIME = (1 << 88) | 0x13B


class ModelFile(GgufFile):
    """A whole model in one file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        if self.metadata.get("split.count", 0) > 1:
            raise UserError(f"{self.path} is a part of a split model; merge it with llama-gguf-split --merge")

    def integer(self, key: str) -> int:
        """The value of an integer key, "ARCHITECTURE.block_count" for ".block_count"."""
        name = f"{self.metadata.get('general.architecture')}{key}" if key.startswith(".") else key
        value = self.metadata.get(name)
        if not isinstance(value, int):
            raise UserError(f"{self.path} has no {name}; is it a model?")
        return value

    def digest(self) -> str:
        """Of header, tensor table and samples of every tensor, as the workers compute it: 128-bit FNV-1a in hexadecimal."""
        state = _update(_FNV_BASIS, self.header())
        for name, tensor in self.tensors.items():
            data = self.raw(name)
            length = min(_SAMPLE_BYTES, tensor.size)
            for begin in (0, (tensor.size - length) // 2, tensor.size - length):
                state = _update(state, data[begin:begin + length].tobytes())
        return f"{state:032x}"


def _update(state: int, data: bytes) -> int:
    for byte in data:
        state = (state ^ byte) * _FNV_PRIME & (1 << 128) - 1
    return state
