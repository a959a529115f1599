"""Fixed noise levels and fixed noise, so that losses on held-out pictures can be compared."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from gesso.diffusion.noise import draw_noise
from gesso.diffusion.paths import DDPM, Path

GRID = 8
"""How many levels: the midpoints of equal shares of the path."""


def fixed_grid(path: Path, keys: Sequence[str], x0: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """For each level t [B] and noise of the shape of x0.

    A picture's noise follows from its key, so neither order nor batching matters.

    Args:
        path: the noise path.
        keys: of the B pictures.
        x0: [B, C, h, w], their latents.
    """
    levels = path.place((torch.arange(GRID) + 0.5) / GRID)
    if isinstance(path, DDPM):
        levels = levels.round()
    for level, t in enumerate(levels):
        seeds = [zlib.crc32(f"{level} {key}".encode()) for key in keys]
        rows = [torch.Generator().manual_seed(seed) for seed in seeds]
        yield t.expand(len(x0)).to(x0.device), draw_noise(x0.shape[1:], rows, x0.device)
