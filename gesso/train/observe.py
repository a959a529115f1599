"""Watching a training from outside the loop: after every step, and at every validation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from gesso.config import Recipe
from gesso.model import Model


@dataclass(frozen=True)
class Moment:
    """Where a training stands.

    Attributes:
        step: steps done.
        share: of the training that is done, 0..1.
        seconds: what the last step took, without validation and saving.
        pictures: what it learnt from, over all processes.
        run, recipe, device: of the training.
        latest: the means that were logged last: loss, images_per_second, data_wait, ...
        say: shows a message above the progress bar.
        log: adds numbers to this step's metrics.
    """

    step: int
    share: float
    seconds: float
    pictures: int
    run: Path
    recipe: Recipe
    device: torch.device
    latest: Mapping[str, float]
    say: Callable[[str], None]
    log: Callable[[Mapping[str, float]], None]


class Observer:
    """Base of what watches a training. The leading process alone calls it."""

    def on_step(self, moment: Moment) -> None:
        """After every step, before validation and checkpoints."""

    def on_validation(self, moment: Moment, model: Model) -> Mapping[str, float]:
        """At every validation.

        Args:
            moment: where the training stands.
            model: in evaluation mode, holding the averaged weights; whole, also where the training
                is sharded. It must be left as it is.

        Returns:
            Numbers that join the validation losses, in the metrics and in the result.
        """
        return {}
