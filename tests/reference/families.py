"""Fixtures of the model families beyond Llama: random weights under llama.cpp's names, logits by `transformers`.

Where `transformers` has no such class (FATReLU, dReLU, MiniCPM) its nearest one is changed by hooks, as named in FAMILIES.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from isotherm_tools import gguf_llama as gl

CONTEXT = 64
VOCABULARY = 272
HIDDEN, FFN, HEADS = 64, 128, 4
HEAD_DIM = HIDDEN // HEADS
EPSILON = 1e-5
ROPE_BASE = 10000.0
FATRELU_THRESHOLD = 0.4
SCALE_EMB, SCALE_DEPTH, DIM_MODEL_BASE = 3.0, 1.4, 24
LLAMA3_ROPE = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
OPT_OFFSET = 2
ROTARY_SHARE = 0.5
"""Of a Nemotron head."""

Weights = dict[str, np.ndarray]


@dataclass(frozen=True)
class Family:
    """How one architecture's files differ from a Llama's."""

    architecture: str
    build: Callable[[FamilyCase], Any]
    """The transformers model, random weights."""
    gated: bool = True
    layer_norm: bool = False
    norms: tuple[str, ...] = ("attn_norm", "ffn_norm")
    attention_biases: bool = False
    """Of q, k and v."""
    biases: bool = False
    """Of every matrix but the head."""
    fused: bool = False
    """attn_qkv instead of attn_q, attn_k and attn_v."""
    permuted: bool = True
    """Rows of Q and K are stored for interleaved rotary pairs."""
    positions: bool = False
    names: dict[str, str] = field(default_factory=dict)
    """Part of a GGUF tensor name to the module of transformers, where it is not Llama's."""


@dataclass(frozen=True)
class FamilyCase:
    """One fixture."""

    name: str
    family: Family
    activation: str
    type_name: str
    kv_heads: int = 2
    layers: int = 1
    tied: bool = True
    named_activation: bool = True
    """Whether the file carries isotherm.ffn.activation."""
    llama3_rope: bool = False
    predictor_rank: int = 0
    """0: an ordinary file; otherwise PowerInfer's form with a predictor of this rank."""
    tokens: int = 40


LLAMA_NAMES = {
    "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head",
    "layer": "model.layers", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}

FALCON_NAMES = {
    "token_embd": "transformer.word_embeddings", "output_norm": "transformer.ln_f", "layer": "transformer.h",
    "attn_norm": "input_layernorm", "attn_qkv": "self_attention.query_key_value", "attn_output": "self_attention.dense",
    "ffn_up": "mlp.dense_h_to_4h", "ffn_down": "mlp.dense_4h_to_h"}

OPT_NAMES = {
    "token_embd": "model.decoder.embed_tokens", "position_embd": "model.decoder.embed_positions",
    "output_norm": "model.decoder.final_layer_norm", "layer": "model.decoder.layers",
    "attn_norm": "self_attn_layer_norm", "ffn_norm": "final_layer_norm", "attn_output": "self_attn.out_proj",
    "ffn_up": "fc1", "ffn_down": "fc2"}


def llama_arguments(case: FamilyCase) -> dict[str, Any]:
    """Arguments that the configurations of Llama's relatives share."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": ROPE_BASE}
    if case.llama3_rope:
        rope |= {"rope_type": "llama3", **LLAMA3_ROPE}
    return {
        "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "intermediate_size": FFN, "num_hidden_layers": case.layers,
        "num_attention_heads": HEADS, "num_key_value_heads": case.kv_heads, "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": case.tied, "rope_parameters": rope, "attn_implementation": "eager",
        "hidden_act": case.activation if case.activation in ("silu", "relu", "relu2") else "relu"}


def build_llama(case: FamilyCase) -> Any:
    """Llama; FATReLU in the place of its activation."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**llama_arguments(case), rms_norm_eps=EPSILON))
    if case.activation == "fatrelu":
        for layer in model.model.layers:
            layer.mlp.act_fn = torch.nn.Threshold(FATRELU_THRESHOLD, 0.0)
    return model


