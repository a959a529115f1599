"""Gradients that pass through a network and do not stay in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Inside, what is computed has no gradient for the network's parameters, only for its input."""
    learns = [p for p in network.parameters() if p.requires_grad]
    for p in learns:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learns:
            p.requires_grad_(True)
