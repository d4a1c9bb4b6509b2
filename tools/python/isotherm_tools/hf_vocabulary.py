"""A checkpoint's tokenizer as the GGUF keys that llama.cpp's converter writes."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gguf import GGUFWriter, SpecialVocab, TokenType

from isotherm_tools.checkpoint import read_json
from isotherm_tools.errors import UserError

_ADDED_SCORE = -1000.0
"""Scores of tokens that a folder adds to its SentencePiece model, and of padding below, as in llama.cpp's converter."""
_PADDING_SCORE = -10000.0

# What tells byte-level pre-tokenizers apart: a piece of their regular expression, or the steps they consist of.
_LLAMA3_DIGITS = r"\p{N}{1,3}"
_QWEN2_DIGITS = r"|\p{N}|"


@dataclass
class HfVocabulary:
    """Tokens by id with scores and types, and how text becomes them."""

    model: str
    """tokenizer.ggml.model: llama (SentencePiece) or gpt2 (byte-level BPE)."""
    pre: str
    """tokenizer.ggml.pre."""
    tokens: list[str | bytes]
    scores: list[float]
    types: list[int]
    special: SpecialVocab
    add_space_prefix: bool = True

    def write(self, writer: GGUFWriter) -> None:
        """Adds the tokenizer.ggml keys."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)  # type: ignore[arg-type]
        if self.model == "llama":
            writer.add_token_scores(self.scores)
            if not self.add_space_prefix:
                writer.add_add_space_prefix(False)
        writer.add_token_types(self.types)
        self.special.add_to_gguf(writer, quiet=True)


def load_vocabulary(folder: Path, size: int) -> HfVocabulary:
    """The tokenizer in `folder` for an embedding of `size` rows; rows without a token become unused ones.

    UserError if there is no tokenizer, if it is of a kind that Isotherm cannot run, or if it has more than `size` tokens.
    """
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    model, tokenizer = folder / "tokenizer.model", folder / "tokenizer.json"
    if model.is_file():
        table = _from_sentencepiece(model, config)
    elif tokenizer.is_file():
        table = _from_tokenizer_json(tokenizer, read_json(tokenizer))
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        # GPT-2's own files, from before tokenizer.json; OPT has them.
        tokens = {i: _Token(text) for text, i in read_json(folder / "vocab.json").items()}
        table = _Table("gpt2", "gpt-2", tokens)
    else:
        raise UserError(f"{folder} has no tokenizer.model, no tokenizer.json, and no vocab.json with merges.txt; "
                        "download its tokenizer too")
    table.add_special(config)
    most = max(table.tokens, default=-1) + 1
    if most > size or most == 0:
        raise UserError(f"the tokenizer in {folder} has {most} tokens, but the embedding has {size} rows; "
                        "take the tokenizer that belongs to these weights")
    ordered = [table.tokens.get(i, _Token(f"[PAD{i}]", _PADDING_SCORE, TokenType.UNUSED)) for i in range(size)]
    special = SpecialVocab(folder, load_merges=table.model == "gpt2", n_vocab=size)
    if table.model == "gpt2" and not special.merges:
        raise UserError(f"the tokenizer in {folder} has no merges; download its tokenizer.json or merges.txt")
    return HfVocabulary(table.model, table.pre, [token.text for token in ordered], [token.score for token in ordered],
                        [int(token.kind) for token in ordered], special, table.add_space_prefix)


@dataclass(frozen=True)
class _Token:
    text: str | bytes
    score: float = 0.0
    kind: TokenType = TokenType.NORMAL


@dataclass
class _Table:
    """Tokens by id, which may have gaps."""

    model: str
    pre: str
    tokens: dict[int, _Token]
    add_space_prefix: bool = True

    def add(self, token_id: int, text: str, special: bool) -> None:
        """A token from beside the model; one that is there already keeps its type if that is not NORMAL."""
        old = self.tokens.get(token_id)
        if old is not None and old.kind != TokenType.NORMAL:
            return
        kind = TokenType.CONTROL if special else TokenType.USER_DEFINED
        self.tokens[token_id] = _Token(text, _ADDED_SCORE if self.model == "llama" else 0.0, kind)

    def add_special(self, config: dict[str, Any]) -> None:
        """The tokens of tokenizer_config.json, by id or by the part they play."""
        for token_id, entry in config.get("added_tokens_decoder", {}).items():
            self.add(int(token_id), str(entry["content"]), bool(entry.get("special")))
        entries = [config.get(f"{part}_token") for part in ("bos", "eos", "unk", "pad", "sep", "cls", "mask")]
        texts = {entry["content"] if isinstance(entry, dict) else entry for entry in entries if entry is not None}
        for token_id, token in self.tokens.items():
            if token.text in texts and token.kind == TokenType.NORMAL:
                self.tokens[token_id] = replace(token, kind=TokenType.CONTROL)


def _from_sentencepiece(path: Path, config: dict[str, Any]) -> _Table:
    pieces, add_space_prefix, kind = _sentencepiece_model(path)
    if kind != _BPE:
        raise UserError(f"{path} is a SentencePiece model of type {kind}; only BPE (type {_BPE}) is supported")
    table = _Table("llama", "default", dict(enumerate(pieces)), add_space_prefix and config.get("add_prefix_space") is not False)
    added = path.with_name("added_tokens.json")
    for text, token_id in (read_json(added).items() if added.is_file() else ()):
        table.add(int(token_id), text, special=False)
    return table


def _from_tokenizer_json(path: Path, tokenizer: dict[str, Any]) -> _Table:
    model = tokenizer.get("model", {})
    if model.get("type", "BPE") != "BPE":
        raise UserError(f"{path} is a {model.get('type')} tokenizer; BPE and SentencePiece are supported")
    tokens = {int(i): _Token(text) for text, i in model.get("vocab", {}).items()}
    if model.get("byte_fallback"):
        table = _Table("llama", "default", _scored(tokens, model), _adds_space(tokenizer))
    else:
        table = _Table("gpt2", _pre_tokenizer(path, tokenizer), tokens)
    for entry in tokenizer.get("added_tokens", []):
        table.add(int(entry["id"]), str(entry["content"]), bool(entry.get("special")))
    return table


def _scored(tokens: dict[int, _Token], model: dict[str, Any]) -> dict[int, _Token]:
    """SentencePiece's tokens with scores that choose the merges that the ranks of `merges` choose."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model.get("merges", [])):
        left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
        ranks.setdefault(left + right, rank)
    scored = {}
    for i, token in tokens.items():
        text = str(token.text)
        is_byte = len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        kind = TokenType.UNKNOWN if text == model.get("unk_token") else TokenType.BYTE if is_byte else TokenType.NORMAL
        scored[i] = _Token(text, -float(ranks[text]) if text in ranks else 0.0, kind)
    return scored


