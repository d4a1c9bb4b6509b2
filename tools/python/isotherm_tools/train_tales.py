"""isotherm-train-tales: trains the demo model, a small ReLU-gated Llama, and exports it as GGUF.

    isotherm-train-tales --train train.txt --valid valid.txt --out-dir build/tales

Writes into the output folder: tokenizer.model, hf/ (a transformers checkpoint), MODEL.gguf, metrics.json.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path

import numpy as np
import sentencepiece as spm
import torch

from isotherm_tools import tales_text
from isotherm_tools.export_gguf import export_relu_llama
from isotherm_tools.gguf_llama import LlamaShape, Vocabulary
from isotherm_tools.hf_tokenizer import llama_tokenizer
from isotherm_tools.progress import Progress
from isotherm_tools.relu_llama import ReluLlama


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True, help="training text; a line <|endoftext|> ends a document")
    parser.add_argument("--valid", type=Path, required=True, help="validation text, never trained on")
    parser.add_argument("--out-dir", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="a tokenizer.model to use instead of training one")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--ffn", type=int, default=1280)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--kv-heads", type=int, default=4)
    parser.add_argument("--context", type=int, default=512, help="tokens")
    parser.add_argument("--steps", type=int, default=3800)
    parser.add_argument("--batch", type=int, default=64, help="windows a step")
    parser.add_argument("--lr", type=float, default=1.2e-3, help="peak, after a warm-up; cosine to a hundredth of it")
    parser.add_argument("--weight-decay", type=float, default=0.3)
    parser.add_argument("--dropout", type=float, default=0.25)
    parser.add_argument("--activity", type=float, default=5e-4,
                        help="weight of the sum of gate activations a token, mean over layers; ramped in over the first half")
    parser.add_argument("--eval-every", type=int, default=100, help="steps between validations")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--type", choices=["f32", "f16", "q8_0", "q4_0"], default="q8_0")
    parser.add_argument("--name", default="tales")
    return parser.parse_args()


def autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


@torch.no_grad()
def evaluate(model: ReluLlama, windows: torch.Tensor, batch: int, device: torch.device) -> tuple[float, list[float]]:
    """Mean loss (nats/token) over windows [count, context], and the share of neurons that fire per layer."""
    model.eval()
    total, active, count = 0.0, np.zeros(len(model.model.layers)), 0
    for start in range(0, len(windows), batch):
        part = windows[start:start + batch].to(device)
        with autocast(device):
            loss, _, shares = model.losses(part)
        total += float(loss) * len(part)
        active += shares.double().cpu().numpy() * len(part)
        count += len(part)
    model.train()
    return total / count, (active / count).tolist()


@torch.no_grad()
def firing_counts(model: ReluLlama, windows: torch.Tensor, batch: int, device: torch.device) -> np.ndarray:
    """How often each neuron fires over all tokens of the windows, f64 [layers, ffn]."""
    model.eval()
    counts = None
    progress = Progress("profile", len(windows))
    for start in range(0, len(windows), batch):
        _, gates = model(windows[start:start + batch].to(device))
        fired = torch.stack([(gate > 0).sum(dim=(0, 1)) for gate in gates]).double().cpu()
        counts = fired if counts is None else counts + fired
        progress.update(min(start + batch, len(windows)))
    assert counts is not None
    return counts.numpy()


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first 5 %, then cosine to a hundredth of the peak."""
    warm_up = max(steps // 20, 1)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(steps - warm_up, 1))))


def train(model: ReluLlama, stream: torch.Tensor, valid: torch.Tensor, options: argparse.Namespace,
          device: torch.device) -> tuple[dict[str, torch.Tensor], list[dict[str, object]]]:
    """Trains in place on random windows of the i64 stream; the best state by validation loss once the activity term is
    fully ramped in, and the log."""
    decayed = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": options.weight_decay},
                                   {"params": others, "weight_decay": 0.0}], lr=options.lr, betas=(0.9, 0.95),
                                  fused=device.type == "cuda")
    losses = torch.compile(model.losses) if device.type == "cuda" else model.losses
    generator = torch.Generator().manual_seed(options.seed)
    body = options.context - 1
    offsets = torch.arange(body, device=device)
    stream = stream.to(device)
    best: dict[str, torch.Tensor] | None = None
    best_loss = math.inf
    log: list[dict[str, object]] = []
    progress = Progress("train", options.steps, every_s=5.0)
    for step in range(options.steps):
        rate = learning_rate(step, options.steps, options.lr)
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(stream) - body, (options.batch, 1), generator=generator).to(device)
        windows = torch.cat([torch.full_like(starts, tales_text.BOS), stream[starts + offsets]], dim=1)
        strength = options.activity * min(1.0, step / (options.steps / 2))
        with autocast(device):
            loss, activity, _ = losses(windows)
        (loss + strength * activity).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        last = step + 1 == options.steps
        if (step + 1) % options.eval_every == 0 or last:
            train_loss = float(loss.detach())
            valid_loss, active = evaluate(model, valid, options.batch, device)
            entry = {"step": step + 1, "train_loss": train_loss, "valid_loss": valid_loss,
                     "active": sum(active) / len(active), "active_by_layer": active}
            log.append(entry)
            print(f"step {step + 1}: train {train_loss:.4f}, valid {valid_loss:.4f} nats/token, "
                  f"active {100 * sum(active) / len(active):.2f} %", flush=True)
            if valid_loss < best_loss and step + 1 >= options.steps / 2:
                best_loss, best = valid_loss, copy.deepcopy(model.state_dict())
        progress.update(step + 1)
    assert best is not None
    return best, log


