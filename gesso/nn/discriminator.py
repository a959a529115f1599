"""A residual discriminator of pictures, after StyleGAN2's (Karras et al. 2020, figure 7).

https://arxiv.org/abs/1912.04958. Downsampling averages, and weights are not rescaled at run time.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gesso.types import GessoError

SLOPE = 0.2  # of the leaky rectifier
GROUP = 4  # pictures whose spread is a feature
SMALLEST = 4  # side of the map before the last layers


class Down(nn.Module):
    """[B, K, h, w] -> [B, M, h/2, w/2]: two convolutions beside a projection."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, inner, 3, padding=1)
        self.conv2 = nn.Conv2d(inner, outer, 3, padding=1)
        self.skip = nn.Conv2d(inner, outer, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.leaky_relu(self.conv1(x), SLOPE)
        y = F.leaky_relu(self.conv2(F.avg_pool2d(y, 2)), SLOPE)
        return (y + self.skip(F.avg_pool2d(x, 2))) * 0.5**0.5


class Discriminator(nn.Module):
    """[B, 3, H, W] in [-1, 1] -> [B] logits, positive for real pictures.

    Args:
        size: H = W, a power of two of at least 8; `forward` refuses other pictures.
        width: channels at full size; they double with every halving up to `most`.
        most: channels.

    Raises:
        GessoError: a size that is no power of two of at least 8.
    """

    def __init__(self, size: int, width: int = 16, most: int = 128) -> None:
        super().__init__()
        if size < 2 * SMALLEST or size & (size - 1):
            raise GessoError(
                f"The discriminator takes pictures whose side is a power of two of at least 8, not"
                f" {size}: change objective.size to the pictures' side, or set"
                " objective.adversarial=0."
            )
        self.size = size
        halvings = int(math.log2(size // SMALLEST))
        widths = [min(most, width * 2**i) for i in range(halvings + 1)]
        self.first = nn.Conv2d(3, width, 1)
        self.blocks = nn.ModuleList(Down(a, b) for a, b in pairwise(widths))
        last = widths[-1]
        self.conv = nn.Conv2d(last + 1, last, 3, padding=1)
        self.hidden = nn.Linear(last * SMALLEST**2, last)
        self.out = nn.Linear(last, 1)

    def forward(self, pictures: Tensor) -> Tensor:
        height, width = pictures.shape[2:]
        if (height, width) != (self.size, self.size):
            raise GessoError(
                f"The discriminator takes pictures of {self.size}x{self.size} pixels, not"
                f" {width}x{height}: set objective.size and data.size alike, or"
                " objective.adversarial=0."
            )
        x = F.leaky_relu(self.first(pictures), SLOPE)
        for block in self.blocks:
            x = block(x)
        x = F.leaky_relu(self.conv(torch.cat([x, spread(x)], dim=1)), SLOPE)
        x = F.leaky_relu(self.hidden(x.flatten(1)), SLOPE)
        return self.out(x)[:, 0]


def spread(x: Tensor) -> Tensor:
    """How much pictures of a group differ, one more channel (Karras et al. 2018, section 3).

    Args:
        x: [B, K, h, w]; groups are of 4 pictures, or of all where 4 does not divide B.

    Returns:
        [B, 1, h, w]: the standard deviation over the group, averaged over everything else.
    """
    b, _, h, w = x.shape
    group = GROUP if b % GROUP == 0 else b
    y = x.reshape(group, b // group, -1)  # [G, B/G, K h w]
    deviation = (y.var(dim=0, correction=0) + 1e-8).sqrt().mean(dim=1)  # [B/G]
    return deviation.repeat(group).view(b, 1, 1, 1).expand(b, 1, h, w)


def gradient_penalty(logits: Tensor, pictures: Tensor) -> Tensor:
    """R1: |gradient of the logits at real pictures|^2, mean over pictures (Mescheder et al. 2018).

    Args:
        logits: [B] of `pictures`.
        pictures: [B, 3, H, W] that require a gradient.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), pictures, create_graph=True)
    return gradient.square().flatten(1).sum(1).mean()


def discriminator_loss(
    network: Discriminator, real: Tensor, fake: Tensor, r1: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """softplus(-D(real)) + softplus(D(fake)) + r1/2 |grad D(real)|^2.

    Args:
        network: D.
        real, fake: [B, 3, H, W].
        r1: weight of the penalty; 0 leaves it out.

    Returns:
        The loss, and the mean logits `real` and `fake` and the penalty `r1` as metrics.
    """
    real = real.detach().requires_grad_(r1 > 0)
    yes, no = network(real), network(fake)  # 2 of [B]
    loss = F.softplus(-yes).mean() + F.softplus(no).mean()
    metrics = {"real": yes.detach().mean(), "fake": no.detach().mean()}
    if r1:
        penalty = gradient_penalty(yes, real)
        loss = loss + r1 / 2 * penalty
        metrics["r1"] = penalty.detach()
    return loss, metrics
