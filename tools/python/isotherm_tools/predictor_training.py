"""Trains a low-rank predictor to tell firing neurons from others, by torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from isotherm_tools.lowrank import LowRank

BATCH = 1024
"""Tokens of a step."""

FIRING_WEIGHT = 16.0
"""Of a firing neuron in the loss, against 1 of another. It puts the decision where one neuron in 17 fires, which is where a recall
of 97 to 99 % puts the bound: capacity goes there."""

RATE = 0.03
"""Largest step of Adam, in root mean squares of the matrix that it changes."""

LOGIT_OVER_PROBIT = 1.7
"""The logistic function of 1.7 z is within 0.01 of the normal distribution's."""


def train(start: LowRank, inputs: Any, fires: Callable[[Any], Any], epochs: int, seed: int) -> LowRank:
    """Fits a linear predictor by class-weighted binary cross-entropy, from one whose scores are in standard deviations.

    inputs [tokens, hidden] on a device of torch; fires(inputs) says which neurons [tokens, ffn] do. The result is on that device.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = [torch.nn.Parameter(values.clone()) for values in
                  (start.a, start.b * LOGIT_OVER_PROBIT, start.bias * LOGIT_OVER_PROBIT)]
    rates = [RATE * float(values.detach().square().mean().sqrt()) for values in parameters]
    optimizer = torch.optim.Adam([{"params": [parameter]} for parameter in parameters])
    batch = min(BATCH, len(inputs))
    batches = len(inputs) // batch
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rates, total_steps=epochs * batches, pct_start=0.1)
    weight = torch.tensor(FIRING_WEIGHT, device=inputs.device)
    a, b, bias = parameters
    for _ in range(epochs):
        order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
        for step in range(batches):
            x = inputs[order[step * batch:(step + 1) * batch]]
            loss = F.binary_cross_entropy_with_logits(x @ a.T @ b.T + bias, fires(x).float(), pos_weight=weight)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    return replace(start, a=a.detach(), b=b.detach(), bias=bias.detach())
