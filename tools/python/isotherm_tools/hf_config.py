"""A model's config.json, read with the questions a converter asks. Every fault names the file and the key."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from isotherm_tools.errors import UserError


class HfConfig:
    """Typed access to config.json; of several names for one thing the first that is there counts."""

    def __init__(self, values: dict[str, Any], path: Path) -> None:
        self._values = values
        self._path = path

    def get(self, *keys: str, default: Any = None) -> Any:
        """The first of `keys` that is there and not null."""
        return next((self._values[key] for key in keys if self._values.get(key) is not None), default)

    def fault(self, what: str) -> UserError:
        """A fault of this file."""
        return UserError(f"{self._path}: {what}")

    def integer(self, *keys: str, default: int | None = None) -> int:
        """A positive number."""
        value = self.get(*keys, default=default)
        if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
            raise self.fault(f"{keys[0]} is {value!r} where a positive integer is expected")
        return value

    def number(self, *keys: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.get(*keys, default=default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
            raise self.fault(f"{keys[0]} is {value!r} where a number is expected")
        return float(value)

    @property
    def architecture(self) -> str:
        """The class the checkpoint was saved from."""
        names = self.get("architectures", default=[])
        return str(names[0]) if names else str(self.get("model_type", default="(none)"))

    @property
    def layers(self) -> int:
        return self.integer("num_hidden_layers", "n_layer")

    @property
    def hidden(self) -> int:
        return self.integer("hidden_size", "n_embed")

    @property
    def heads(self) -> int:
        return self.integer("num_attention_heads", "n_head")

    @property
    def head_dim(self) -> int:
        if self.get("head_dim") is None and self.hidden % self.heads:
            raise self.fault(f"{self.heads} heads do not divide a hidden size of {self.hidden}, and there is no head_dim")
        return self.integer("head_dim", default=self.hidden // self.heads)

    @property
    def rope_base(self) -> float:
        return self.number("rope_theta", default=float(self._rope_parameters.get("rope_theta", 10000.0)))

    @property
    def rope_scaling(self) -> tuple[str, dict[str, Any]]:
        """(type, its parameters): "default", "linear" or "llama3"."""
        parameters = self.get("rope_scaling") or self._rope_parameters
        kind = str(parameters.get("rope_type", parameters.get("type", "default")))
        if kind not in ("default", "linear", "llama3"):
            raise self.fault(f"rope scaling {kind!r} is not supported; default, linear and llama3 are")
        return kind, parameters

    @property
    def _rope_parameters(self) -> dict[str, Any]:
        """Where transformers 5 keeps what used to be rope_theta and rope_scaling."""
        parameters = self.get("rope_parameters", default={})
        return parameters if isinstance(parameters, dict) else {}


def llama3_rope_factors(config: HfConfig, parameters: dict[str, Any]) -> np.ndarray:
    """Divisors [head_dim / 2] of the rotary frequencies of Llama 3.1 and later.

    Wavelengths below original context / high_freq_factor stay, those above original context / low_freq_factor are stretched by
    `factor`, and between them the two are blended (Llama 3.1's reference code).
    """
    try:
        factor, low, high, context = (float(parameters[key]) for key in (
            "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
    except (KeyError, TypeError, ValueError) as error:
        raise config.fault(f"rope scaling llama3 lacks {error}") from error
    dim = config.head_dim
    wavelengths = 2 * math.pi * config.rope_base ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    share = np.clip((context / wavelengths - low) / (high - low), 0, 1)
    return (1 / ((1 - share) / factor + share)).astype(np.float32)
