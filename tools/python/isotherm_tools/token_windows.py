"""Text as windows of token ids, by the vocabulary inside a model file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np

from isotherm_tools.errors import UserError
from isotherm_tools.model_file import ModelFile

HELD_OUT_SHARE = 0.1
"""Of a text that is to be trained on and measured on."""


def split_windows(file: ModelFile, texts: list[Path], context: int) -> tuple[np.ndarray, np.ndarray]:
    """(training windows, held-out windows) i64 [count, context] of one text, which is divided, or of one each."""
    encode = encoder(file)
    parts = [windows(file, encode, text, context) for text in texts]
    if len(parts) == 1:
        held_out = max(1, round(HELD_OUT_SHARE * len(parts[0])))
        parts = [parts[0][:-held_out], parts[0][-held_out:]]
    for part, least, text, use in zip(parts, (2, 1), (texts[0], texts[-1]), ("train on", "measure on"), strict=True):
        if len(part) < least:
            raise UserError(f"{text} has too little text to {use}: {len(part)} windows of {context} tokens where {least} are the "
                            "least; give more text or a smaller --context")
    return parts[0], parts[1]


def windows(file: ModelFile, encode: Callable[[str], list[int]], text: Path, context: int) -> np.ndarray:
    """Each window is BOS, where the vocabulary wants it, and the next ids of the text; a line <|endoftext|> becomes EOS."""
    metadata = file.metadata
    bos = [metadata["tokenizer.ggml.bos_token_id"]] if metadata.get(
        "tokenizer.ggml.add_bos_token", metadata.get("tokenizer.ggml.model") == "llama") else []
    eos = [metadata["tokenizer.ggml.eos_token_id"]] if "tokenizer.ggml.eos_token_id" in metadata else []
    try:
        documents = re.split(r"^<\|endoftext\|>$", text.read_text(encoding="utf-8"), flags=re.MULTILINE)
    except UnicodeDecodeError:
        raise UserError(f"{text} is not UTF-8; convert it first") from None
    ids = np.asarray([token for document in documents if document.strip("\n") for token in [*encode(document.strip("\n")), *eos]],
                     dtype=np.int64)
    body = context - len(bos)
    count = len(ids) // body
    return np.concatenate([np.tile(np.asarray(bos, dtype=np.int64), (count, 1)), ids[:count * body].reshape(count, body)], axis=1)


def encoder(file: ModelFile) -> Callable[[str], list[int]]:
    """Text to token ids. Byte-level vocabularies are cut into words as GPT-2 does, which is near enough to train on."""
    kind = file.metadata.get("tokenizer.ggml.model")
    if kind == "llama":
        try:
            from isotherm_tools import tales_text
        except ImportError:
            raise UserError("this model's vocabulary needs the sentencepiece and protobuf packages; install them") from None
        return tales_text.tokenizer_from_gguf(file.path).encode
    if kind == "gpt2":
        try:
            from tokenizers import Tokenizer, models, pre_tokenizers
        except ImportError:
            raise UserError("this model's vocabulary needs the tokenizers package; install it") from None
        tokens = {token: i for i, token in enumerate(file.metadata["tokenizer.ggml.tokens"])}
        tokenizer = Tokenizer(models.BPE(tokens, [tuple(merge.split(" ")) for merge in file.metadata["tokenizer.ggml.merges"]]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)
    raise UserError(f"{file.path} has a vocabulary of kind '{kind}'; supported: llama, gpt2")
