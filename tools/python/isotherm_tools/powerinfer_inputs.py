"""What PowerInfer keeps beside a checkpoint: predictors (model_N.pt) and firing counts (activation_N.pt), a file a layer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isotherm_tools.checkpoint import read_json
from isotherm_tools.errors import UserError
from isotherm_tools.stored_tensor import StoredTensor, to_f32
from isotherm_tools.torch_file import TorchFile


@dataclass(frozen=True)
class Predictor:
    """score = fc2 . relu(fc1 . x) for every neuron, where x is the residual before the FFN's norm (Falcon: the layer's input)."""

    fc1: StoredTensor
    """[rank, hidden]"""
    fc2: StoredTensor
    """[ffn, rank]; the rank may differ by layer."""


def _layer_files(folder: Path, stem: str, layers: int) -> list[Path]:
    """FOLDER/STEM_0.pt to STEM_{layers - 1}.pt. By number: sorting names as text would put layer 10 before layer 2."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; name the one that holds {stem}_0.pt")
    paths = [folder / f"{stem}_{layer}.pt" for layer in range(layers)]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"{folder} lacks {', '.join(missing[:4])}{' and more' if len(missing) > 4 else ''}; "
                        f"a model of {layers} layers needs {stem}_0.pt to {stem}_{layers - 1}.pt")
    if (folder / f"{stem}_{layers}.pt").is_file():
        raise UserError(f"{folder} has a {stem}_{layers}.pt, but the model has {layers} layers; is it of another model?")
    return paths


class PredictorFolder:
    """PREDICTOR_DIR; every layer's shapes are checked on opening."""

    def __init__(self, folder: Path, layers: int, hidden: int, ffn: int) -> None:
        self._files = [TorchFile(path) for path in _layer_files(folder, "model", layers)]
        self.layers = [self._predictor(path, file, hidden, ffn)
                       for path, file in zip(_layer_files(folder, "model", layers), self._files, strict=True)]
        config = folder / "config.json"
        values = read_json(config) if config.is_file() else {}
        threshold = values.get("sparse_threshold", 0.0)
        if not isinstance(threshold, (int, float)) or isinstance(threshold, bool) or not np.isfinite(threshold):
            raise UserError(f"{config}: sparse_threshold is {threshold!r} where a number is expected")
        self.threshold = float(threshold)
        """Neurons are kept where score >= threshold."""

    def release(self) -> None:
        """Gives back the memory of what was read so far."""
        for file in self._files:
            file.release()

    @staticmethod
    def _predictor(path: Path, file: TorchFile, hidden: int, ffn: int) -> Predictor:
        parts = []
        for name in ("fc1.weight", "fc2.weight"):
            if name not in file.entries:
                raise UserError(f"{path} has no {name}; a predictor file holds fc1.weight and fc2.weight")
            parts.append(file.tensor(name))
        fc1, fc2 = parts
        rank = fc1.shape[0] if fc1.shape else 0
        if fc1.shape != (rank, hidden) or fc2.shape != (ffn, rank):
            raise UserError(f"{path} has fc1 {list(fc1.shape)} and fc2 {list(fc2.shape)} where [rank, {hidden}] and "
                            f"[{ffn}, rank] are expected; is it a predictor of another model?")
        return Predictor(fc1, fc2)


def load_counts(folder: Path, layers: int, ffn: int) -> np.ndarray:
    """Firing counts F32 [layers, ffn] from activation_N.pt."""
    counts = np.empty((layers, ffn), dtype=np.float32)
    for layer, path in enumerate(_layer_files(folder, "activation", layers)):
        value = TorchFile(path).value
        if not isinstance(value, StoredTensor) or value.shape not in ((ffn,), (ffn, 1), (1, ffn)):
            shape = list(value.shape) if isinstance(value, StoredTensor) else "no tensor"
            raise UserError(f"{path} holds {shape} where [{ffn}] counts are expected; is it of another model?")
        counts[layer] = to_f32(value.data, value.kind).ravel()
        if not np.isfinite(counts[layer]).all() or counts[layer].min() < 0:
            raise UserError(f"{path} holds a count that is negative or not finite; profile the model again")
    return counts
