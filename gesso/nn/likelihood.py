"""Distributions of pixels: the logit-Laplace of Ramesh et al. 2021, appendix A.3.

https://arxiv.org/abs/2102.12092. Its support is (0, 1), as that of pixels, unlike the Laplace's or
the Gaussian's behind L1 and L2 losses.
"""

from __future__ import annotations

import torch
from torch import Tensor

EPSILON = 0.1  # pixels are moved to (0.1, 0.9), where their logit is finite


def logit_laplace_mean(out: Tensor) -> Tensor:
    """Parameters [B, 6, H, W], mu and log b, to the picture [B, 3, H, W] at mu, about [-1, 1]."""
    return 2 * (torch.sigmoid(out[:, :3]) - EPSILON) / (1 - 2 * EPSILON) - 1


def logit_laplace_nll(out: Tensor, pixels: Tensor) -> Tensor:
    """Negative log-likelihood of pixels under a logit-Laplace distribution (Ramesh et al., eq. 5).

    With x' = (1 - 2 eps) x + eps: log(2 b x' (1 - x')) + |logit x' - mu| / b.

    Args:
        out: [B, 6, H, W]: mu and log b.
        pixels: [B, 3, H, W] in [-1, 1].

    Returns:
        The mean over values, in nats.
    """
    mu, log_b = out.float().chunk(2, dim=1)  # 2 of [B, 3, H, W]
    x = (1 - 2 * EPSILON) * (pixels + 1) / 2 + EPSILON
    scale = log_b + (2 * x * (1 - x)).log()
    return (scale + (torch.logit(x) - mu).abs() * (-log_b).exp()).mean()
