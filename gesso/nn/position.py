"""Fixed two-dimensional sine-cosine positions (MAE, DiT; PixArt's interpolation)."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


@lru_cache(maxsize=64)
def sincos_2d(
    height: int,
    width: int,
    dim: int,
    base_size: float,
    interpolation_scale: float = 1.0,
    device: torch.device | None = None,
) -> Tensor:
    """Position table of a token grid; tokens are row-major (height, then width).

    The coordinate of token i out of n on an axis is i / (n / base_size) / interpolation_scale, so
    every grid covers the same range as the one trained on, whatever its size or aspect. The first
    half of the channels encodes the horizontal coordinate, the second half the vertical one; each
    half is sines, then cosines. Tables are cached by their arguments: treat them as read-only.

    Args:
        height, width: of the grid, in tokens.
        dim: channels, divisible by 4.
        base_size: side of the training grid, in tokens.
        interpolation_scale: 1 for PixArt-alpha at 256 and 512 px, 2 at 1024 px.

    Returns:
        [height * width, dim] float32.
    """
    # A table built while sampling (inference mode) must stay usable in training.
    with torch.inference_mode(False), torch.no_grad():
        y = torch.arange(height, dtype=torch.float32, device=device)  # [h]
        x = torch.arange(width, dtype=torch.float32, device=device)  # [w]
        y = y / (height / base_size) / interpolation_scale
        x = x / (width / base_size) / interpolation_scale
        return _table(y, x, dim)


@lru_cache(maxsize=64)
def sincos_2d_centred(
    height: int,
    width: int,
    dim: int,
    base_size: float,
    table_size: int,
    device: torch.device | None = None,
) -> Tensor:
    """Position table of a token grid, cut from the middle of a larger one (SD3, section 5.3.2).

    The large table is square with `table_size` tokens a side that cover the range of `base_size`,
    so that a token keeps its distance to its neighbours whatever the size of the grid. Only the
    part that is used is computed. Tables are cached by their arguments: treat them as read-only.

    Args:
        height, width: of the grid, in tokens, at most `table_size`.
        dim: channels, divisible by 4.
        base_size: side of the training grid, in tokens.
        table_size: side of the large table, in tokens.

    Returns:
        [height * width, dim] float32, laid out as in `sincos_2d`.
    """
    with torch.inference_mode(False), torch.no_grad():
        y = torch.arange(height, dtype=torch.float32, device=device)  # [h]
        x = torch.arange(width, dtype=torch.float32, device=device)  # [w]
        y = (y + (table_size - height) // 2) / (table_size / base_size)
        x = (x + (table_size - width) // 2) / (table_size / base_size)
        return _table(y, x, dim)


def _table(y: Tensor, x: Tensor, dim: int) -> Tensor:
    """Coordinates y [h] and x [w] -> [h w, dim]: x, then y; in each half sines, then cosines."""
    k = torch.arange(dim // 4, dtype=torch.float64, device=y.device)
    omega = 10000.0 ** (-k / (dim // 4))  # [dim/4]

    def encode(position: Tensor) -> Tensor:
        angle = position.double()[:, None] * omega  # [n, dim/4]
        return torch.cat([angle.sin(), angle.cos()], dim=1)  # [n, dim/2]

    horizontal = encode(x)[None].expand(len(y), -1, -1)  # [h, w, dim/2]
    vertical = encode(y)[:, None].expand(-1, len(x), -1)  # [h, w, dim/2]
    return torch.cat([horizontal, vertical], dim=2).flatten(0, 1).float()  # [h w, dim]
