"""Text as windows of ids: documents, BOS and EOS as the vocabulary wants them, and what cannot be used."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from isotherm_tools.errors import UserError
from isotherm_tools.model_file import ModelFile
from isotherm_tools.token_windows import encoder, split_windows, windows

ROOT = Path(__file__).resolve().parents[3]


def file_with(**metadata: Any) -> Any:
    return SimpleNamespace(path="model.gguf", metadata={f"tokenizer.ggml.{key}": value for key, value in metadata.items()})


def characters(text: str) -> list[int]:
    return [ord(c) for c in text]


def test_documents_end_and_windows_begin(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("\nab\n<|endoftext|>\ncde\n<|endoftext|>\n\nnot <|endoftext|>\n<|endoftext|>")
    a, b, c, d, e = characters("abcde")
    llama = file_with(model="llama", bos_token_id=1, eos_token_id=2)
    assert windows(llama, characters, text, 4)[:2].tolist() == [[1, a, b, 2], [1, c, d, e]]
    assert windows(llama, characters, text, 4).shape == ((3 + 4 + 18) // 3, 4)
    without_bos = file_with(model="gpt2", bos_token_id=1, eos_token_id=2)
    assert windows(without_bos, characters, text, 4)[:2].tolist() == [[a, b, 2, c], [d, e, 2, ord("n")]]
    assert windows(file_with(model="gpt2"), characters, text, 4)[0].tolist() == [a, b, c, d]


def test_one_text_is_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("isotherm_tools.token_windows.encoder", lambda _: characters)
    text = tmp_path / "text.txt"
    text.write_text("x" * 100)
    training, held_out = split_windows(file_with(model="gpt2"), [text], 5)
    assert (training.shape, held_out.shape) == ((18, 5), (2, 5))
    training, held_out = split_windows(file_with(model="gpt2"), [text, text], 5)
    assert (training.shape, held_out.shape) == ((20, 5), (20, 5))


def test_what_cannot_be_used_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tmp_path / "text.txt"
    text.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="not UTF-8"):
        windows(file_with(model="gpt2"), characters, text, 4)
    text.write_text("too short")
    monkeypatch.setattr("isotherm_tools.token_windows.encoder", lambda _: characters)
    with pytest.raises(UserError, match="too little text to train on: 0 windows of 8 tokens"):
        split_windows(file_with(model="gpt2"), [text], 8)
    with pytest.raises(UserError, match="vocabulary of kind 'bert'"):
        encoder(file_with(model="bert"))


def test_the_demo_models_vocabulary() -> None:
    pytest.importorskip("sentencepiece")
    encode = encoder(ModelFile(ROOT / "models/tales/tales-q8_0.gguf"))
    assert encode("The king said to his daughter,") == [355, 614, 352, 277, 330, 963, 4022]  # as in reference.json


def test_a_byte_level_vocabulary() -> None:
    pytest.importorskip("tokenizers")
    encode = encoder(ModelFile(ROOT / "tests/reference/data/vocab-tiny-gpt-2.gguf"))
    ids = encode("Hello, world \u00e9\n")
    assert ids and ids == [*encode("Hello,"), *encode(" world"), *encode(" \u00e9"), *encode("\n")]
