"""Adaptive layer norm: normalise, then shift and scale by a function of the timestep."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

EPS = 1e-6  # of every layer norm in DiT, PixArt and MMDiT


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x) (1 + scale) + shift, the norm without parameters of its own (DiT, section 3.2).

    Args:
        x: [B, N, dim].
        shift, scale: [B, 1, dim].
    """
    return F.layer_norm(x, x.shape[-1:], eps=EPS) * (1 + scale) + shift
