"""Learned variance: the variational bound that trains it (Nichol & Dhariwal 2021, section 3.1).

Only for the ddpm path. The mean is detached everywhere, so the bound trains the variance alone and
leaves the prediction to the mean-squared error.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gesso.diffusion.paths import DDPM
from gesso.diffusion.predictions import like, picture_mean

HALF_BIN = 1 / 255  # t = 0 is judged on bins of width 2/255, those of 8-bit data in [-1, 1]


def log_betas(path: DDPM, t: Tensor) -> tuple[Tensor, Tensor]:
    """(log beta~_t, log beta_t), the lower and upper limit of the reverse step's log-variance.

    beta~_0 is 0, whose logarithm is replaced by that of beta~_1, as in the reference.

    Args:
        t: [B] whole steps.

    Returns:
        two [B] float32.
    """
    betas = path.betas
    alpha_bar = path.log_alpha_bar.exp()
    posterior = betas[1:] * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])  # beta~_1 .. beta~_999
    posterior = torch.cat([posterior[:1], posterior])
    index = t.long().cpu()
    return posterior.log()[index].to(t.device).float(), betas.log()[index].to(t.device).float()


def log_variance(raw: Tensor, path: DDPM, t: Tensor) -> Tensor:
    """v log beta + (1 - v) log beta~ with v = (raw + 1) / 2 (eq. 15).

    Args:
        raw: [B, C, h, w], the network's variance output; -1..1 spans the limits.
        t: [B] whole steps.

    Returns:
        [B, C, h, w].
    """
    low, high = (like(x, raw) for x in log_betas(path, t))
    v = (raw + 1) / 2
    return v * high + (1 - v) * low


def posterior_mean(x0: Tensor, x: Tensor, path: DDPM, t: Tensor) -> Tensor:
    """Mean of q(x_{t-1} | x_t, x0) (Ho et al. 2020, eq. 7). x0, x: [B, C, h, w]; t: [B]."""
    alpha_bar = path.log_alpha_bar.exp()
    before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])  # alpha-bar_{t-1}
    of_x0 = before.sqrt() * path.betas / (1 - alpha_bar)
    of_x = (1 - path.betas).sqrt() * (1 - before) / (1 - alpha_bar)
    index = t.long().cpu()
    of_x0, of_x = (c[index].to(x.device, x.dtype) for c in (of_x0, of_x))
    return like(of_x0, x) * x0 + like(of_x, x) * x


def gaussian_kl(mean1: Tensor, logvar1: Tensor, mean2: Tensor, logvar2: Tensor) -> Tensor:
    """KL(N(mean1, e^logvar1) || N(mean2, e^logvar2)) in nats, elementwise."""
    distance = (mean1 - mean2) ** 2 * (-logvar2).exp()
    return 0.5 * (logvar2 - logvar1 + (logvar1 - logvar2).exp() + distance - 1)


def discretised_nll(x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """-log of the Gaussian's mass in the bin around x, in nats, elementwise.

    Bins are 2/255 wide; those at or beyond -1 and 1 reach to infinity (Ho et al. 2020, eq. 13).
    """
    precision = (-0.5 * logvar).exp()
    upper, lower = precision * (x - mean + HALF_BIN), precision * (x - mean - HALF_BIN)
    cdf_upper, cdf_lower = torch.special.ndtr(upper), torch.special.ndtr(lower)
    mass = torch.where(x > 0.999, 1 - cdf_lower, cdf_upper - cdf_lower)
    mass = torch.where(x < -0.999, cdf_upper, mass)
    return -mass.clamp(min=1e-12).log()


def vlb_bits(
    raw: Tensor,
    predicted_x0: Tensor,
    x0: Tensor,
    x: Tensor,
    path: DDPM,
    t: Tensor,
    kept: Tensor | None = None,
) -> Tensor:
    """One step's term of the bound: KL to the true reverse step, or the NLL of x0 at t = 0.

    Args:
        raw: [B, C, h, w], the network's variance output, the only input that gets a gradient.
        predicted_x0: [B, C, h, w], x0 by the network's prediction; detached here.
        x0: [B, C, h, w], the true latent.
        x: [B, C, h, w], x0 noised to t.
        path: the ddpm path.
        t: [B] whole steps.
        kept: [B, 1, h, w] bool, the cells that count; None: all.

    Returns:
        [B] in bits per dimension.
    """
    predicted_x0 = predicted_x0.detach()
    logvar = log_variance(raw, path, t)
    mean = posterior_mean(predicted_x0, x, path, t)
    true_mean = posterior_mean(x0, x, path, t)
    true_logvar = like(log_betas(path, t)[0], x).expand_as(x)
    kl = gaussian_kl(true_mean, true_logvar, mean, logvar)  # [B, C, h, w]
    nll = discretised_nll(x0, mean, logvar)  # [B, C, h, w]
    bound = torch.where(like(t.to(x.device) == 0, x), nll, kl)
    return picture_mean(bound, kept) / math.log(2)