def build_mistral(case: FamilyCase) -> Any:
    """Mistral; for dReLU with a ReLU behind the up projection, too."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    model = MistralForCausalLM(MistralConfig(**llama_arguments(case), rms_norm_eps=EPSILON, sliding_window=None))
    if case.activation == "drelu":
        for layer in model.model.layers:
            layer.mlp.up_proj.register_forward_hook(lambda _module, _inputs, output: torch.relu(output))
    return model


def build_minicpm(case: FamilyCase) -> Any:
    """Llama with MiniCPM's three scales."""
    model = build_llama(case)
    branch = SCALE_DEPTH / math.sqrt(case.layers)
    model.model.embed_tokens.register_forward_hook(lambda _module, _inputs, output: output * SCALE_EMB)
    model.model.norm.register_forward_hook(lambda _module, _inputs, output: output / (HIDDEN / DIM_MODEL_BASE))
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda _module, _inputs, output: (output[0] * branch, *output[1:]))
        layer.mlp.register_forward_hook(lambda _module, _inputs, output: output * branch)
    return model


def build_qwen2(case: FamilyCase) -> Any:
    """Qwen 2."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(Qwen2Config(**llama_arguments(case), rms_norm_eps=EPSILON))


def build_arcee(case: FamilyCase) -> Any:
    """Arcee."""
    from transformers import ArceeConfig, ArceeForCausalLM

    return ArceeForCausalLM(ArceeConfig(**llama_arguments(case), rms_norm_eps=EPSILON))


def build_nemotron(case: FamilyCase) -> Any:
    """Nemotron."""
    from transformers import NemotronConfig, NemotronForCausalLM

    arguments = llama_arguments(case)
    arguments["rope_parameters"] |= {"partial_rotary_factor": ROTARY_SHARE}
    return NemotronForCausalLM(NemotronConfig(**arguments, norm_eps=EPSILON, head_dim=HEAD_DIM))


def build_falcon(case: FamilyCase) -> Any:
    """Falcon, in the 40B form where there are two norms."""
    from transformers import FalconConfig, FalconForCausalLM

    large = "attn_norm_2" in case.family.norms
    return FalconForCausalLM(FalconConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=case.layers, num_attention_heads=HEADS,
        num_kv_heads=case.kv_heads, new_decoder_architecture=large, multi_query=not large, parallel_attn=True, bias=False,
        alibi=False, ffn_hidden_size=FFN, activation=case.activation, layer_norm_epsilon=EPSILON,
        max_position_embeddings=CONTEXT, tie_word_embeddings=case.tied,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_BASE}, attn_implementation="eager"))


def build_opt(case: FamilyCase) -> Any:
    """OPT."""
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM(OPTConfig(
        vocab_size=VOCABULARY, hidden_size=HIDDEN, ffn_dim=FFN, num_hidden_layers=case.layers, num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT, word_embed_proj_dim=HIDDEN, do_layer_norm_before=True,
        activation_function=case.activation, dropout=0.0, tie_word_embeddings=case.tied, attn_implementation="eager"))


LLAMA = Family("llama", build_llama)
MISTRAL = Family("mistral", build_mistral)
BAMBOO = Family("bamboo", build_mistral)
MINICPM = Family("minicpm", build_minicpm)
QWEN2 = Family("qwen2", build_qwen2, attention_biases=True, permuted=False)
ARCEE = Family("arcee", build_arcee, gated=False)
NEMOTRON = Family("nemotron", build_nemotron, gated=False, layer_norm=True, permuted=False)
FALCON_7B = Family("falcon", build_falcon, gated=False, layer_norm=True, norms=("attn_norm",), fused=True, permuted=False,
                   names=FALCON_NAMES)
FALCON_40B = Family("falcon", build_falcon, gated=False, layer_norm=True, norms=("attn_norm", "attn_norm_2"), fused=True,
                    permuted=False, names={**FALCON_NAMES, "attn_norm": "ln_mlp", "attn_norm_2": "ln_attn"})
OPT = Family("opt", build_opt, gated=False, layer_norm=True, attention_biases=True, biases=True, permuted=False,
             positions=True, names=OPT_NAMES)


def cases() -> list[FamilyCase]:
    """Each family in F32, some in other types and in PowerInfer's form."""
    return [
        FamilyCase("llama-fatrelu-f32", LLAMA, "fatrelu", "f32"),
        FamilyCase("llama3-silu-f32", LLAMA, "silu", "f32", llama3_rope=True, named_activation=False, tokens=60),
        FamilyCase("mistral-relu-f16", MISTRAL, "relu", "f16", layers=2),
        FamilyCase("mistral-drelu-q8_0", MISTRAL, "drelu", "q8_0", layers=2),
        FamilyCase("bamboo-drelu-f32", BAMBOO, "drelu", "f32", named_activation=False),
        FamilyCase("bamboo-powerinfer-q4_0", BAMBOO, "drelu", "q4_0", named_activation=False,
                   predictor_rank=48),
        FamilyCase("minicpm-relu-f32", MINICPM, "relu", "f32"),
        FamilyCase("minicpm-relu-q4_0", MINICPM, "relu", "q4_0", layers=2),
        FamilyCase("qwen2-silu-f32", QWEN2, "silu", "f32", named_activation=False),
        FamilyCase("qwen2-silu-q8_0", QWEN2, "silu", "q8_0", layers=2, named_activation=False),
        FamilyCase("arcee-relu2-f32", ARCEE, "relu2", "f32", named_activation=False),
        FamilyCase("nemotron-relu2-f32", NEMOTRON, "relu2", "f32", named_activation=False),
        FamilyCase("nemotron-relu2-f16", NEMOTRON, "relu2", "f16", layers=2, tied=False, named_activation=False),
        FamilyCase("falcon7b-relu-f32", FALCON_7B, "relu", "f32", kv_heads=1),
        FamilyCase("falcon7b-gelu-f16", FALCON_7B, "gelu", "f16", kv_heads=1, layers=2, named_activation=False),
        FamilyCase("falcon40b-relu-f32", FALCON_40B, "relu", "f32"),
        FamilyCase("falcon40b-powerinfer-f16", FALCON_40B, "relu", "f16", layers=2, named_activation=False,
                   predictor_rank=48),
        FamilyCase("opt-relu-f32", OPT, "relu", "f32", kv_heads=HEADS, named_activation=False),
        FamilyCase("opt-powerinfer-f16", OPT, "relu", "f16", kv_heads=HEADS, layers=2, named_activation=False,
                   predictor_rank=32),
        FamilyCase("opt-relu-q8_0", OPT, "relu", "q8_0", kv_heads=HEADS, layers=2, named_activation=False),
    ]


