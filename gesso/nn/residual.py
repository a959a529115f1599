"""A residual block of two convolutions."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Residual(nn.Module):
    """x + conv(silu(conv(x))): [B, K, h, w] -> the same shape. No norm: colours stay absolute."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        for p in self.conv2.parameters():  # starts as the identity
            nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(x)))
