"""A narrow transformer over all patches, for backbones that are trained on some of them.

Deferred masking (Sehwag et al. 2024, https://arxiv.org/abs/2407.15811, section 3): patches that are
dropped after the mixer have told the others what they hold. This one leaves the text to the blocks
behind it. It stays in the network after training.

Dims: B batch, N image tokens, D width of the backbone, M width of the mixer.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gesso.nn.attention import SelfAttention
from gesso.nn.init import xavier_
from gesso.nn.linear import Linear
from gesso.nn.mlp import Mlp
from gesso.nn.modulation import modulated_norm

HEAD = 64  # width of an attention head, where the mixer is as wide


class MixerBlock(nn.Module):
    """Self-attention and MLP with adaLN-single, as in PixArt without its cross-attention."""

    def __init__(self, width: int, mlp_ratio: float) -> None:
        super().__init__()
        self.scale_shift_table = nn.Parameter(torch.randn(6, width) * width**-0.5)
        self.attn = SelfAttention(width, max(1, width // HEAD))
        self.mlp = Mlp(width, int(width * mlp_ratio), width)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, N, M], t [B, 6, M] -> [B, N, M]."""
        modulation = (self.scale_shift_table + t).chunk(6, dim=1)  # 6 of [B, 1, M]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation
        x = x + gate1 * self.attn(modulated_norm(x, shift1, scale1))
        return x + gate2 * self.mlp(modulated_norm(x, shift2, scale2))


class PatchMixer(nn.Module):
    """[B, N, D] -> [B, N, M]; `expand` leads back, after patches were dropped.

    Args:
        dim: D.
        width: M, a multiple of 64 or smaller than that.
        depth: blocks.
        mlp_ratio: hidden width of their MLPs over M.
    """

    def __init__(self, dim: int, width: int, depth: int, mlp_ratio: float) -> None:
        super().__init__()
        self.reduce = xavier_(Linear(dim, width))
        self.modulation = nn.Sequential(nn.SiLU(), xavier_(Linear(dim, 6 * width)))
        self.blocks = nn.ModuleList(MixerBlock(width, mlp_ratio) for _ in range(depth))
        self.expand = xavier_(Linear(width, dim))

    def forward(self, tokens: Tensor, time: Tensor) -> Tensor:
        """tokens [B, N, D], time [B, D] the time's embedding -> [B, N, M]."""
        t = self.modulation(time).unflatten(1, (6, -1))  # [B, 6, M]
        x = self.reduce(tokens)
        for block in self.blocks:
            x = block(x, t)
        return x
