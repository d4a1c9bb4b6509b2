"""How good predictors are: what they kept of what fired, layer by layer, and what that did to perplexity."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class LayerReport:
    """Counts over the held-out tokens of one layer, each token's input being the exact one."""

    rank: int
    bytes: int
    """Of the stored factors and biases: what a token reads."""
    tokens: int = 0
    ffn: int = 0
    fired: int = 0
    kept: int = 0
    hit: int = 0
    """Kept and fired."""

    def add(self, fired: Any, kept: Any) -> None:
        """Two boolean [..., ffn]."""
        self.ffn = int(fired.shape[-1])
        self.tokens += math.prod(fired.shape[:-1])
        self.fired += int(fired.sum())
        self.kept += int(kept.sum())
        self.hit += int((fired & kept).sum())

    @property
    def active(self) -> float:
        return self.fired / max(self.tokens * self.ffn, 1)

    @property
    def recall(self) -> float:
        return self.hit / self.fired if self.fired else 1.0

    @property
    def precision(self) -> float:
        return self.hit / self.kept if self.kept else 1.0

    @property
    def kept_over_fired(self) -> float:
        return self.kept / self.fired if self.fired else math.inf if self.kept else 1.0


@dataclass
class Report:
    """One run's result on held-out text."""

    kind: str
    layers: list[LayerReport] = field(default_factory=list)
    exact_loss: float = 0.0
    predicted_loss: float = 0.0
    """Summed nats; the predicted pass leaves out in every layer what its predictor missed."""
    scored: int = 0

    def total(self) -> LayerReport:
        """All layers together."""
        sums = {name: sum(getattr(layer, name) for layer in self.layers)
                for name in ("rank", "bytes", "tokens", "fired", "kept", "hit")}
        return LayerReport(**sums, ffn=self.layers[0].ffn)

    @property
    def exact_perplexity(self) -> float:
        return math.exp(self.exact_loss / self.scored)

    @property
    def predicted_perplexity(self) -> float:
        return math.exp(self.predicted_loss / self.scored)

    def table(self) -> str:
        """For the terminal, and for a Markdown page."""
        total = self.total()
        lines = ["| layer | rank | KB | fire | kept | kept / fire | recall | precision |",
                 "| --- | --- | --- | --- | --- | --- | --- | --- |"]
        rows = [(str(i), str(layer.rank), layer) for i, layer in enumerate(self.layers)]
        for name, rank, r in [*rows, ("all", "", total)]:
            lines.append(f"| {name} | {rank} | {r.bytes / 1e3:.0f} | {100 * r.active:.2f} % | "
                         f"{100 * r.active * r.kept_over_fired:.2f} % | {r.kept_over_fired:.2f} | {100 * r.recall:.2f} % | "
                         f"{100 * r.precision:.1f} % |")
        change = 100 * (self.predicted_perplexity / self.exact_perplexity - 1)
        lines.append(f"\nperplexity {self.predicted_perplexity:.4f}, exact {self.exact_perplexity:.4f} ({change:+.3f} %), "
                     f"over {self.scored} held-out tokens")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Counts and what follows from them."""
        def row(layer: LayerReport) -> dict[str, Any]:
            return {**asdict(layer), "recall": layer.recall, "precision": layer.precision,
                    "kept_over_fired": layer.kept_over_fired}

        return {"kind": self.kind, "layers": [row(layer) for layer in self.layers], "all": row(self.total()),
                "exact_perplexity": self.exact_perplexity, "predicted_perplexity": self.predicted_perplexity,
                "scored_tokens": self.scored}
