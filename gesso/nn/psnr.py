"""The peak signal-to-noise ratio of pictures."""

from __future__ import annotations

import torch
from torch import Tensor


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """[B] decibels between pictures [B, 3, H, W] in [-1, 1]; y is clamped and gives no gradient."""
    error = (x - y.detach().clamp(-1, 1)).square().flatten(1).mean(1)
    return 10 * torch.log10(4 / error.clamp_min(1e-10))  # the range has peak 2
