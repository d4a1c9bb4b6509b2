"""Tokenizers of Hugging Face folders as GGUF keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hf_folders as hf
import pytest
from gguf import GGUFReader, GGUFWriter, TokenType

from isotherm_tools import gguf_llama as gl
from isotherm_tools.errors import UserError
from isotherm_tools.hf_vocabulary import load_vocabulary

BYTE_LEVEL: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def split(regex: str) -> dict[str, Any]:
    return {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}, BYTE_LEVEL]}


PRE_TOKENIZERS: dict[str, dict[str, Any]] = {
    "gpt-2": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
    "llama-bpe": split(LLAMA3),
    "qwen2": split(LLAMA3.replace("{1,3}", "")),
    "falcon": {"type": "Sequence", "pretokenizers": [
        {"type": "Punctuation", "behavior": "Contiguous"}, BYTE_LEVEL | {"use_regex": True},
        {"type": "Digits", "individual_digits": False},
        {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False}]},
}


def byte_level(pre: dict[str, Any], merges: list[Any]) -> dict[str, Any]:
    return {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": merges}, "pre_tokenizer": pre,
            "added_tokens": [{"id": 3, "content": "<|end|>", "special": True}, {"id": 5, "content": "<tool>", "special": False}]}


def keys(folder: Path, size: int) -> dict[str, Any]:
    """The tokenizer keys of a file made from `folder`, without their prefix."""
    writer = GGUFWriter(folder / "out.gguf", "llama")
    load_vocabulary(folder, size).write(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    fields = GGUFReader(folder / "out.gguf").fields
    return {key.removeprefix("tokenizer.").removeprefix("ggml."): field.contents() for key, field in fields.items()}


@pytest.mark.parametrize("name", PRE_TOKENIZERS)
@pytest.mark.parametrize("merges", [["a b"], [["a", "b"]]])
def test_byte_level_bpe(tmp_path: Path, name: str, merges: list[Any]) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_level(PRE_TOKENIZERS[name], merges)))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({
        "eos_token": "<|end|>", "add_bos_token": False, "chat_template": "{{ messages }}"}))
    found = keys(tmp_path, 7)
    assert (found["model"], found["pre"], found["merges"]) == ("gpt2", name, ["a b"])
    assert found["tokens"] == ["a", "b", "ab", "<|end|>", "[PAD4]", "<tool>", "[PAD6]"]
    assert found["token_type"] == [TokenType.NORMAL] * 3 + [TokenType.CONTROL, TokenType.UNUSED, TokenType.USER_DEFINED,
                                                            TokenType.UNUSED]
    assert (found["eos_token_id"], found["add_bos_token"], found["chat_template"]) == (3, False, "{{ messages }}")
    assert "scores" not in found


def test_an_unknown_pre_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(byte_level({"type": "Whitespace"}, ["a b"])))
    with pytest.raises(UserError, match="pre-tokenizer of Whitespace that is not known; those of GPT-2"):
        load_vocabulary(tmp_path, 7)


@pytest.mark.parametrize(("model", "message"), [({"type": "Unigram"}, "is a Unigram tokenizer"),
                                                ({"type": "BPE", "vocab": {"a": 0}, "merges": []}, "has no merges")])
def test_tokenizers_that_do_not_run(tmp_path: Path, model: dict[str, Any], message: str) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": model, "pre_tokenizer": PRE_TOKENIZERS["gpt-2"]}))
    with pytest.raises(UserError, match=message):
        load_vocabulary(tmp_path, 7)


def test_gpt2_s_own_files(tmp_path: Path) -> None:
    """What OPT's folders hold."""
    (tmp_path / "vocab.json").write_text(json.dumps({"<s>": 0, "</s>": 1, "a": 2, "b": 3, "ab": 4}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "</s>"}, "add_bos_token": True}))
    (tmp_path / "config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": 1}))
    found = keys(tmp_path, 5)
    assert (found["model"], found["pre"], found["merges"]) == ("gpt2", "gpt-2", ["a b"])
    assert found["token_type"][:3] == [TokenType.NORMAL, TokenType.CONTROL, TokenType.NORMAL]
    assert (found["bos_token_id"], found["eos_token_id"], found["add_bos_token"]) == (1, 1, True)


def test_sentencepiece_model(tmp_path: Path) -> None:
    vocabulary = gl.tiny_vocabulary(300)
    hf.write_sentencepiece(tmp_path / "tokenizer.model", vocabulary)
    (tmp_path / "added_tokens.json").write_text('{"<pad>": 300}')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({
        "added_tokens_decoder": {"0": {"content": "<unk>", "special": True}, "301": {"content": "<im_end>", "special": True}},
        "add_prefix_space": False}))
    found = keys(tmp_path, 303)
    assert (found["model"], found["pre"], found["add_space_prefix"]) == ("llama", "default", False)
    assert found["tokens"] == [*vocabulary.tokens, "<pad>", "<im_end>", "[PAD302]"]
    assert found["scores"] == [*vocabulary.scores, -1000, -1000, -10000]
    assert found["token_type"] == [*vocabulary.types, TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.UNUSED]


def test_sentencepiece_saved_as_tokenizer_json(tmp_path: Path) -> None:
    """Scores fall with the rank of the merge that makes a piece."""
    vocab = {"<unk>": 0, "<s>": 1, "<0x0A>": 2, "\u2581": 3, "t": 4, "h": 5, "\u2581t": 6, "th": 7, "\u2581th": 8}
    tokenizer: dict[str, Any] = {
        "model": {"type": "BPE", "byte_fallback": True, "unk_token": "<unk>", "vocab": vocab,
                  "merges": ["t h", ["\u2581", "t"], "\u2581 th", "\u2581t h"]},
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}]},
        "added_tokens": [{"id": 0, "content": "<unk>", "special": True}, {"id": 1, "content": "<s>", "special": True}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    found = keys(tmp_path, 9)
    assert found["model"] == "llama" and found["tokens"] == list(vocab) and "add_space_prefix" not in found
    assert found["scores"][2:] == [0, 0, 0, 0, -1, 0, -2]
    assert found["token_type"] == [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.BYTE] + [TokenType.NORMAL] * 6
    tokenizer["normalizer"] = None
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert keys(tmp_path, 9)["add_space_prefix"] is False
