"""numpy and torch behind the few operations that a forward pass needs and both spell alike.

Code written for either takes an `Arrays` and uses its `xp` as the module; arrays are typed Any, as the two share no type.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

from isotherm_tools.errors import UserError


class Arrays:
    """numpy in F32 on the CPU."""

    name = "numpy"
    xp: Any = np

    def put(self, values: np.ndarray) -> Any:
        """The array where computing happens; floating point becomes F32."""
        return values.astype(np.float32) if values.dtype.kind == "f" else values

    def get(self, values: Any) -> np.ndarray:
        """Back to numpy."""
        return np.asarray(values)


class TorchArrays(Arrays):
    """torch in F32 on one of its devices."""

    def __init__(self, device: str) -> None:
        import torch

        self.name = device
        self.xp = torch
        self._device = torch.device(device)

    def put(self, values: np.ndarray) -> Any:
        return self.xp.from_numpy(np.array(super().put(values))).to(self._device)

    def get(self, values: Any) -> np.ndarray:
        return np.asarray(values.detach().cpu())


def arrays_on(device: str | None) -> Arrays:
    """`numpy`, or a device of torch: `cpu`, `cuda`. Without a name the fastest there is."""
    if device is None:
        if importlib.util.find_spec("torch") is None:
            return Arrays()
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "numpy":
        return Arrays()
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"device {device} needs the torch package; install it, or use --device numpy")
    return TorchArrays(device)
