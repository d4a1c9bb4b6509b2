"""Which tensors a converted file has, in which order, and which rows of the checkpoint each is made of."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from isotherm_tools.checkpoint import Checkpoint
from isotherm_tools.errors import UserError
from isotherm_tools.families import Family, Part
from isotherm_tools.hf_config import HfConfig, llama3_rope_factors
from isotherm_tools.stored_tensor import StoredTensor

_BLOCK_COLUMNS = 32
"""Columns of a Q8_0 block; a matrix whose width it does not divide stays F16, as in llama.cpp."""

# Constants that old versions of transformers saved beside the weights.
_NO_WEIGHTS = (".rotary_emb.inv_freq", ".attn.bias", ".masked_bias", ".self_attention.bias")


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the output and what it is made of."""

    name: str
    stored: StoredTensor
    type_name: str
    row_order: np.ndarray | None = None
    """Output row i is stored row row_order[i]."""
    transposed: bool = False
    add: float = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape[::-1] if self.transposed else self.stored.shape


@dataclass(frozen=True)
class Form:
    """What the output is to be, beyond its family."""

    type_name: str
    powerinfer: bool = False
    transpose_down: bool = False


def computed(name: str, values: np.ndarray) -> PlannedTensor:
    """An F32 tensor that is in no checkpoint."""
    return PlannedTensor(name, StoredTensor(name, "f32", values.astype(np.float32)), "f32")


class Planner:
    """Maps one checkpoint; keeps account of the tensors that went in."""

    def __init__(self, checkpoint: Checkpoint, config: HfConfig, family: Family, form: Form) -> None:
        self._checkpoint = checkpoint
        self._config = config
        self._family = family
        self._form = form
        self._used: set[str] = set()
        self._prefix = next((prefix for prefix in family.prefixes
                             if any(name.startswith(prefix) for name in checkpoint.names)), family.prefixes[0])

    def plan(self) -> list[PlannedTensor]:
        """Every tensor of the model. UserError if one is missing, misshapen or left over."""
        tensors = []
        for part in self._family.top:
            tensors += self._part(part, "", self._prefix)
        tensors += self._head(tensors[0])
        kind, parameters = self._config.rope_scaling
        if kind == "llama3":
            tensors.append(computed("rope_freqs.weight", llama3_rope_factors(self._config, parameters)))
        for layer in range(self._config.layers):
            for part in self._family.block:
                tensors += self._part(part, f"blk.{layer}.", f"{self._prefix}{self._family.layers}{layer}.")
        self._check_left_over()
        self._check_vocabulary(tensors[0])
        return tensors

    def _part(self, part: Part, target: str, source: str) -> list[PlannedTensor]:
        found = next((name for name in part.sources if f"{source}{name}.weight" in self._checkpoint), None)
        if found is None and part.optional:
            return []
        stem = f"{source}{found if found is not None else part.sources[-1]}"
        transposed = part.name == "ffn_down" and self._form.transpose_down
        name = f"{target}{part.name}{'_t' if transposed else ''}"
        tensors = [self._tensor(f"{name}.weight", f"{stem}.weight", part, transposed)]
        if f"{stem}.bias" in self._checkpoint:
            tensors.append(replace(self._tensor(f"{name}.bias", f"{stem}.bias", part), add=0.0))
        return tensors

    def _tensor(self, name: str, source: str, part: Part, transposed: bool = False) -> PlannedTensor:
        stored = self._checkpoint.tensor(source)
        self._used.add(source)
        if len(stored.shape) not in (1, 2):
            raise UserError(f"{stored.origin} has shape {list(stored.shape)} where a matrix or vector is expected")
        order = part.row_order(self._config) if part.row_order is not None else None
        if order is not None and len(order) != stored.shape[0]:
            raise UserError(f"{stored.origin} has {stored.shape[0]} rows where config.json asks for {len(order)}")
        planned = PlannedTensor(name, stored, "f32", order, transposed, part.add)
        return replace(planned, type_name=self._type_of(planned))

    def _type_of(self, planned: PlannedTensor) -> str:
        if len(planned.shape) == 1:
            return "f32"
        if planned.name == "position_embd.weight" and not self._form.powerinfer:
            return "f32"  # llama.cpp's converter never quantises learned positions
        ragged = planned.shape[1] % _BLOCK_COLUMNS != 0
        return "f16" if self._form.type_name == "q8_0" and ragged else self._form.type_name

    def _head(self, embedding: PlannedTensor) -> list[PlannedTensor]:
        """No output.weight where the head is tied, except for PowerInfer, which reads OPT alone without it."""
        name = "lm_head.weight"
        tied = self._config.get("tie_word_embeddings")
        if self._family.architecture == "opt" or tied or (tied is None and name not in self._checkpoint):
            self._used.add(name)
            needed = self._form.powerinfer and self._family.architecture != "opt"
            return [replace(embedding, name="output.weight")] if needed else []
        return [self._tensor("output.weight", name, Part("output", ("lm_head",)))]

    def _check_left_over(self) -> None:
        left = [name for name in self._checkpoint.names if name not in self._used and not name.endswith(_NO_WEIGHTS)]
        if left:
            raise UserError(f"{self._checkpoint.folder} has {len(left)} tensor(s) that no {self._family.architecture} model has, "
                            f"such as {left[0]}; check num_hidden_layers and architectures in config.json")

    def _check_vocabulary(self, embedding: PlannedTensor) -> None:
        size = self._config.integer("vocab_size")
        if embedding.shape[0] != size:
            raise UserError(f"{embedding.stored.origin} has {embedding.shape[0]} rows where config.json's vocab_size is {size}; "
                            "set vocab_size to the number of rows")
