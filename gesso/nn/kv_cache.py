"""Keys and values that causal attention has seen, so that a generator reads each code once.

Dims: B batch, H heads, N codes, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Cache:
    """Keys and values of the codes so far, one pair a layer of attention."""

    def __init__(self) -> None:
        self.kept: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    @property
    def length(self) -> int:
        """Codes that it holds."""
        return next((k.shape[2] for k, _ in self.kept.values()), 0)

    def extend(self, owner: nn.Module, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Those of a layer [B, H, N, d], with the new ones at the end."""
        if owner in self.kept:
            before = self.kept[owner]
            k, v = torch.cat([before[0], k], dim=2), torch.cat([before[1], v], dim=2)
        self.kept[owner] = k, v
        return k, v
