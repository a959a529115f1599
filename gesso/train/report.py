"""What a training tells while it runs, and to whom: log, terminal, painter, observers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gesso.model import Model
from gesso.objectives import Objective
from gesso.train.heldout import validation_losses
from gesso.train.log import RunLog
from gesso.train.observe import Moment, Observer

if TYPE_CHECKING:
    from gesso.train.loop import Trainer

Painter = Callable[[Model, Path], None]
"""Paints the validation prompts with the model as it is and writes them to a PNG file."""


class Reporter:
    """The leader's voice; its followers have one that says nothing.

    Args:
        log: None: say nothing.
        painter: called at every validation.
        observers: called after every step and at every validation.
    """

    def __init__(
        self,
        log: RunLog | None = None,
        painter: Painter | None = None,
        observers: Sequence[Observer] = (),
    ) -> None:
        self.log, self.painter, self.observers = log, painter, observers

    def say(self, text: str) -> None:
        """A message that must be seen."""
        if self.log is not None:
            self.log.say(text)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """One line of metrics."""
        if self.log is not None:
            self.log.metrics(step, values)

    def stepped(self, trainer: Trainer, line: bool) -> None:
        """After a step: progress, with a line of its own if there is no terminal, and observers."""
        if self.log is None:
            return
        share = trainer.share - trainer.share_before
        elapsed = time.perf_counter() - trainer.start
        left = (1 - trainer.share) / max(share, 1e-9) * elapsed
        self.log.progress(trainer.share, trainer.step, trainer.latest, left, line=line)
        for observer in self.observers:
            observer.on_step(self._moment(trainer, self.log))

    def judge(self, trainer: Trainer, shown: tuple[Model, Objective] | None) -> dict[str, float]:
        """Losses on held-out pictures, painted prompts, and what observers find.

        Args:
            trainer: at a validation.
            shown: with the averaged weights; None in followers.
        """
        if shown is None or self.log is None:
            return {}
        model, objective = shown
        with trainer.precision():
            batches = trainer.feed.validation()
            found = validation_losses(objective, batches, trainer.device)
        self.log.metrics(trainer.step, found)
        if self.painter is not None:
            file = trainer.run / "samples" / f"step-{trainer.step:06d}.png"
            file.parent.mkdir(exist_ok=True)
            self.painter(model, file)
            self.log.picture(trainer.step, file)
        for observer in self.observers:
            more = observer.on_validation(self._moment(trainer, self.log), model)
            self.log.metrics(trainer.step, more)
            found |= more
        return found

    def result(self, trainer: Trainer, signal: int | None) -> dict[str, Any]:
        """What `gesso.train.loop.train` returns."""
        saved, latest = trainer.saver.saved, trainer.latest
        return {
            "run": str(trainer.run),
            "checkpoint": str(saved) if saved else None,
            "steps": trainer.step,
            "seconds": round(trainer.seconds, 3),
            "images_per_second": latest.get("images_per_second", 0.0),
            "loss": latest.get("loss", float("nan")),
            "validation": trainer.validation,
            "skipped": trainer.guard.skipped,
            "parameters": sum(p.numel() for p in trainer.params.values()),
            "interrupted": trainer.share < 1,
            "signal": signal,
        }

    def _moment(self, trainer: Trainer, log: RunLog) -> Moment:
        return Moment(
            step=trainer.step,
            share=trainer.share,
            seconds=trainer.step_seconds,
            pictures=trainer.config.batch_size * trainer.config.accumulate,
            run=trainer.run,
            recipe=trainer.recipe,
            device=trainer.device,
            latest=trainer.latest,
            say=log.say,
            log=lambda values: log.metrics(trainer.step, values),
        )
