"""Noise that belongs to a picture, not to its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Generators = Sequence[torch.Generator]
"""One generator for each picture."""


def draw_noise(
    shape: Sequence[int], generators: Generators, device: torch.device | str | None = None
) -> Tensor:
    """Standard normal noise, each picture's from its own generator.

    A picture's noise depends on nothing but its generator: not on its neighbours, and with CPU
    generators not on the device either.

    Args:
        shape: of one picture, (C, h, w).
        generators: B of them; each is advanced.
        device: where the result goes.

    Returns:
        [B, C, h, w] float32.
    """
    rows = [torch.randn(tuple(shape), generator=g, device=g.device) for g in generators]
    return torch.stack(rows).to(device)
