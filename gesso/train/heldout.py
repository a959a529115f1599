"""Losses on held-out pictures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch

from gesso.draws import Draws
from gesso.objectives import Objective
from gesso.types import Batch


@runtime_checkable
class Validates(Protocol):
    """An objective with a validation loss of its own, such as one on a grid of noise levels."""

    def validate(self, batches: Iterable[Batch]) -> dict[str, float]: ...


@torch.no_grad()
def validation_losses(
    objective: Objective, batches: Iterable[Batch], device: torch.device
) -> dict[str, float]:
    """What the objective's `validate` gives, or else the means of its first phase's losses.

    The random draws of a batch follow from its place, so equal weights give equal numbers.

    Returns:
        `validation_loss` and whatever else there is, each with that prefix; empty without pictures.
    """
    if isinstance(objective, Validates):
        found = objective.validate(batches)
    else:
        sums: dict[str, float] = {}
        pictures = 0
        for number, batch in enumerate(batches):
            out = objective.loss(objective.phases[0].name, batch, Draws(device, number))
            for name, value in {**out.metrics, "loss": out.loss}.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(batch.keys)
            pictures += len(batch.keys)
        found = {name: total / pictures for name, total in sums.items()}
    return {f"validation_{name}": value for name, value in found.items()}
