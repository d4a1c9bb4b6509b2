"""A Hugging Face model folder: its configuration, and its tensors wherever their shards are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from isotherm_tools.errors import UserError
from isotherm_tools.safetensors_file import SafetensorsFile
from isotherm_tools.stored_tensor import StoredTensor
from isotherm_tools.torch_file import TorchFile

_FORMS = (("model.safetensors", "model*.safetensors", SafetensorsFile), ("pytorch_model.bin", "pytorch_model*.bin", TorchFile))
"""A form's single file, whose name with .index.json is its index, what its shards match, and its reader; best first."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        raise UserError(f"{path} is not JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; download it again")
    return value


class Checkpoint:
    """Tensors by name over all shards. Nothing is read before it is asked for, but for the shards' tables."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        config = folder / "config.json"
        if not config.is_file():
            raise UserError(f"{folder} has no config.json; name the folder of a Hugging Face checkpoint")
        self.config = read_json(config)
        self._shards: list[SafetensorsFile | TorchFile] = []
        self._owners: dict[str, SafetensorsFile | TorchFile] = {}
        paths, reader = self._find_shards()
        for path in paths:
            shard = reader(path)
            self._shards.append(shard)
            for name in shard.entries:
                self._owners.setdefault(name, shard)

    @property
    def names(self) -> list[str]:
        return list(self._owners)

    def __contains__(self, name: str) -> bool:
        return name in self._owners

    def tensor(self, name: str) -> StoredTensor:
        """UserError if there is none of that name."""
        if name not in self._owners:
            raise UserError(f"{self.folder} has no tensor {name}; is a shard missing?")
        return self._owners[name].tensor(name)

    def release(self) -> None:
        """Gives back the memory of what was read so far."""
        for shard in self._shards:
            shard.release()

    def _find_shards(self) -> tuple[list[Path], type[SafetensorsFile] | type[TorchFile]]:
        for single, pattern, reader in _FORMS:
            index = self.folder / f"{single}.index.json"
            if index.is_file():
                return self._indexed_shards(index), reader
            paths = sorted(self.folder.glob(pattern))
            if paths:
                return paths, reader
        raise UserError(f"{self.folder} has neither model*.safetensors nor pytorch_model*.bin; download the weights too")

    def _indexed_shards(self, index: Path) -> list[Path]:
        names = sorted(set(read_json(index).get("weight_map", {}).values()))
        missing = [name for name in names if not (self.folder / name).is_file()]
        if missing or not names:
            raise UserError(f"{index} lists {', '.join(missing) or 'no file'}, which {self.folder} does not have; "
                            "download the missing shards")
        return [self.folder / name for name in names]
