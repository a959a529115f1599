"""Dropout whose draws follow from a training step alone, as all of a training's do.

    with dropping(network, draws):
        out = network(x)

Outside of it a network drops nothing. Hinton et al. 2012, https://arxiv.org/abs/1207.0580.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gesso.draws import Draws


class Dropout(nn.Module):
    """[B, ...] -> [B, ...]: zero with probability p, else divided by 1 - p.

    Called twice inside one `dropping` it drops the same values, so that a block may be computed
    again in the backward pass.
    """

    draws: Draws | None = None

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x if self.draws is None or self.p == 0 else x * self._kept(x)

    @torch.compiler.disable
    def _kept(self, x: Tensor) -> Tensor:
        assert self.draws is not None
        kept = self.draws.again().rand(*x.shape) >= self.p
        return kept.to(x.dtype) / (1 - self.p)


@contextmanager
def dropping(network: nn.Module, draws: Draws) -> Iterator[None]:
    """Inside, a network in training mode drops values; afterwards it drops none.

    Args:
        network: its `Dropout`s each draw numbers of their own.
        draws: of the training step; it is not advanced.
    """
    layers = [m for m in network.modules() if isinstance(m, Dropout) and m.training]
    for number, layer in enumerate(layers, 1):
        layer.draws = draws.again(number)
    try:
        yield
    finally:
        for layer in layers:
            layer.draws = None
