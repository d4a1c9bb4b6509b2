"""Files are complete or not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from isotherm_tools.gguf_output import GgufOutput


def test_rows_in_any_order(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    matrix = np.arange(6 * 32, dtype=np.float32).reshape(6, 32)
    with GgufOutput(path, "llama", "f32", "rows") as output:
        output.declare("vector", (5,), "f32")
        output.declare("matrix", (6, 32), "f32")
        output.begin()
        output.write("matrix", matrix[4:], 4)
        output.write("vector", matrix[0, :5])
        output.write("matrix", matrix[:4])
        assert not path.exists()
        output.finish()
    tensors = {t.name: t for t in GGUFReader(path).tensors}
    assert (tensors["matrix"].data == matrix).all() and (tensors["vector"].data == matrix[0, :5]).all()
    assert tensors["matrix"].data_offset % 32 == 0
    assert list(tmp_path.iterdir()) == [path]


def test_an_unfinished_file_is_removed(tmp_path: Path) -> None:
    with GgufOutput(tmp_path / "x.gguf", "llama", "f32", "unfinished") as output:
        output.declare("a", (32,), "f32")
        with pytest.raises(ValueError, match="declared twice"):
            output.declare("a", (32,), "f32")
        output.begin()
        with pytest.raises(ValueError, match="do not fit tensor a"):
            output.write("a", np.zeros(33, np.float32))
        with pytest.raises(ValueError, match="0 of the 128 bytes of tensor a"):
            output.finish()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with GgufOutput(tmp_path / "nowhere" / "x.gguf", "llama", "f32", "nowhere") as output, \
            pytest.raises(FileNotFoundError, match="create it first"):
        output.begin()
