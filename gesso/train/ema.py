"""Exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gesso.train.sharding import local


class EMA:
    """The average of some parameters over training.

    The decay is warmed up, min(decay, (1 + n) / (10 + n)) after n updates, so that the average
    forgets the initial weights quickly. Of a sharded parameter it holds this process's piece.

    Args:
        params: the live parameters by name.
        decay: of one update, close to 1. 0: the average is the live weights.
    """

    def __init__(self, params: Mapping[str, nn.Parameter], decay: float) -> None:
        self.params = dict(params)
        self.decay = decay
        self.updates = 0
        self.average = {name: local(p).detach().clone() for name, p in self.params.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the live weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        averages = list(self.average.values())
        lives = [local(p).detach() for p in self.params.values()]
        torch._foreach_lerp_(averages, lives, 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the modules hold the average; afterwards the live weights are back.

        Not for sharded parameters: see `gesso.train.averaged`.
        """
        self.swap()
        try:
            yield
        finally:
            self.swap()

    def swap(self) -> None:
        """Exchange the live weights and the average."""
        for name, p in self.params.items():
            live: Tensor = p.data
            p.data, self.average[name] = self.average[name], live
