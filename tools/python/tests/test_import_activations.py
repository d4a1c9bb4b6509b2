"""Profiles written by Python are those that the workers read: the digest above all."""

from pathlib import Path

import gguf
import hf_folders as hf
import numpy as np
import pytest

from isotherm_tools import import_activations as subject
from isotherm_tools.errors import UserError
from isotherm_tools.model_file import ModelFile

MODELS = Path(__file__).resolve().parents[3] / "models/tales"
TALES = MODELS / "tales-q8_0.gguf"
LAYERS, FFN = 6, 1280


def counts() -> np.ndarray:
    return np.arange(LAYERS * FFN, dtype=np.float32).reshape(LAYERS, FFN)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of PowerInfer's activation files."""
    write_activations(tmp_path / "activation", counts())
    return tmp_path / "activation"


def write_activations(folder: Path, values: np.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    for layer, row in enumerate(values):
        hf.write_torch(folder / f"activation_{layer}.pt", row)


def test_the_digest_is_the_workers() -> None:
    # As `isotherm inspect` prints it.
    assert ModelFile(TALES).digest() == "dd7c4b39fd8daf45e56dc98cc950105e"


def test_the_profile_holds_the_counts(folder: Path) -> None:
    path = subject.import_activations(folder, TALES, folder.parent / "out.gguf", None)
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "isotherm-profile"
    assert fields["isotherm.profile.model_digest"] == ModelFile(TALES).digest()
    assert fields["isotherm.profile.tokens"] == LAYERS * FFN - 1
    assert [tensor.name for tensor in reader.tensors] == [f"blk.{layer}.ffn_act_counts" for layer in range(LAYERS)]
    np.testing.assert_array_equal(np.stack([tensor.data for tensor in reader.tensors]), counts())
    assert sorted(child.name for child in folder.parent.iterdir()) == ["activation", "out.gguf"]


def test_what_cannot_be_imported_is_refused(folder: Path) -> None:
    out = folder.parent / "out.gguf"
    with pytest.raises(UserError, match="less than the largest count"):
        subject.import_activations(folder, TALES, out, 5)
    with pytest.raises(UserError, match="no GGUF file"):
        subject.import_activations(folder, MODELS / "README.md", None, None)
    truncated = folder / "truncated.gguf"
    truncated.write_bytes(TALES.read_bytes()[:3000])
    with pytest.raises(UserError, match="damaged"):
        subject.import_activations(folder, truncated, None, None)
    write_activations(folder, np.zeros((LAYERS, FFN), dtype=np.float32))
    with pytest.raises(UserError, match="no firing at all"):
        subject.import_activations(folder, TALES, out, None)
    (folder / "activation_3.pt").unlink()
    with pytest.raises(UserError, match="lacks activation_3.pt"):
        subject.import_activations(folder, TALES, out, None)
    assert not out.exists()
