"""Vector quantisation: each vector becomes the nearest entry of a learned codebook.

van den Oord et al. 2017, https://arxiv.org/abs/1711.00937; with normalised codes Yu et al. 2022,
https://arxiv.org/abs/2110.04627, section 3.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Quantised(NamedTuple):
    """What becomes of vectors z [..., d].

    Attributes:
        value: [..., d], the chosen entries, with z's gradient (straight through).
        codes: [...] int64, their indices.
        loss: the codebook's term plus beta times the encoder's ("commitment").
    """

    value: Tensor
    codes: Tensor
    loss: Tensor


class Codebook(nn.Module):
    """K entries of width d.

    Args:
        codes: K.
        dim: d.
        l2_norm: entries and vectors are compared on the unit sphere, so that the nearest is the one
            of largest cosine, and entries are given out normalised.
        beta: weight of the commitment term.
    """

    def __init__(self, codes: int, dim: int, l2_norm: bool = True, beta: float = 0.25) -> None:
        super().__init__()
        self.l2_norm, self.beta = l2_norm, beta
        self.embedding = nn.Embedding(codes, dim)
        nn.init.normal_(self.embedding.weight)

    def entries(self) -> Tensor:
        """[K, d], normalised with `l2_norm`."""
        weight = self.embedding.weight.float()
        return F.normalize(weight, dim=-1) if self.l2_norm else weight

    def look_up(self, codes: Tensor) -> Tensor:
        """Codes [...] to entries [..., d]."""
        return F.embedding(codes, self.entries())

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Indices [...] of the entries nearest to z [..., d], in float32 also under autocast."""
        z, entries = z.float(), self.entries()
        if self.l2_norm:
            z = F.normalize(z, dim=-1)
        # |z - e|^2 = |z|^2 - 2 z.e + |e|^2, of which the first term decides nothing.
        with torch.autocast(z.device.type, enabled=False):
            distance = torch.addmm(
                entries.square().sum(1), z.reshape(-1, z.shape[-1]), entries.T, alpha=-2
            )  # [n, K]
        return distance.argmin(dim=1).view(z.shape[:-1])

    def forward(self, z: Tensor) -> Quantised:
        """Quantise z [..., d].

        loss = |sg(z) - e|^2 + beta |z - sg(e)|^2 as means over all values, z and e normalised with
        `l2_norm`. The gradient of `value` reaches z as it was given, not normalised.
        """
        z = z.float()
        codes = self.nearest(z)
        entry = self.look_up(codes)
        near = F.normalize(z, dim=-1) if self.l2_norm else z
        loss = F.mse_loss(entry, near.detach()) + self.beta * F.mse_loss(near, entry.detach())
        return Quantised(z + (entry - z).detach(), codes, loss)


def usage(codes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """How much of a codebook some codes use.

    Args:
        codes: int64 of any shape.
        size: K.

    Returns:
        The share of entries that occur, and the perplexity exp(H) of their frequencies; scalars.
    """
    each = codes.flatten()
    counts = torch.zeros(size, dtype=torch.float64, device=codes.device)
    counts = counts.scatter_add(0, each, torch.ones_like(each, dtype=torch.float64))  # [K]
    entropy = torch.special.entr(counts / counts.sum()).sum()
    return (counts > 0).double().mean(), entropy.exp()
