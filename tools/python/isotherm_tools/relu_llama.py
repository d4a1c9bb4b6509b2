"""A ReLU-gated Llama in torch for training: the parameters are named as in transformers' LlamaForCausalLM.

Unlike that class it has dropout and reports how many neurons fire. The head is tied to the embedding.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from isotherm_tools.gguf_llama import LlamaShape


class RmsNorm(nn.Module):
    """x / rms(x) * weight over the last dimension."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self._eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self._eps) * self.weight).to(x.dtype)


class Attention(nn.Module):
    """Causal attention with rotary positions, grouped K and V heads."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self._shape = shape
        self.q_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)
        self.k_proj = nn.Linear(shape.hidden, shape.kv_width, bias=False)
        self.v_proj = nn.Linear(shape.hidden, shape.kv_width, bias=False)
        self.o_proj = nn.Linear(shape.hidden, shape.hidden, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        s = self._shape

        def heads(y: torch.Tensor, count: int) -> torch.Tensor:
            return y.view(batch, tokens, count, s.head_dim).transpose(1, 2)

        def rotate(y: torch.Tensor) -> torch.Tensor:
            low, high = y.chunk(2, dim=-1)
            return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(y.dtype)

        q, k = rotate(heads(self.q_proj(x), s.heads)), rotate(heads(self.k_proj(x), s.kv_heads))
        v = heads(self.v_proj(x), s.kv_heads)
        group = s.heads // s.kv_heads
        if group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        mixed = F.scaled_dot_product_attention(q, k, v.to(q.dtype), is_causal=True)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))


class Mlp(nn.Module):
    """down(relu(gate(x)) * up(x)); returns the gate activations too, [..., ffn]."""

    def __init__(self, shape: LlamaShape) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.up_proj = nn.Linear(shape.hidden, shape.ffn, bias=False)
        self.down_proj = nn.Linear(shape.ffn, shape.hidden, bias=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate = F.relu(self.gate_proj(x))
        return self.down_proj(gate * self.up_proj(x)), gate


class Layer(nn.Module):
    def __init__(self, shape: LlamaShape, dropout: float) -> None:
        super().__init__()
        self.input_layernorm = RmsNorm(shape.hidden, shape.rms_eps)
        self.self_attn = Attention(shape)
        self.post_attention_layernorm = RmsNorm(shape.hidden, shape.rms_eps)
        self.mlp = Mlp(shape)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        out, gate = self.mlp(self.post_attention_layernorm(x))
        return x + self.dropout(out), gate


class Body(nn.Module):
    def __init__(self, shape: LlamaShape, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(Layer(shape, dropout) for _ in range(shape.layers))
        self.norm = RmsNorm(shape.hidden, shape.rms_eps)
        self.dropout = nn.Dropout(dropout)


class ReluLlama(nn.Module):
    """Maps ids [batch, tokens] to the final hidden states and per-layer gate activations."""

    def __init__(self, shape: LlamaShape, dropout: float) -> None:
        super().__init__()
        self.model = Body(shape, dropout)
        angles = torch.arange(shape.context, dtype=torch.float32)[:, None] * shape.rope_base ** (
            -torch.arange(0, shape.head_dim, 2, dtype=torch.float32) / shape.head_dim)
        self.cos: torch.Tensor
        self.sin: torch.Tensor
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, std=0.02 / ((2 * shape.layers) ** 0.5 if residual else 1.0))

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        tokens = ids.shape[1]
        x = self.model.dropout(self.model.embed_tokens(ids))
        gates = []
        for layer in self.model.layers:
            x, gate = layer(x, self.cos[:tokens], self.sin[:tokens])
            gates.append(gate)
        return self.model.norm(x), gates

    def losses(self, windows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """For windows [batch, context]: mean next-token loss (nats), mean over tokens and layers of the summed gate
        activations, and the share of neurons that fire per layer [layers]."""
        hidden, gates = self(windows[:, :-1])
        logits = F.linear(hidden, self.model.embed_tokens.weight)
        loss = F.cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())
        activity = torch.stack([gate.float().sum(-1).mean() for gate in gates]).mean()
        active = torch.stack([(gate > 0).float().mean() for gate in gates]).detach()
        return loss, activity, active
