"""A plain numpy Llama over tensors in GGUF layout: the yardstick for exporters, and the calibrator's forward pass.

Arrays are [tokens, width]; one call handles one sequence from position 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from isotherm_tools.gguf_llama import LlamaShape

Mask = Callable[[int, np.ndarray, np.ndarray], np.ndarray]
"""(layer, residual before the FFN norm, FFN input) -> boolean [tokens, ffn]: neurons that are computed."""


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x [tokens, hidden] divided by its root mean square a row, times weight [hidden]."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def rope(x: np.ndarray, shape: LlamaShape) -> np.ndarray:
    """Rotates pairs (2i, 2i + 1) of each head; x is [tokens, heads, head_dim] from position 0."""
    dim = shape.head_dim
    positions = np.arange(x.shape[0], dtype=np.float64) / shape.rope_scale
    angles = positions[:, None] * shape.rope_base ** (-np.arange(0, dim, 2, dtype=np.float64) / dim)
    cos, sin = (f(angles)[:, None, :].astype(x.dtype) for f in (np.cos, np.sin))
    even, odd = x[..., 0::2], x[..., 1::2]
    return np.stack((even * cos - odd * sin, even * sin + odd * cos), axis=-1).reshape(x.shape)


def attend(x: np.ndarray, q: np.ndarray, k: np.ndarray, v: np.ndarray, shape: LlamaShape) -> np.ndarray:
    """Causal self-attention of the normalised input x [tokens, hidden] with GGUF-ordered projections.

    Returns the heads side by side, [tokens, hidden], before the output projection.
    """
    tokens = x.shape[0]
    group = shape.heads // shape.kv_heads
    queries = rope((x @ q.T).reshape(tokens, shape.heads, shape.head_dim), shape)
    keys = rope((x @ k.T).reshape(tokens, shape.kv_heads, shape.head_dim), shape)
    values = (x @ v.T).reshape(tokens, shape.kv_heads, shape.head_dim)
    causal = np.triu(np.full((tokens, tokens), -np.inf, dtype=x.dtype), 1)
    mixed = np.empty_like(queries)
    for head in range(shape.heads):
        scores = queries[:, head] @ keys[:, head // group].T / np.sqrt(shape.head_dim).astype(x.dtype) + causal
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed[:, head] = scores / scores.sum(axis=-1, keepdims=True) @ values[:, head // group]
    return mixed.reshape(tokens, -1)


def activate(gate: np.ndarray, activation: str) -> np.ndarray:
    """ReLU or SiLU, element by element."""
    if activation == "relu":
        return np.maximum(gate, 0)
    if activation == "silu":
        return gate / (1 + np.exp(-gate))
    raise ValueError(f"activation {activation!r} is not relu or silu")


def forward(weights: Mapping[str, np.ndarray], shape: LlamaShape, tokens: np.ndarray, activation: str,
            mask: Mask | None = None, fired: Callable[[int, np.ndarray], None] | None = None,
            dtype: type = np.float64) -> np.ndarray:
    """Logits [tokens, vocab] for token ids [tokens].

    `mask` restricts which neurons are computed (predicted mode); `fired(layer, boolean [tokens, ffn])` sees which
    neurons have a positive gate. FFN down is `ffn_down` [hidden, ffn] or `ffn_down_t` [ffn, hidden].
    """
    def w(name: str) -> np.ndarray:
        return weights[f"{name}.weight"].astype(dtype)

    x = w("token_embd")[tokens]
    for layer in range(shape.layers):
        prefix = f"blk.{layer}."
        normed = rms_norm(x, w(f"{prefix}attn_norm"), shape.rms_eps)
        heads = attend(normed, w(f"{prefix}attn_q"), w(f"{prefix}attn_k"), w(f"{prefix}attn_v"), shape)
        x = x + heads @ w(f"{prefix}attn_output").T
        normed = rms_norm(x, w(f"{prefix}ffn_norm"), shape.rms_eps)
        gate = normed @ w(f"{prefix}ffn_gate").T
        if fired is not None:
            fired(layer, gate > 0)
        neurons = activate(gate, activation) * (normed @ w(f"{prefix}ffn_up").T)
        if mask is not None:
            neurons = np.where(mask(layer, x, normed), neurons, 0)
        transposed = f"{prefix}ffn_down_t.weight" in weights
        x = x + neurons @ (w(f"{prefix}ffn_down_t") if transposed else w(f"{prefix}ffn_down").T)
    x = rms_norm(x, w("output_norm"), shape.rms_eps)
    return x @ w("output" if "output.weight" in weights else "token_embd").T
