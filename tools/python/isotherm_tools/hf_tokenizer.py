"""A SentencePiece BPE vocabulary as a Hugging Face tokenizer that gives the same ids."""

from __future__ import annotations

from gguf import TokenType
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers.models import BPE

from isotherm_tools.gguf_llama import Vocabulary

SPACE = "\u2581"


def merges_by_score(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every way to join two pieces to a third, best score first: what SentencePiece's BPE decides by score."""
    normal = {str(token): score for token, score, kind in zip(vocabulary.tokens, vocabulary.scores, vocabulary.types)
              if kind == TokenType.NORMAL}
    merges = [(score, token[:cut], token[cut:]) for token, score in normal.items() for cut in range(1, len(token))
              if token[:cut] in normal and token[cut:] in normal]
    merges.sort(key=lambda merge: -merge[0])
    return [(left, right) for _, left, right in merges]


def llama_tokenizer(vocabulary: Vocabulary) -> Tokenizer:
    """Llama's tokenizer: spaces become U+2581, one is put in front, unknown characters fall back to bytes.

    It knows no special token: "<s>" in a text is plain text.
    """
    tokenizer = Tokenizer(BPE(vocab={str(token): i for i, token in enumerate(vocabulary.tokens)},
                              merges=merges_by_score(vocabulary), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    tokenizer.decoder = decoders.Sequence([decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    return tokenizer