def save_transformers(folder: Path, state: dict[str, torch.Tensor], shape: LlamaShape, vocabulary: Vocabulary) -> None:
    """Writes a LlamaForCausalLM checkpoint (hidden_act relu, tied head) and its tokenizer."""
    from tokenizers.processors import TemplateProcessing
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    config = LlamaConfig(
        vocab_size=shape.vocab, hidden_size=shape.hidden, intermediate_size=shape.ffn, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, hidden_act="relu",
        max_position_embeddings=shape.context, rms_norm_eps=shape.rms_eps, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_base})
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
    model.tie_weights()
    model.save_pretrained(folder)
    tokenizer = llama_tokenizer(vocabulary)
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", pair="<s> $A <s> $B",
                                                  special_tokens=[("<s>", tales_text.BOS)])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>",
                            model_max_length=shape.context).save_pretrained(folder)


def main() -> None:
    options = parse_arguments()
    options.out_dir.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device)
    torch.manual_seed(options.seed)
    started = time.monotonic()

    train_documents = tales_text.read_documents(options.train)
    valid_documents = tales_text.read_documents(options.valid)
    model_bytes = (options.tokenizer.read_bytes() if options.tokenizer is not None
                   else tales_text.train_tokenizer(train_documents, options.vocab))
    (options.out_dir / "tokenizer.model").write_bytes(model_bytes)
    tokenizer = spm.SentencePieceProcessor(model_proto=model_bytes)
    stream = tales_text.token_stream(tokenizer, train_documents)
    valid_stream = tales_text.token_stream(tokenizer, valid_documents)
    valid_bytes = sum(len(text.encode()) for text in valid_documents)
    print(f"{len(stream)} training tokens, {len(valid_stream)} validation tokens, "
          f"{valid_bytes / len(valid_stream):.2f} bytes/token, {time.monotonic() - started:.0f} s", flush=True)

    shape = LlamaShape(layers=options.layers, hidden=options.hidden, ffn=options.ffn, heads=options.heads,
                       kv_heads=options.kv_heads, vocab=tokenizer.vocab_size(), context=options.context)
    model = ReluLlama(shape, options.dropout).to(device)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters on {device}", flush=True)
    valid = torch.from_numpy(tales_text.windows(valid_stream, options.context))
    best, log = train(model, torch.from_numpy(stream.astype(np.int64)), valid, options, device)

    model.load_state_dict(best)
    profile = torch.from_numpy(tales_text.windows(stream, options.context))
    counts = firing_counts(model, profile, options.batch, device)
    valid_loss, active = evaluate(model, valid, options.batch, device)
    state = {name: tensor.float().cpu() for name, tensor in best.items()}
    vocabulary = tales_text.vocabulary_of(tokenizer)
    save_transformers(options.out_dir / "hf", state, shape, vocabulary)
    gguf_path = options.out_dir / f"{options.name}-{options.type}.gguf"
    export_relu_llama(gguf_path, {name: tensor.numpy() for name, tensor in state.items()}, shape,
                      vocabulary, options.type, options.name, counts, profile.numel())
    metrics = {
        "valid_loss": valid_loss, "valid_bits_per_byte": valid_loss * len(valid_stream) / valid_bytes / math.log(2),
        "active_by_layer": active, "active": sum(active) / len(active),
        "never_fired_by_layer": (counts == 0).mean(axis=1).tolist(), "profile_tokens": profile.numel(),
        "training_tokens": len(stream), "validation_tokens": len(valid_stream), "seconds": time.monotonic() - started,
        "gguf_bytes": gguf_path.stat().st_size,
        "options": {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()
                    if key not in ("train", "valid", "out_dir", "tokenizer")}, "log": log}
    (options.out_dir / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")
    print(f"{gguf_path}: {gguf_path.stat().st_size} bytes, valid {valid_loss:.4f} nats/token "
          f"({metrics['valid_bits_per_byte']:.4f} bits/byte), active {100 * metrics['active']:.2f} %", flush=True)


if __name__ == "__main__":
    main()
