"""Scalars (timesteps, picture sizes) to vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from gesso.nn.init import normal_

FEATURES = 256  # width of the sinusoid in DiT and its descendants


def sinusoid(values: Tensor, dim: int = FEATURES) -> Tensor:
    """Cosines, then sines, of `values` at dim/2 frequencies 10000^(-k / (dim/2)).

    Computed in float32 whatever the model's dtype: bfloat16 cannot tell t = 900 from 902.

    Args:
        values: [N], fractions allowed.

    Returns:
        [N, dim] float32.
    """
    half = dim // 2
    k = torch.arange(half, dtype=torch.float32, device=values.device)
    angle = values.float()[:, None] * torch.exp(-math.log(10000.0) / half * k)  # [N, half]
    return torch.cat([angle.cos(), angle.sin()], dim=1)  # [N, dim]


class ScalarEmbedder(nn.Module):
    """Sinusoid, then a two-layer MLP: [N] -> [N, dim].

    Args:
        dim: width of the result.
        init_std: standard deviation of the initial weights.
        features: width of the sinusoid.
        activation: between the layers; default: SiLU.
    """

    def __init__(
        self,
        dim: int,
        init_std: float = 0.02,
        features: int = FEATURES,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        first = normal_(nn.Linear(features, dim), init_std)
        second = normal_(nn.Linear(dim, dim), init_std)
        self.mlp = nn.Sequential(first, activation or nn.SiLU(), second)

    def forward(self, values: Tensor) -> Tensor:
        dtype = next(self.mlp.parameters()).dtype
        return self.mlp(sinusoid(values, self.features).to(dtype))
