"""Self-attention to a coarser grid (PixArt-Sigma, section 2.3, https://arxiv.org/abs/2403.04692).

Dims: B batch, H heads, N = h w tokens, M = floor(h/R) floor(w/R) compressed ones, d width of a
head, dim = H d, R the compression along each side.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gesso.nn.attention import SelfAttention, attend


class CompressedSelfAttention(SelfAttention):
    """Self-attention whose keys and values are pooled R x R: [B, N, dim] -> [B, N, dim].

    One depthwise convolution of kernel and stride R, then a layer norm, serve keys and values
    alike. The convolution starts as the mean of its window.
    """

    def __init__(self, dim: int, num_heads: int, compression: int) -> None:
        super().__init__(dim, num_heads)
        self.sr = nn.Conv2d(dim, dim, compression, stride=compression, groups=dim)
        nn.init.constant_(self.sr.weight, compression**-2)
        nn.init.zeros_(self.sr.bias)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, grid: tuple[int, int], bias: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """x [B, N, dim], row-major on the grid (h, w); bias [B, 1, 1, M] or None -> [B, N, dim]."""
        q, k, v = self.qkv(x).chunk(3, dim=2)  # 3 of [B, N, dim]
        k, v = self._compress(torch.cat([k, v]), grid).chunk(2)  # 2 of [B, M, dim]
        q, k, v = (y.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for y in (q, k, v))
        return self.proj(attend(q, k, v, bias).transpose(1, 2).flatten(2))

    def _compress(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, N, dim] -> [B, M, dim]; rows and columns that fill no window are left out."""
        image = x.transpose(1, 2).unflatten(2, grid)  # [B, dim, h, w]
        return self.norm(self.sr(image).flatten(2).transpose(1, 2))
