"""Multi-scale residual quantisation: a picture as maps of codes, from one code to a full grid.

Tian et al. 2024 (VAR), https://arxiv.org/abs/2404.02905, algorithms 1 and 2. Each scale codes what
the scales before it left over: the residual is averaged down to the scale's grid, quantised,
interpolated up again, smoothed and subtracted.

Dims: B batch, C code width, S side of the full grid, K scales of p_0 < ... < p_(K-1) = S codes a
side, T = sum of p_k^2 codes in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gesso.nn.codebook import Codebook, Quantised

SMOOTHING = 0.5  # how much of a smoothed map is its convolution


class MultiScaleCodebook(nn.Module):
    """One codebook for all scales.

    Args:
        codes: entries.
        dim: C.
        scales: p_k, ascending; the last is the full grid's side.
        smoothers: convolutions that the scales share, each the one whose place is nearest.
        beta: weight of the encoder's ("commitment") term.
    """

    def __init__(
        self, codes: int, dim: int, scales: Sequence[int], smoothers: int = 4, beta: float = 0.25
    ) -> None:
        super().__init__()
        self.scales, self.beta = tuple(scales), beta
        self.codebook = Codebook(codes, dim, l2_norm=False)
        # As VAR has it. Of entries that start longer than the vectors, the shortest alone is hit.
        nn.init.uniform_(self.codebook.embedding.weight, -1 / codes, 1 / codes)
        self.smooth = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(smoothers))
        # Places from 1/(3n) to 1 - 1/(3n), as VAR has them: .083, .361, .639, .917 for n = 4.
        edge = 1 / (3 * smoothers)
        places = np.linspace(edge, 1 - edge, smoothers)  # in float64, which settles VAR's ties
        last = max(1, len(self.scales) - 1)
        self.chosen = [int(np.abs(places - k / last).argmin()) for k in range(len(self.scales))]

    def split(self, codes: Tensor) -> Iterator[Tensor]:
        """[B, T] -> K of [B, p_k^2]; fewer scales if T is that of the first few."""
        start = 0
        for p in self.scales:
            if start == codes.shape[1]:
                return
            yield codes[:, start : start + p * p]
            start += p * p

    def up(self, codes: Tensor, k: int) -> Tensor:
        """Codes [B, p_k^2] of scale k to what they add to the full grid, [B, C, S, S] float32.

        Without autocast, as the codes of later scales depend on it: a picture's codes and what a
        generator reads of them are the same in training and in painting, at any precision.
        """
        p, side = self.scales[k], self.scales[-1]
        convolution = self.smooth[self.chosen[k]]
        with torch.autocast(codes.device.type, enabled=False):
            h = self.codebook.look_up(codes.unflatten(1, (p, p))).permute(0, 3, 1, 2)
            if p != side:  # [B, C, p, p] -> [B, C, S, S]
                h = F.interpolate(h, (side, side), mode="bicubic")
            return (1 - SMOOTHING) * h + SMOOTHING * convolution(h)

    def down(self, x: Tensor, k: int) -> Tensor:
        """[B, C, S, S] averaged to scale k: [B, p_k^2, C]."""
        p = self.scales[k]
        if p != self.scales[-1]:
            x = F.interpolate(x, (p, p), mode="area")
        return x.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def codes(self, z: Tensor) -> Tensor:
        """Vectors [B, C, S, S] to codes [B, T]."""
        rest, found = z.float(), []
        for k in range(len(self.scales)):
            found.append(self.codebook.nearest(self.down(rest, k)))
            rest = rest - self.up(found[-1], k)
        return torch.cat(found, dim=1)

    def sums(self, codes: Tensor) -> Iterator[Tensor]:
        """Codes [B, T] to the picture after each scale, K of [B, C, S, S]."""
        total: Tensor | None = None
        for k, part in enumerate(self.split(codes)):
            total = self.up(part, k) if total is None else total + self.up(part, k)
            yield total

    def look_up(self, codes: Tensor) -> Tensor:
        """Codes [B, T] to [B, C, S, S]."""
        *_, total = self.sums(codes)
        return total

    def inputs(self, codes: Tensor) -> Tensor:
        """What a generator reads to predict scale by scale: the picture so far, at the next scale.

        Args:
            codes: [B, T_k], those of the first k scales.

        Returns:
            [B, T_(k+1) - 1, C]: for scales 1..k, each averaged from the scales before it. Scale 0
            is predicted from the text alone. Those of all K scales: [B, T - 1, C].
        """
        last = len(self.scales) - 1
        parts = [self.down(x, k + 1) for k, x in enumerate(self.sums(codes)) if k < last]
        return torch.cat(parts, dim=1)

    def forward(self, z: Tensor) -> Quantised:
        """Quantise z [B, C, S, S]; value likewise, codes [B, T].

        loss = mean over scales of beta |sg(f_k) - z|^2 + |f_k - sg(z)|^2, f_k the picture after
        scale k.
        """
        z = z.float()
        codes = self.codes(z)
        loss = z.new_zeros(())
        total = z
        for total in self.sums(codes):
            loss = loss + F.mse_loss(total, z.detach())
            loss = loss + self.beta * F.mse_loss(z, total.detach())
        return Quantised(z + (total - z).detach(), codes, loss / len(self.scales))
