"""Adaptive layer norm: normalise, then shift and scale by a function of the timestep."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gesso.nn.init import zero_

EPS = 1e-6  # of every layer norm in DiT, PixArt and MMDiT


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x) (1 + scale) + shift, the norm without parameters of its own (DiT, section 3.2).

    Args:
        x: [B, N, dim].
        shift, scale: [B, 1, dim].
    """
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift


class AdaLN(nn.Sequential):
    """A block's own modulation: SiLU and a linear layer that starts at zero (DiT, figure 3).

    [B, dim] -> `parts` of [B, 1, dim]: shifts, scales and gates.
    """

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__(nn.SiLU(), zero_(nn.Linear(dim, parts * dim)))
        self.parts = parts

    def forward(self, c: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return super().forward(c)[:, None].chunk(self.parts, dim=2)
