"""The demo model in plain numpy, as far as telling which neurons fire."""

import pathlib
import sys

import numpy

import suite

sys.path.append(str(suite.SOURCE / "tests/contract"))
from gguf_tensors import GgufTensors

LAYERS, HEADS, KV_HEADS, HEAD_SIZE = 6, 8, 4, 64
NEURONS = 1280
EPSILON, ROPE_BASE = 1e-5, 10000.0


def _norm(x, weight):
    return x / numpy.sqrt(numpy.mean(x * x, axis=-1, keepdims=True) + EPSILON) * weight


def _rotate(x):
    """x [rows, heads, head size] from position 0, pairs side by side."""
    angles = numpy.arange(len(x))[:, None] * ROPE_BASE ** (-numpy.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
    cos, sin = numpy.cos(angles)[:, None], numpy.sin(angles)[:, None]
    even, odd = x[..., 0::2], x[..., 1::2]
    return numpy.stack((even * cos - odd * sin, even * sin + odd * cos), axis=-1).reshape(x.shape)


def _attend(q, k, v):
    """q [rows, heads, head size], k and v with fewer heads; [rows, hidden]."""
    k, v = (numpy.repeat(each, HEADS // KV_HEADS, axis=1) for each in (k, v))
    scores = numpy.einsum("rhd,shd->hrs", q, k) / numpy.sqrt(HEAD_SIZE)
    scores += numpy.triu(numpy.full(scores.shape[1:], -numpy.inf), 1)
    weights = numpy.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return numpy.einsum("hrs,shd->rhd", weights, v).reshape(len(q), -1)


def firings(path: pathlib.Path, tokens):
    """How often each neuron fires, [layers, neurons], while a sequence of tokens is computed."""
    tensors = GgufTensors(path)
    counts = numpy.zeros((LAYERS, NEURONS), dtype=numpy.int64)
    x = tensors.matrix("token_embd.weight")[tokens].astype(numpy.float64)
    for layer in range(LAYERS):
        def matrix(name):
            return tensors.matrix(f"blk.{layer}.{name}.weight")

        h = _norm(x, tensors.vector(f"blk.{layer}.attn_norm.weight"))
        q, k, v = ((h @ matrix(f"attn_{name}").T).reshape(len(x), -1, HEAD_SIZE) for name in "qkv")
        x = x + _attend(_rotate(q), _rotate(k), v) @ matrix("attn_output").T
        h = _norm(x, tensors.vector(f"blk.{layer}.ffn_norm.weight"))
        gate = numpy.maximum(h @ matrix("ffn_gate").T, 0)
        counts[layer] = (gate > 0).sum(axis=0)
        x = x + (gate * (h @ matrix("ffn_up").T)) @ matrix("ffn_down_t")
    return counts
