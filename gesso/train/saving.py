"""A trainer's whole state, to a checkpoint and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from gesso.train import checkpoint
from gesso.train.optim import load_optimizer_state, optimizer_state

if TYPE_CHECKING:
    from gesso.train.loop import Trainer


def save(trainer: Trainer) -> None:
    """Write a checkpoint of the step that is done.

    Raises:
        GessoError: it cannot be written.
    """
    state = checkpoint.State(
        numbers={
            "step": trainer.step,
            "seconds": trainer.seconds,
            "ema_updates": trainer.ema.updates,
            "guard": trainer.guard.state(),
            "latest": trainer.latest,
            "validation": trainer.validation,
        },
        weights=_weights(trainer),
        ema=dict(trainer.ema.average),
        optimizer=optimizer_state(trainer.optimizers),
    )
    with trainer.ema.applied():
        trainer.saved = checkpoint.save(trainer.run, trainer.model, state, trainer.config.keep)
    trainer.saved_step = trainer.step


def restore(trainer: Trainer, folder: Path) -> None:
    """Continue from a checkpoint.

    Raises:
        GessoError: it is damaged or does not fit the recipe.
    """
    state = checkpoint.load(folder)
    checkpoint.restore(_weights(trainer), state.weights, f"{folder} (weights)")
    checkpoint.restore(trainer.ema.average, state.ema, f"{folder} (ema)")
    load_optimizer_state(trainer.optimizers, state.optimizer)
    numbers = state.numbers
    trainer.step, trainer.seconds_before = numbers["step"], numbers["seconds"]
    trainer.ema.updates = numbers["ema_updates"]
    trainer.guard.load_state(numbers["guard"])
    trainer.latest, trainer.validation = numbers["latest"], numbers["validation"]
    trainer.saved, trainer.saved_step = folder, trainer.step


def _weights(trainer: Trainer) -> dict[str, Tensor]:
    """Parameters and buffers of every role, by `role.name`."""
    return {
        f"{name}.{key}": value
        for name, role in trainer.roles.items()
        for key, value in role.state_dict().items()
    }
