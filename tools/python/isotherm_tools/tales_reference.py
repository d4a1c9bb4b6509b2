"""isotherm-tales-reference: what transformers says about the shipped GGUF, as JSON for tests to compare with.

    isotherm-tales-reference --gguf tales-q8_0.gguf --valid valid.txt --out reference.json

Weights are dequantised to F32 and evaluated in F32. Keys of the output:
  tokens            length and sha256 (ids as little-endian i32) of the token stream of valid.txt (see tales_text)
  perplexity        all whole windows: windows, scored tokens, nll (nats, summed), perplexity
  first_windows     summed nll of each of the first 40 windows
  greedy            prompts with their ids (BOS first), 60 greedy ids (</s> does not stop), and the smallest gap between
                    the two best logits on the way
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch

from isotherm_tools import tales_text
from isotherm_tools.export_gguf import state_from_gguf
from isotherm_tools.gguf_llama import LlamaShape
from isotherm_tools.progress import Progress

PROMPTS = (
    "The king said to his daughter,", "Once upon a time there was", "In the middle of the forest stood",
    "\"Who are you?\" asked", "The old woman gave him", "When the prince awoke,", "Far out at sea", "Then the fox laughed and")
CONTINUATION = 60
FIRST_WINDOWS = 40


def load_transformers(state: dict[str, np.ndarray], shape: LlamaShape) -> torch.nn.Module:
    """LlamaForCausalLM in F32 with these weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tied = "lm_head.weight" not in state
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.ffn, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, hidden_act="relu",
        max_position_embeddings=shape.context, rms_norm_eps=shape.rms_eps, tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base}))
    missing, unexpected = model.load_state_dict({k: torch.from_numpy(v.copy()) for k, v in state.items()}, strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if tied else set()), (missing, unexpected)
    model.tie_weights()
    return model.eval()


@torch.no_grad()
def window_losses(model: torch.nn.Module, windows: torch.Tensor, device: torch.device, batch: int = 8) -> list[float]:
    """Summed nll (nats) of every window: all its tokens after BOS."""
    sums: list[float] = []
    progress = Progress("windows", len(windows), every_s=5.0)
    for start in range(0, len(windows), batch):
        part = windows[start:start + batch].to(device)
        logits = model(part[:, :-1]).logits.double()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none")
        sums += loss.view(len(part), -1).sum(dim=1).tolist()
        progress.update(len(sums))
    return sums


@torch.no_grad()
def greedy(model: torch.nn.Module, ids: list[int], count: int, device: torch.device) -> tuple[list[int], float]:
    """The next `count` greedy ids after `ids`, and the smallest gap between the two best logits."""
    tokens, gap = list(ids), math.inf
    for _ in range(count):
        logits = model(torch.tensor([tokens], device=device)).logits[0, -1]
        top = torch.topk(logits, 2)
        gap = min(gap, float(top.values[0] - top.values[1]))
        tokens.append(int(top.indices[0]))
    return tokens[len(ids):], gap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--valid", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    device = torch.device(options.device)

    state, shape = state_from_gguf(options.gguf)
    model = load_transformers(state, shape).to(device)
    tokenizer = tales_text.tokenizer_from_gguf(options.gguf)
    stream = tales_text.token_stream(tokenizer, tales_text.read_documents(options.valid))
    windows = torch.from_numpy(tales_text.windows(stream, shape.context))
    sums = window_losses(model, windows, device)
    scored = len(sums) * (shape.context - 1)
    continuations = []
    for prompt in PROMPTS:
        ids = [tales_text.BOS, *tokenizer.encode(prompt)]
        continuation, gap = greedy(model, ids, CONTINUATION, device)
        continuations.append({"prompt": prompt, "prompt_ids": ids, "ids": continuation,
                              "text": tokenizer.decode(continuation), "smallest_gap": gap})
    perplexity = math.exp(math.fsum(sums) / scored)
    reference = {
        "tokens": {"count": len(stream), "sha256": hashlib.sha256(stream.astype("<i4").tobytes()).hexdigest()},
        "context": shape.context,
        "perplexity": {"windows": len(sums), "scored_tokens": scored, "nll": math.fsum(sums),
                       "perplexity": perplexity},
        "first_windows": sums[:FIRST_WINDOWS],
        "greedy": continuations}
    options.out.write_text(json.dumps(reference, indent=1) + "\n")
    print(f"perplexity {perplexity:.4f} over {scored} tokens", flush=True)


if __name__ == "__main__":
    main()