def llama3_factors() -> np.ndarray:
    """What Llama 3.1 divides each rotary frequency by."""
    frequency = ROPE_BASE ** (-np.arange(0, HEAD_DIM, 2) / HEAD_DIM)
    turns = LLAMA3_ROPE["original_max_position_embeddings"] * frequency / (2 * math.pi)
    low, high, factor = (LLAMA3_ROPE[key] for key in ("low_freq_factor", "high_freq_factor", "factor"))
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def random_tensors(case: FamilyCase, rng: np.random.Generator) -> list[tuple[str, np.ndarray, str]]:
    """(name, F32 values, type) in GGUF layout, sized so that every part of the graph matters to the logits."""
    family, kind = case.family, case.type_name
    tensors: list[tuple[str, np.ndarray, str]] = []

    def matrix(name: str, rows: int, columns: int, gain: float = 1.0, bias: bool = False) -> np.ndarray:
        values = (rng.standard_normal((rows, columns)) * gain / np.sqrt(columns)).astype(np.float32)
        tensors.append((f"{name}.weight", values, kind))
        if bias:
            tensors.append((f"{name}.bias", (0.3 * rng.standard_normal(rows)).astype(np.float32), "f32"))
        return values

    def norm(name: str) -> np.ndarray:
        weight = rng.uniform(0.5, 1.5, HIDDEN).astype(np.float32)
        tensors.append((f"{name}.weight", weight, "f32"))
        if family.layer_norm:
            tensors.append((f"{name}.bias", (0.3 * rng.standard_normal(HIDDEN)).astype(np.float32), "f32"))
        return weight

    matrix("token_embd", VOCABULARY, HIDDEN, gain=math.sqrt(HIDDEN))
    if family.positions:
        matrix("position_embd", CONTEXT + OPT_OFFSET, HIDDEN, gain=math.sqrt(HIDDEN))
    if case.llama3_rope:
        tensors.append(("rope_freqs.weight", llama3_factors().astype(np.float32), "f32"))
    key_width = case.kv_heads * HEAD_DIM
    for layer in range(case.layers):
        p = f"blk.{layer}."
        for name in family.norms:
            weight = norm(p + name)
        bias = family.attention_biases
        if family.fused:
            matrix(p + "attn_qkv", HIDDEN + 2 * key_width, HIDDEN, gain=1.3)
        else:
            matrix(p + "attn_q", HIDDEN, HIDDEN, 1.5, bias)
            matrix(p + "attn_k", key_width, HIDDEN, 1.5, bias)
            matrix(p + "attn_v", key_width, HIDDEN, 1.0, bias)
        matrix(p + "attn_output", HIDDEN, HIDDEN, 1.0, family.biases)
        scorer = matrix(p + "ffn_gate", FFN, HIDDEN) if family.gated else None
        up = matrix(p + "ffn_up", FFN, HIDDEN, 1.0, family.biases)
        matrix(p + "ffn_down", HIDDEN, FFN, 2.0, family.biases)
        if case.predictor_rank:
            transpose_down(tensors)
            tensors += relu_predictor(p, (up if scorer is None else scorer) * weight, case.predictor_rank)
    norm("output_norm")
    if not case.tied:
        matrix("output", VOCABULARY, HIDDEN, 3.0)
    return tensors


