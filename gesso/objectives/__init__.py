"""Objectives: batch -> loss. One file each, found by name.

An objective module has `Config`, and `build(options, model)` returning an `Objective`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import nn

    from gesso.draws import Draws
    from gesso.types import Batch, LossOut, Phase


class Objective(Protocol):
    """What the training loop asks of an objective. It may also offer `validate(batches)`.

    Attributes:
        needs: the field of `Batch` that it learns from, "latents" or "pixels".
        roles: every module that has state worth saving (student, fake score, head, ...).
        phases: run in this order in every step.
    """

    needs: str
    roles: dict[str, nn.Module]
    phases: Sequence[Phase]

    def loss(self, phase: str, batch: Batch, generator: Draws) -> LossOut:
        """The loss of one micro-batch; all randomness comes from `generator`."""
        ...


@runtime_checkable
class Follows(Protocol):
    """An objective with networks that follow others, such as the moving target of a distiller."""

    def updated(self, phase: str) -> None:
        """Called after the optimiser of a phase has updated its roles."""
        ...
