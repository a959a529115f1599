"""A trainer's whole state, to a checkpoint and back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.tensor import DTensor

from gesso.adapters import lora
from gesso.train import checkpoint
from gesso.train.checkpoint import Piece
from gesso.train.optim import load_optimizer_state, optimizer_state
from gesso.train.sharding import like, local, offset
from gesso.types import GessoError

if TYPE_CHECKING:
    from gesso.train.loop import Trainer


class Saver:
    """Writes checkpoints of one trainer, at once or behind the training's back.

    Every process writes its own pieces; the leader makes them a checkpoint once all are written.

    Attributes:
        saved: the newest checkpoint that is whole, or None.
        step: its step; 0 without one.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self.saved: Path | None = None
        self.step = 0
        self._thread: Thread | None = None
        self._error: Exception | None = None

    def save(self, wait: bool = True) -> None:
        """Write a checkpoint of the step that is done.

        Args:
            wait: until it is whole; else the state is copied and written while the training goes
                on, and what fails is told at the next call.

        Raises:
            GessoError: it, or the one before, could not be written.
        """
        self.finish()
        job = self._job(copy=not wait)
        if wait:
            job()
            return
        self._thread = Thread(target=self._run, args=(job,), name="checkpoint")
        self._thread.start()

    def finish(self) -> None:
        """Wait until nothing is being written.

        Raises:
            GessoError: what was being written could not be.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _run(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as e:  # told where the training waits for it
            self._error = e

    def _job(self, copy: bool) -> Callable[[], None]:
        """What writes the state as it is now."""
        trainer = self._trainer
        numbers = _numbers(trainer)
        parts = _pieces(trainer, copy)
        with trainer.averaged.shown() as shown:
            model = shown[0] if shown and trainer.group.leads else None
            served = {k: _taken(v, copy) for k, v in model.state().items()} if model else {}
            network = model.backbone if model else None
            adapter = {k: _taken(v, copy) for k, v in lora.tensors(network).items()}

        def write() -> None:
            group, config, run = trainer.group, trainer.config, trainer.run
            step = numbers["step"]
            folder = checkpoint.temporary(run, step)
            shards = group.size if trainer.sharded else 1
            problem = final = ""
            try:
                if group.rank < shards:
                    checkpoint.write(folder, parts, (group.rank, shards))
                if model is not None:
                    model.save(folder, served, step=step)
                if adapter:
                    lora.save(network, adapter, folder / lora.FOLDER)
            except (OSError, SafetensorError) as e:
                problem = str(e)
            problems = group.collect(f"written/{step}", problem)
            problem = next(filter(None, problems), "")
            if group.leads and not problem:
                try:
                    made = checkpoint.commit(run, numbers, shards, config.keep, config.keep_every)
                    final = str(made)
                except OSError as e:
                    problem = str(e)
            if group.leads and problem:
                shutil.rmtree(folder, ignore_errors=True)
            final, problem = group.collect(f"saved/{step}", (final, problem))[0]
            if problem:
                raise _unwritten(run, step, problem)
            self.saved, self.step = Path(final), step

        return write


def restore(trainer: Trainer, folder: Path) -> None:
    """Continue from a checkpoint, whatever number of processes has written it.

    Raises:
        GessoError: it is damaged or does not fit the recipe.
    """
    state = checkpoint.load(folder)
    checkpoint.restore(_weights(trainer), state.weights, f"{folder} (weights)")
    params = trainer.params
    averages = {name: like(value, params[name]) for name, value in trainer.ema.average.items()}
    checkpoint.restore(averages, state.ema, f"{folder} (ema)")
    load_optimizer_state(trainer.optimizers, state.optimizer)
    numbers = state.numbers
    trainer.step, trainer.seconds_before = numbers["step"], numbers["seconds"]
    trainer.ema.updates = numbers["ema_updates"]
    trainer.guard.load_state(numbers["guard"])
    trainer.latest, trainer.validation = numbers["latest"], numbers["validation"]
    trainer.saver.saved, trainer.saver.step = folder, trainer.step


def _numbers(trainer: Trainer) -> dict[str, Any]:
    return {
        "step": trainer.step,
        "seconds": trainer.seconds,
        "ema_updates": trainer.ema.updates,
        "guard": trainer.guard.state(),
        "latest": trainer.latest,
        "validation": trainer.validation,
    }


def _pieces(trainer: Trainer, copy: bool) -> dict[str, dict[str, Piece]]:
    """What this process writes: its pieces of sharded tensors; the leader, all others, too."""
    params = trainer.params
    averages = trainer.ema.average
    parts: dict[str, dict[str, Tensor]] = {
        "weights": _weights(trainer),
        "ema": {name: like(value, params[name]) for name, value in averages.items()},
        "optimizer": optimizer_state(trainer.optimizers),
    }
    return {
        part: {
            key: Piece(_taken(local(value), copy), offset(value))
            for key, value in tensors.items()
            if trainer.group.leads or isinstance(value, DTensor)
        }
        for part, tensors in parts.items()
    }


def _taken(value: Tensor, copy: bool) -> Tensor:
    """The tensor as it is now, even when the training goes on, if it is to be copied."""
    value = value.detach()
    if not copy:
        return value
    return value.clone() if value.device.type == "cpu" else value.cpu()


def _weights(trainer: Trainer) -> dict[str, Tensor]:
    """Parameters and buffers of every role, by `role.name`."""
    return {
        f"{name}.{key}": value
        for name, role in trainer.roles.items()
        for key, value in role.state_dict().items()
    }


def _unwritten(run: Path, step: int, problem: str) -> GessoError:
    last = next(reversed(checkpoint.checkpoints(run)), None)
    intact = f"{last} is intact" if last else "there is no earlier one"
    final = run / checkpoint.FOLDER / checkpoint.name(step)
    return GessoError(
        f"The checkpoint {final} could not be written ({problem}); {intact}: free some space."
    )
