"""Writes Llama-shaped models as GGUF, the way llama.cpp's converter lays them out.

Matrices are numpy arrays in torch's order [rows = outputs, columns = inputs]; GGUF records the
dimensions reversed, so `ffn_gate` is [ffn, hidden] here and ne = [hidden, ffn] in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, RopeScalingType, TokenType
from gguf.quants import dequantize as _dequantize
from gguf.quants import quantize as _quantize

from isotherm_tools.gguf_output import TYPES, GgufOutput

# Read by Isotherm; a file without the first key has its architecture's own activation.
KEY_ACTIVATION = "isotherm.ffn.activation"
KEY_PROFILE_TOKENS = "isotherm.profile.tokens"
KEY_PREDICTOR_FORM = "isotherm.predictor.form"
KEY_PREDICTOR_INPUT = "isotherm.predictor.input"
KEY_PREDICTOR_THRESHOLD = "isotherm.predictor.threshold"
KEY_POWERINFER_THRESHOLD = "powerinfer.sparse_threshold"


@dataclass(frozen=True)
class LlamaShape:
    """Hyperparameters of a Llama model. Widths are numbers of elements."""

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    vocab: int
    context: int
    rms_eps: float = 1e-5
    rope_base: float = 10000.0
    rope_scale: float = 1.0
    """Linear position scaling: positions are divided by this factor; 1 means none."""

    def __post_init__(self) -> None:
        if self.hidden % self.heads or self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must divide hidden ({self.hidden}) and kv_heads ({self.kv_heads}) heads")
        if self.head_dim % 2:
            raise ValueError(f"head width {self.head_dim} is odd; rotary embedding needs pairs")

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def kv_width(self) -> int:
        """Rows of the K and of the V projection."""
        return self.kv_heads * self.head_dim


@dataclass(frozen=True)
class Vocabulary:
    """A SentencePiece vocabulary as GGUF stores it; the three lists have one entry a token."""

    tokens: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]


def tiny_vocabulary(size: int) -> Vocabulary:
    """<unk>, <s>, </s>, the 256 byte tokens, the space and letters, then filler up to `size` tokens."""
    if size < 259:
        raise ValueError(f"a vocabulary of {size} has no room for 3 control and 256 byte tokens")
    tokens: list[str] = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    types = [int(TokenType.UNKNOWN), int(TokenType.CONTROL), int(TokenType.CONTROL)] + [int(TokenType.BYTE)] * 256
    scores = [0.0] * len(tokens)
    letters = ["\u2581"] + list("etaoinshrdlcumwfgypbvkxjqz.,") + ["\u2581t", "he", "\u2581the"]
    filler = (f"<filler_{i}>" for i in range(size))
    for rank in range(size - len(tokens)):
        # Fillers are unused tokens: no text turns into one.
        tokens.append(letters[rank] if rank < len(letters) else next(filler))
        types.append(int(TokenType.NORMAL) if rank < len(letters) else int(TokenType.UNUSED))
        scores.append(-float(rank))
    return Vocabulary(tokens, scores, types)


def permute_rope_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """Reorders the rows of a Q or K projection from halves to interleaved pairs.

    Hugging Face rotates element i of a head with element i + head_dim/2; GGUF's llama architecture rotates
    2i with 2i + 1. `weight` is [heads * head_dim, hidden]; row i of a head moves to 2i, row i + head_dim/2 to 2i + 1.
    """
    rows, columns = weight.shape
    half = rows // heads // 2
    return weight.reshape(heads, 2, half, columns).swapaxes(1, 2).reshape(rows, columns)


def unpermute_rope_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of permute_rope_rows."""
    rows, columns = weight.shape
    half = rows // heads // 2
    return weight.reshape(heads, half, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def encode(weight: np.ndarray, type_name: str) -> np.ndarray:
    """Encodes the F32 matrix [rows, columns]: F32 and F16 keep their shape, other types become bytes [rows, n]."""
    return _quantize(np.ascontiguousarray(weight, dtype=np.float32), TYPES[type_name])


def decode(data: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    """The F32 values of encoded rows."""
    return _dequantize(data, kind).astype(np.float32, copy=False)


class LlamaWriter(GgufOutput):
    """A GgufOutput with Llama's keys, under its name or a relative's, and a SentencePiece vocabulary."""

    def __init__(self, path: Path, shape: LlamaShape, vocabulary: Vocabulary, type_name: str, name: str,
                 activation: str | None = None, powerinfer: bool = False, architecture: str = "llama") -> None:
        """`type_name` is the main weight type. `activation` is the FFN's, None where it is SiLU."""
        if len(vocabulary.tokens) != shape.vocab:
            raise ValueError(f"{len(vocabulary.tokens)} tokens for a vocabulary of {shape.vocab}")
        super().__init__(path, architecture, type_name, name, powerinfer)
        writer = self.metadata
        writer.add_vocab_size(shape.vocab)
        writer.add_context_length(shape.context)
        writer.add_embedding_length(shape.hidden)
        writer.add_block_count(shape.layers)
        writer.add_feed_forward_length(shape.ffn)
        writer.add_head_count(shape.heads)
        writer.add_head_count_kv(shape.kv_heads)
        writer.add_layer_norm_rms_eps(shape.rms_eps)
        writer.add_rope_dimension_count(shape.head_dim)
        writer.add_rope_freq_base(shape.rope_base)
        if shape.rope_scale != 1.0:
            writer.add_rope_scaling_type(RopeScalingType.LINEAR)
            writer.add_rope_scaling_factor(shape.rope_scale)
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(list(vocabulary.tokens))
        writer.add_token_scores(list(vocabulary.scores))
        writer.add_token_types(list(vocabulary.types))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_add_bos_token(True)
        writer.add_add_eos_token(False)
        if activation is not None:
            writer.add_string(KEY_ACTIVATION, activation)


def write_tensors(writer: GgufOutput, tensors: Sequence[tuple[str, np.ndarray, str]]) -> None:
    """Declares, encodes and writes a whole model held in memory: (name, F32 array, type name)."""
    for name, array, type_name in tensors:
        writer.declare(name, array.shape, type_name)
    writer.begin()
    for name, array, type_name in tensors:
        writer.write(name, encode(array, type_name))
    writer.finish()


def read_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Reads a GGUF file back: F32 tensors in torch order by name, and the metadata."""
    reader = GGUFReader(path)
    tensors = {t.name: decode(t.data, t.tensor_type).reshape(tuple(int(n) for n in reversed(t.shape)))
               for t in reader.tensors}
    return tensors, {key: field.contents() for key, field in reader.fields.items()}


def shape_of(metadata: dict[str, object]) -> LlamaShape:
    """The hyperparameters in a file's metadata."""
    def number(key: str, default: float | None = None) -> float:
        value = metadata.get(f"llama.{key}", default)
        if value is None:
            raise KeyError(f"llama.{key}")
        return float(value)  # type: ignore[arg-type]

    return LlamaShape(
        layers=int(number("block_count")), hidden=int(number("embedding_length")),
        ffn=int(number("feed_forward_length")), heads=int(number("attention.head_count")),
        kv_heads=int(number("attention.head_count_kv")), vocab=int(number("vocab_size")),
        context=int(number("context_length")), rms_eps=number("attention.layer_norm_rms_epsilon"),
        rope_base=number("rope.freq_base", 10000.0), rope_scale=number("rope.scaling.factor", 1.0))