def transpose_down(tensors: list[tuple[str, np.ndarray, str]]) -> None:
    """Turns the last ffn_down into ffn_down_t."""
    for i, (name, values, kind) in enumerate(tensors):
        if ".ffn_down." in name:
            tensors[i] = (name.replace("ffn_down", "ffn_down_t"), np.ascontiguousarray(values.T), kind)


def relu_predictor(prefix: str, scorer: np.ndarray, rank: int) -> list[tuple[str, np.ndarray, str]]:
    """fc1 [rank, hidden] and fc2 [ffn, rank] with fc2 . relu(fc1 . h) = scorer . h, truncated to rank/2 directions."""
    u, sigma, vt = np.linalg.svd(scorer.astype(np.float64), full_matrices=False)
    a, b = vt[:rank // 2], u[:, :rank // 2] * sigma[:rank // 2]
    return [(f"{prefix}fc1.weight", np.concatenate([a, -a]).astype(np.float32), "f32"),
            (f"{prefix}fc2.weight", np.concatenate([b, -b], axis=1).astype(np.float32), "f32")]


def write_gguf(case: FamilyCase, path: Path, tensors: list[tuple[str, np.ndarray, str]]) -> None:
    """The file, under llama.cpp's keys (OPT: PowerInfer's)."""
    family = case.family
    writer = GGUFWriter(path, family.architecture)
    writer.add_name(case.name)
    writer.add_vocab_size(VOCABULARY)
    # PowerInfer's OPT files count the rows of the position table.
    writer.add_context_length(CONTEXT + OPT_OFFSET if family.positions else CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(case.layers)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    if not family.positions:
        writer.add_head_count_kv(case.kv_heads)
        writer.add_rope_freq_base(ROPE_BASE)
        writer.add_layer_norm_eps(EPSILON) if family.layer_norm else writer.add_layer_norm_rms_eps(EPSILON)
    if family is NEMOTRON:
        writer.add_rope_dimension_count(int(HEAD_DIM * ROTARY_SHARE))
    if family is MINICPM:
        writer.add_embedding_scale(SCALE_EMB)
        writer.add_residual_scale(SCALE_DEPTH / math.sqrt(case.layers))
        writer.add_logit_scale(HIDDEN / DIM_MODEL_BASE)
    if case.named_activation:
        writer.add_string(gl.KEY_ACTIVATION, case.activation)
    if case.activation == "fatrelu":
        writer.add_float32("isotherm.ffn.activation_threshold", FATRELU_THRESHOLD)
    vocabulary = gl.tiny_vocabulary(VOCABULARY)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(list(vocabulary.tokens))
    writer.add_token_scores(list(vocabulary.scores))
    writer.add_token_types(list(vocabulary.types))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for name, values, kind in tensors:
        writer.add_tensor(name, gl.encode(values, kind), raw_dtype=gl.TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def to_state(case: FamilyCase, weights: Weights) -> Weights:
    """transformers' state dictionary of a file's tensors, in float64."""
    names = {**LLAMA_NAMES, **case.family.names}
    state = {}
    for name, array in weights.items():
        parts = name.split(".")
        part, suffix = parts[-2], parts[-1]
        if part in ("fc1", "fc2", "rope_freqs"):
            continue
        if part == "ffn_down_t":
            part, array = "ffn_down", array.T if suffix == "weight" else array
        if case.family.permuted and part in ("attn_q", "attn_k"):
            array = gl.unpermute_rope_rows(array, HEADS if part == "attn_q" else case.kv_heads)
        if part == "attn_qkv":
            array = group_qkv(array, case)
        if case.family is NEMOTRON and part.endswith("norm") and suffix == "weight":
            array = array.astype(np.float64) - 1  # the module adds it again
        module = names[part] if len(parts) == 2 else f"{names['layer']}.{parts[1]}.{names[part]}"
        state[f"{module}.{suffix}"] = np.array(array, dtype=np.float64)
    return state


def group_qkv(rows: np.ndarray, case: FamilyCase) -> np.ndarray:
    """Files have all queries, all keys, all values; the checkpoint has them by KV head."""
    per_head = rows.reshape(-1, HEAD_DIM, HIDDEN)
    q, k, v = np.split(per_head, [HEADS, HEADS + case.kv_heads])
    q = q.reshape(case.kv_heads, HEADS // case.kv_heads, HEAD_DIM, HIDDEN)
    return np.concatenate([q, k[:, None], v[:, None]], axis=1).reshape(rows.shape)


def load(case: FamilyCase, weights: Weights) -> Any:
    """The transformers model of a file's tensors, in float64."""
    import torch

    model = case.family.build(case).to(torch.float64).eval()
    state = {name: torch.from_numpy(array) for name, array in to_state(case, weights).items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if case.tied else set()), (missing, unexpected)
    model.tie_weights()
    return model


def logits_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    """Logits [tokens, vocabulary]."""
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(tokens[None].astype(np.int64)), use_cache=False).logits[0].numpy()


def install_predictor(case: FamilyCase, model: Any, weights: Weights) -> list[float]:
    """Makes neurons that fc1/fc2 do not keep inactive. Returns a list that fills with the smallest margins.

    The predictor reads what the norm before the FFN reads: the residual, in Falcon the layer's input.
    """
    import torch

    names = {**LLAMA_NAMES, **case.family.names}
    margins: list[float] = []
    for index in range(case.layers):
        layer = model.get_submodule(f"{names['layer']}.{index}")
        fc1, fc2 = (torch.from_numpy(weights[f"blk.{index}.{part}.weight"].astype(np.float64)) for part in ("fc1", "fc2"))
        kept: dict[str, Any] = {}

        def score(_module: Any, inputs: Any, fc1: Any = fc1, fc2: Any = fc2, kept: dict[str, Any] = kept) -> None:
            scores = torch.relu(inputs[0].reshape(-1, HIDDEN) @ fc1.T) @ fc2.T
            margins.append(float((scores.abs() / scores.abs().mean()).min()))
            kept["mask"] = scores >= 0

        def drop(_module: Any, _inputs: Any, output: Any, kept: dict[str, Any] = kept) -> Any:
            return torch.where(kept["mask"].reshape(output.shape), output, torch.full_like(output, -1e30))

        before_ffn = "ffn_norm" if "ffn_norm" in case.family.norms else "attn_norm"
        layer.get_submodule(names[before_ffn]).register_forward_pre_hook(score)
        activated = "ffn_gate" if case.family.gated else "ffn_up"
        layer.get_submodule(names[activated]).register_forward_hook(drop)
    return margins


def write_model(case: FamilyCase, seed: int, data: Path, write_expected: Callable[..., None]) -> None:
    """Writes NAME.gguf and NAME.expected.bin, with a predictor NAME.predicted.bin too."""
    rng = np.random.default_rng(seed)
    tensors = random_tensors(case, rng)
    tokens = rng.integers(3, VOCABULARY, case.tokens)
    tokens[0] = 1
    path = data / f"{case.name}.gguf"
    write_gguf(case, path, tensors)
    weights, _ = gl.read_tensors(path)
    weights = {name: array.reshape(dict((n, v.shape) for n, v, _ in tensors)[name]) for name, array in weights.items()}
    model = load(case, weights)
    exact = logits_of(model, tokens)
    write_expected(data / f"{case.name}.expected.bin", tokens, exact)
    print(f"{case.name:26s} |logit| max {np.abs(exact).max():6.2f}  {path.stat().st_size} bytes")
    assert path.stat().st_size < 250_000, path
    if not case.predictor_rank:
        return
    margins = install_predictor(case, model, weights)
    predicted = logits_of(model, tokens)
    write_expected(data / f"{case.name}.predicted.bin", tokens, predicted)
    print(f"{'':26s} predicted: change {np.abs(predicted - exact).max():.3f}, nearest score {min(margins):.1e}")
    # A score nearer than F32 rounding would let a correct predictor choose either way.
    assert min(margins) > 2e-5, margins
    with path.open("r+b") as file:
        file.write(b"PWRI")
