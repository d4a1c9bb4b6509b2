"""Reads the files of torch.save (.bin, .pt) without torch, and without running what is in them.

Such a file is a zip archive of uncompressed members: data.pkl, a pickle that names tensors by storage, offset, size and stride,
and one member a storage. Only the few names that tensors need are unpickled; anything else is refused.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from isotherm_tools.errors import UserError
from isotherm_tools.stored_tensor import DTYPES, MappedFile, StoredTensor

_STORAGES = {"DoubleStorage": "f64", "FloatStorage": "f32", "HalfStorage": "f16", "BFloat16Storage": "bf16",
             "LongStorage": "i64", "IntStorage": "i32"}

_LOCAL_HEADER = 30
"""Bytes of a zip member's header before its name; the lengths of name and extra field are its last four."""


class _Storage:
    """A storage named by the pickle: the elements as a view."""

    def __init__(self, kind: str, data: np.ndarray) -> None:
        self.kind = kind
        self.data = data


class _Unpickler(pickle.Unpickler):
    """Unpickles dictionaries and lists of tensors, and nothing else."""

    def __init__(self, pickled: bytes, file: MappedFile, members: dict[str, int]) -> None:
        super().__init__(io.BytesIO(pickled))
        self._file = file
        self._members = members

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise UserError(f"{self._file.path} holds a {module}.{name} where only tensors are expected; save its "
                        "state_dict() alone")

    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, _, count = pid
        if key not in self._members:
            raise UserError(f"{self._file.path} lacks the data of storage {key}; download it again")
        return _Storage(kind, self._file.array(kind, self._members[key], count))

    def _tensor(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> StoredTensor:
        last = offset + sum((extent - 1) * stride for extent, stride in zip(shape, strides, strict=True))
        if min((offset, *shape, *strides)) < 0 or (0 not in shape and last >= len(storage.data)):
            raise UserError(f"{self._file.path} has a tensor that reaches beyond its storage; download it again")
        size = DTYPES[storage.kind].itemsize
        data = np.lib.stride_tricks.as_strided(storage.data[offset:], shape, [stride * size for stride in strides],
                                               writeable=False)
        return StoredTensor(str(self._file.path), storage.kind, data)


class TorchFile:
    """One file; `value` is what was saved: StoredTensors in dictionaries and lists, or one alone."""

    def __init__(self, path: Path) -> None:
        self._file = MappedFile(path)
        if not zipfile.is_zipfile(path):
            raise UserError(f"{path} is no file of torch.save since version 1.6; load it with torch and save it again")
        with zipfile.ZipFile(path) as archive:
            pickles = [info.filename for info in archive.infolist() if info.filename.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise UserError(f"{path} has {len(pickles)} members data.pkl where one is expected")
            folder = pickles[0].removesuffix("data.pkl")
            members = {}
            for info in archive.infolist():
                if info.filename.startswith(f"{folder}data/"):
                    if info.compress_type != zipfile.ZIP_STORED:
                        raise UserError(f"{path} is compressed, unlike torch.save's files; save it again with torch")
                    header = self._file.bytes(info.header_offset, _LOCAL_HEADER)
                    skipped = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
                    members[info.filename.removeprefix(f"{folder}data/")] = info.header_offset + _LOCAL_HEADER + skipped
            try:
                self.value = _Unpickler(archive.read(pickles[0]), self._file, members).load()
            except (pickle.UnpicklingError, AttributeError, EOFError, LookupError, TypeError, ValueError) as error:
                raise UserError(f"{path} cannot be unpickled ({error}); download it again") from error

    @property
    def entries(self) -> dict[str, StoredTensor]:
        """The tensors of a state dict by name."""
        tensors = self.value if isinstance(self.value, dict) else {}
        return {str(name): tensor for name, tensor in tensors.items() if isinstance(tensor, StoredTensor)}

    def tensor(self, name: str) -> StoredTensor:
        """The tensor of that name, which is there."""
        tensor = self.entries[name]
        return StoredTensor(f"{tensor.origin}: {name}", tensor.kind, tensor.data)

    def release(self) -> None:
        self._file.release()