def _adds_space(tokenizer: dict[str, Any]) -> bool:
    """Whether text gets a space in front: a Prepend step, or a Metaspace that prepends."""
    return any(step.get("type") == "Prepend"
               or (step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never")
               for key, nested in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers"))
               for step in _steps(tokenizer.get(key), nested))


def _steps(step: dict[str, Any] | None, nested: str) -> Iterator[dict[str, Any]]:
    """A step, or the steps of a sequence."""
    if step is not None:
        yield from step.get(nested, [step]) if step.get("type") == "Sequence" else [step]


def _pre_tokenizer(path: Path, tokenizer: dict[str, Any]) -> str:
    """The name that llama.cpp has for the pre-tokenizer."""
    steps = list(_steps(tokenizer.get("pre_tokenizer"), "pretokenizers"))
    kinds = [step.get("type") for step in steps]
    patterns = " ".join(str(step.get("pattern", {}).get("Regex", "")) for step in steps)
    if kinds == ["ByteLevel"] and steps[0].get("use_regex", True):
        return "gpt-2"
    if kinds[:1] == ["Punctuation"] and "Digits" in kinds:
        return "falcon"
    if kinds == ["Split", "ByteLevel"] and _LLAMA3_DIGITS in patterns:
        return "llama-bpe"
    if kinds == ["Split", "ByteLevel"] and _QWEN2_DIGITS in patterns:
        return "qwen2"
    raise UserError(f"{path} has a pre-tokenizer of {', '.join(map(str, kinds)) or 'no steps'} that is not known; those of "
                    "GPT-2, Falcon, Llama 3 and Qwen2 are")


# --- SentencePiece's model file: a protocol buffer message, of which the fields below matter here. ---

_UNIGRAM, _BPE = 1, 2
_PIECES, _TRAINER_SPEC, _NORMALIZER_SPEC = 1, 2, 3
_PIECE_TEXT, _PIECE_SCORE, _PIECE_TYPE = 1, 2, 3
_MODEL_TYPE = 3
_ADD_DUMMY_PREFIX = 3


def _sentencepiece_model(path: Path) -> tuple[list[_Token], bool, int]:
    """(pieces by id, whether text gets a space in front, model type)."""
    pieces: list[_Token] = []
    add_space_prefix, kind = True, _UNIGRAM
    try:
        for field, value in _fields(path.read_bytes()):
            if field == _PIECES:
                piece = dict(_fields(value))
                score = struct.unpack("<f", piece[_PIECE_SCORE])[0] if _PIECE_SCORE in piece else 0.0
                # SentencePiece's types have the numbers of GGUF's.
                pieces.append(_Token(piece.get(_PIECE_TEXT, b""), score, TokenType(piece.get(_PIECE_TYPE, TokenType.NORMAL))))
            elif field == _TRAINER_SPEC:
                kind = dict(_fields(value)).get(_MODEL_TYPE, _UNIGRAM)
            elif field == _NORMALIZER_SPEC:
                add_space_prefix = bool(dict(_fields(value)).get(_ADD_DUMMY_PREFIX, 1))
    except (IndexError, TypeError, ValueError, struct.error) as error:
        raise UserError(f"{path} is not a SentencePiece model ({error}); download it again") from error
    return pieces, add_space_prefix, kind


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of a protocol buffer message: an int for a varint, bytes for the rest."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = varint()
        wire_type = key & 7
        if wire_type == 0:
            yield key >> 3, varint()
            continue
        if wire_type not in (1, 2, 5):
            raise ValueError(f"wire type {wire_type}")
        size = varint() if wire_type == 2 else 8 if wire_type == 1 else 4
        if at + size > len(message):
            raise ValueError("a field reaches beyond the end")
        yield key >> 3, message[at:at + size]
        at += size
