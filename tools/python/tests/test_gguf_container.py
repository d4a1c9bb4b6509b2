"""Copies of a GGUF file keep every byte that they were not asked to change, and appear whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from isotherm_tools import gguf_llama as gl
from isotherm_tools.errors import UserError
from isotherm_tools.gguf_container import F32, GGUF, POWERINFER, GgufFile, NewTensor

FIXTURES = Path(__file__).resolve().parents[3] / "tests" / "reference" / "data"
MODEL = FIXTURES / "tied-relu-q8_0.gguf"


def copy(source: Path, out: Path, **changes) -> GgufFile:  # type: ignore[no-untyped-def]
    plain = {"magic": GGUF, "without_tensors": (), "tensors": (), "without_keys": (), "pairs": {}}
    GgufFile(source).write_copy(out, **(plain | changes))
    return GgufFile(out)


@pytest.mark.parametrize("name", ["tied-relu-q8_0", "mha-silu-q4_0", "gqa-relu-f16"])
def test_an_unchanged_copy_has_the_same_bytes(tmp_path: Path, name: str) -> None:
    copy(FIXTURES / f"{name}.gguf", tmp_path / "copy.gguf")
    assert (tmp_path / "copy.gguf").read_bytes() == (FIXTURES / f"{name}.gguf").read_bytes()


@pytest.mark.parametrize("name", ["tied-relu-q8_0", "mha-silu-q4_0", "gqa-relu-f16"])
def test_values_are_those_of_the_gguf_package(name: str) -> None:
    theirs, metadata = gl.read_tensors(FIXTURES / f"{name}.gguf")
    ours = GgufFile(FIXTURES / f"{name}.gguf")
    assert ours.metadata == {key: value for key, value in metadata.items() if not key.startswith("GGUF.")}
    assert list(ours.tensors) == list(theirs)
    for tensor, values in theirs.items():
        assert ours.tensors[tensor].shape == values.shape
        assert (ours.values(tensor) == values).all()


def test_tensors_and_keys_come_and_go(tmp_path: Path) -> None:
    added = NewTensor("odd.size", (3, 7), F32, np.arange(21, dtype=np.float32).reshape(3, 7))
    last = NewTensor("last", (5,), F32, np.ones(5, np.float32))
    out = copy(MODEL, tmp_path / "copy.gguf", tensors=[added, last], without_tensors={"output_norm.weight"},
               without_keys={"general.name"}, pairs={gl.KEY_ACTIVATION: "fatrelu", "a.number": 0.25}, magic=POWERINFER)
    before = GgufFile(MODEL)
    assert out.magic == POWERINFER
    assert "output_norm.weight" not in out.tensors and "general.name" not in out.metadata
    assert out.metadata[gl.KEY_ACTIVATION] == "fatrelu" and out.metadata["a.number"] == 0.25
    assert (out.values("odd.size") == added.data).all() and (out.values("last") == 1).all()
    for name in out.tensors.keys() & before.tensors.keys():
        assert bytes(out.raw(name)) == bytes(before.raw(name))
        assert out.tensors[name].start % 32 == 0


def test_a_failed_copy_leaves_what_was_there(tmp_path: Path) -> None:
    def full(_: int) -> None:
        raise OSError("No space left on device")

    out = tmp_path / "copy.gguf"
    out.write_bytes(b"before")
    with pytest.raises(OSError, match="No space left"):
        copy(MODEL, out, copied=full)
    assert [path.name for path in tmp_path.iterdir()] == ["copy.gguf"] and out.read_bytes() == b"before"


@pytest.mark.parametrize(("damage", "reason"), [
    (lambda data: data[:10], "too short"),
    (lambda data: b"GGML" + data[4:], "no GGUF file"),
    (lambda data: data[:400], "ends inside its header"),
    (lambda data: data[:-100], "ends before the data of tensor")])
def test_a_damaged_file_is_refused(tmp_path: Path, damage, reason: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "damaged.gguf"
    path.write_bytes(damage(MODEL.read_bytes()))
    with pytest.raises(UserError, match=reason):
        GgufFile(path)
