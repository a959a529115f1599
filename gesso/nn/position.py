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
        k = torch.arange(dim // 4, dtype=torch.float64, device=device)
        omega = 10000.0 ** (-k / (dim // 4))  # [dim/4]

        def encode(position: Tensor) -> Tensor:
            angle = position.double()[:, None] * omega  # [n, dim/4]
            return torch.cat([angle.sin(), angle.cos()], dim=1)  # [n, dim/2]

        horizontal = encode(x)[None].expand(height, -1, -1)  # [h, w, dim/2]
        vertical = encode(y)[:, None].expand(-1, width, -1)  # [h, w, dim/2]
        table = torch.cat([horizontal, vertical], dim=2)  # [h, w, dim]
        return table.flatten(0, 1).float()
