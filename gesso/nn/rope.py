"""Rotary positions on two axes (Su et al. 2021, https://arxiv.org/abs/2104.09864; Heo et al. 2024).

Half of a head's channels turn with the horizontal coordinate, half with the vertical one. A pair of
neighbouring channels is a complex number; pair j of an axis turns by position x theta^(-4 j / d).

Dims: B batch, H heads, N tokens, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor

THETA = 10000.0


def grid_positions(height: int, width: int, span: float | None = None) -> Tensor:
    """Coordinates of a token grid; tokens are row-major (height, then width).

    Args:
        height, width: of the grid, in tokens.
        span: each axis with two tokens or more covers 0..span whatever its length, so that grids of
            all sizes cover the same picture (STAR, arXiv:2406.10797, section 3.3); None: 0, 1, 2...

    Returns:
        [height * width, 2] float32, horizontal, then vertical.
    """
    y, x = torch.arange(height).float(), torch.arange(width).float()
    if span is not None:
        y, x = y * (span / max(1, height - 1)), x * (span / max(1, width - 1))
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1)


def rotary(positions: Tensor, dim: int) -> Tensor:
    """Rotations for positions.

    Args:
        positions: [N, 2].
        dim: d, divisible by 4.

    Returns:
        [2, N, d/2] float32, cosines and sines.
    """
    k = torch.arange(dim // 4, dtype=torch.float64, device=positions.device)
    angle = positions.double()[:, :, None] * THETA ** (-4 * k / dim)  # [N, 2, d/4]
    angle = angle.flatten(1)  # [N, d/2]
    return torch.stack([angle.cos(), angle.sin()]).float()


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn queries or keys [B, H, N, d] by `rotary`'s [2, N, d/2], in float32."""
    cos, sin = turn
    real, imaginary = x.float().unflatten(-1, (-1, 2)).unbind(-1)  # 2 of [B, H, N, d/2]
    turned = [real * cos - imaginary * sin, real * sin + imaginary * cos]
    return torch.stack(turned, dim=-1).flatten(-2).to(x.dtype)
