"""Exports a tied ReLU Llama checkpoint (transformers' parameter names) as a sparse-ready GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from isotherm_tools import gguf_llama as gl


def export_relu_llama(path: Path, state: Mapping[str, np.ndarray], shape: gl.LlamaShape, vocabulary: gl.Vocabulary,
                      type_name: str, name: str, counts: np.ndarray | None = None, profile_tokens: int = 0) -> None:
    """Writes `state` (F32 arrays, torch order) as GGUF with ReLU FFNs.

    The down projection goes in transposed, `ffn_down_t` [ffn, hidden]: one neuron per row, so that a block of quants
    belongs to one neuron. `counts` [layers, ffn] says how often each neuron fired over `profile_tokens` tokens.
    A checkpoint without `lm_head.weight` is tied and gets no `output.weight`.
    """
    def get(key: str) -> np.ndarray:
        return np.asarray(state[key], dtype=np.float32)

    tensors = [("token_embd.weight", get("model.embed_tokens.weight"), type_name)]
    for layer in range(shape.layers):
        source, target = f"model.layers.{layer}.", f"blk.{layer}."
        tensors += [
            (f"{target}attn_norm.weight", get(f"{source}input_layernorm.weight"), "f32"),
            (f"{target}attn_q.weight", gl.permute_rope_rows(get(f"{source}self_attn.q_proj.weight"), shape.heads), type_name),
            (f"{target}attn_k.weight", gl.permute_rope_rows(get(f"{source}self_attn.k_proj.weight"), shape.kv_heads),
             type_name),
            (f"{target}attn_v.weight", get(f"{source}self_attn.v_proj.weight"), type_name),
            (f"{target}attn_output.weight", get(f"{source}self_attn.o_proj.weight"), type_name),
            (f"{target}ffn_norm.weight", get(f"{source}post_attention_layernorm.weight"), "f32"),
            (f"{target}ffn_gate.weight", get(f"{source}mlp.gate_proj.weight"), type_name),
            (f"{target}ffn_up.weight", get(f"{source}mlp.up_proj.weight"), type_name),
            (f"{target}ffn_down_t.weight", np.ascontiguousarray(get(f"{source}mlp.down_proj.weight").T), type_name),
        ]
        if counts is not None:
            tensors.append((f"{target}ffn_act_counts", counts[layer].astype(np.float32), "f32"))
    tensors.append(("output_norm.weight", get("model.norm.weight"), "f32"))
    if "lm_head.weight" in state:
        tensors.append(("output.weight", get("lm_head.weight"), type_name))
    with gl.LlamaWriter(path, shape, vocabulary, type_name, name, activation="relu") as writer:
        if counts is not None:
            writer.metadata.add_uint64(gl.KEY_PROFILE_TOKENS, profile_tokens)
        gl.write_tensors(writer, tensors)


def state_from_gguf(path: Path) -> tuple[dict[str, np.ndarray], gl.LlamaShape]:
    """The inverse: dequantised F32 weights under transformers' names, and the shape."""
    tensors, metadata = gl.read_tensors(path)
    shape = gl.shape_of(metadata)
    state = {"model.embed_tokens.weight": tensors["token_embd.weight"], "model.norm.weight": tensors["output_norm.weight"]}
    if "output.weight" in tensors:
        state["lm_head.weight"] = tensors["output.weight"]
    for layer in range(shape.layers):
        source, target = f"blk.{layer}.", f"model.layers.{layer}."
        down = (tensors[f"{source}ffn_down_t.weight"].T if f"{source}ffn_down_t.weight" in tensors
                else tensors[f"{source}ffn_down.weight"])
        state |= {
            f"{target}input_layernorm.weight": tensors[f"{source}attn_norm.weight"],
            f"{target}self_attn.q_proj.weight": gl.unpermute_rope_rows(tensors[f"{source}attn_q.weight"], shape.heads),
            f"{target}self_attn.k_proj.weight": gl.unpermute_rope_rows(tensors[f"{source}attn_k.weight"], shape.kv_heads),
            f"{target}self_attn.v_proj.weight": tensors[f"{source}attn_v.weight"],
            f"{target}self_attn.o_proj.weight": tensors[f"{source}attn_output.weight"],
            f"{target}post_attention_layernorm.weight": tensors[f"{source}ffn_norm.weight"],
            f"{target}mlp.gate_proj.weight": tensors[f"{source}ffn_gate.weight"],
            f"{target}mlp.up_proj.weight": tensors[f"{source}ffn_up.weight"],
            f"{target}mlp.down_proj.weight": np.ascontiguousarray(down),
        }
    return state, shape
