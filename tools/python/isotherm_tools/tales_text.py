"""Text of the demo model: documents, its SentencePiece tokenizer, and windows of token ids.

A corpus file holds documents, each ended by a line `<|endoftext|>`. The token stream of a file is, for every
document in order, the ids of its text (stripped of newlines at both ends) and then </s>. A window is <s> and the next
`context - 1` ids of the stream, whatever document they belong to; windows do not overlap.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece as spm

from gguf import GGUFReader

from isotherm_tools.gguf_llama import Vocabulary

END_OF_DOCUMENT = "<|endoftext|>"
BOS, EOS = 1, 2


def read_documents(path: Path) -> list[str]:
    """The documents of a corpus file, without the newlines around them; empty ones are left out."""
    documents: list[list[str]] = [[]]
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line == END_OF_DOCUMENT:
            documents.append([])
        else:
            documents[-1].append(line)
    texts = ("\n".join(lines).strip("\n") for lines in documents)
    return [text for text in texts if text]


def train_tokenizer(documents: list[str], vocab: int) -> bytes:
    """A serialised SentencePiece BPE model of `vocab` tokens: <unk> 0, <s> 1, </s> 2, then the 256 bytes.

    Nothing is normalised, so text comes back as it went in; newlines are byte tokens.
    """
    model = io.BytesIO()
    spm.SentencePieceTrainer.train(
        sentence_iterator=(line for text in documents for line in text.split("\n") if line), model_writer=model,
        model_type="bpe", vocab_size=vocab, byte_fallback=True, character_coverage=1.0, split_digits=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, add_dummy_prefix=True,
        max_sentence_length=1 << 20, unk_id=0, bos_id=BOS, eos_id=EOS, pad_id=-1, num_threads=4, minloglevel=1)
    return model.getvalue()


def vocabulary_of(tokenizer: spm.SentencePieceProcessor) -> Vocabulary:
    """The tokenizer's vocabulary in GGUF's terms."""
    kinds = []
    for i in range(tokenizer.vocab_size()):
        if tokenizer.is_unknown(i):
            kinds.append(2)
        elif tokenizer.is_control(i):
            kinds.append(3)
        elif tokenizer.is_byte(i):
            kinds.append(6)
        else:
            kinds.append(1)
    return Vocabulary([tokenizer.id_to_piece(i) for i in range(tokenizer.vocab_size())],
                      [tokenizer.get_score(i) for i in range(tokenizer.vocab_size())], kinds)


def tokenizer_from_gguf(path: Path) -> spm.SentencePieceProcessor:
    """SentencePiece over the vocabulary inside a GGUF file."""
    from sentencepiece import sentencepiece_model_pb2 as messages

    proto: Any = messages  # generated code without types

    reader = GGUFReader(path)
    columns = []
    for key in ("tokens", "scores", "token_type"):
        field = reader.get_field(f"tokenizer.ggml.{key}")
        if field is None:
            raise ValueError(f"{path} has no tokenizer.ggml.{key}")
        columns.append(field.contents())
    model = proto.ModelProto()
    for piece, score, kind in zip(*columns, strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type = proto.TrainerSpec.BPE
    model.trainer_spec.byte_fallback = True
    model.trainer_spec.vocab_size = len(model.pieces)
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = True
    model.normalizer_spec.remove_extra_whitespaces = False
    model.normalizer_spec.escape_whitespaces = True
    return spm.SentencePieceProcessor(model_proto=model.SerializeToString())


def token_stream(tokenizer: spm.SentencePieceProcessor, documents: list[str]) -> np.ndarray:
    """The i32 token stream of a file's documents."""
    ids: list[int] = []
    for text in documents:
        ids += tokenizer.encode(text)
        ids.append(EOS)
    return np.asarray(ids, dtype=np.int32)


def windows(stream: np.ndarray, context: int) -> np.ndarray:
    """All whole windows of a stream, i64 [count, context]; ids left over at the end are dropped."""
    count = len(stream) // (context - 1)
    body = stream[:count * (context - 1)].reshape(count, context - 1)
    return np.concatenate([np.full((count, 1), BOS, dtype=np.int64), body.astype(np.int64)], axis=1)
