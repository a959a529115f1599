"""Distances of two denoisers at noised samples, with gradients for the generator that made them.

With the estimates D_q of the target and D_f of a network that denoises what the generator makes, at
x_t = alpha x0 + sigma noise, and u = D_q - D_f. Each function gives a loss to descend, which has a
sign and tells nothing by itself, and the distance to look at:

    score  u / sqrt(|u|^2 + c^2) . (D_f - x0)    Luo et al. 2024, arXiv:2410.16794, the pseudo-Huber
           distance; u . (D_f - x0), the squared one. The gradient passes through x_t inside both
           networks, u included: less of it is another, wrong one.
    kl     (D_f - D_q) . x0, the difference held fixed    Luo et al. 2023, arXiv:2305.18455
"""

from __future__ import annotations

from torch import Tensor


def score(real: Tensor, fake: Tensor, x0: Tensor, huber: float | None) -> tuple[Tensor, Tensor]:
    """The distance of scores.

    Args:
        real, fake, x0: D_q, D_f and the sample, [B, C, h, w] each, with their gradients.
        huber: c over the root of C h w; None: the squared distance.

    Returns:
        The loss and the distance, [B] each.
    """
    u = real - fake
    square = u.square().flatten(1).sum(1)  # [B]
    way = (u * (fake - x0)).flatten(1).sum(1)  # [B]
    if huber is None:
        return way, square.detach()
    c = huber * u[0].numel() ** 0.5
    root = (square + c**2).sqrt()
    return way / root, (root - c).detach()


def kl(real: Tensor, fake: Tensor, x0: Tensor) -> tuple[Tensor, Tensor]:
    """The integral KL divergence's update; as that is unknown, the distance is |u|^2 / 2.

    Args:
        real, fake: D_q and D_f [B, C, h, w], without gradients.
        x0: the sample, of that shape.

    Returns:
        The loss and the distance, [B] each.
    """
    u = real - fake
    return -(u * x0).flatten(1).sum(1), u.square().flatten(1).sum(1) / 2
