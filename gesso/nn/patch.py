"""Latents to tokens and back. Tokens are row-major (height, then width)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F


class PatchEmbed(nn.Module):
    """Non-overlapping patches, each projected to a token: [B, C, h, w] -> [B, N, dim]."""

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        # A Conv2d holds the parameters, in the shape that published checkpoints have. Its bias
        # keeps the convolution's default initialisation, as in DiT.
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        nn.init.xavier_uniform_(self.proj.weight.view(dim, -1))

    def forward(self, x: Tensor) -> Tensor:
        # Stride equals kernel size, so the convolution is one matrix product, which is faster.
        p = self.patch_size
        b, c, h, w = x.shape
        x = x.view(b, c, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5)  # [B, h/p, w/p, C, p, p]
        x = x.reshape(b, (h // p) * (w // p), c * p * p)  # [B, N, C p p]
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)

    def placed(self, x: Tensor, table: Callable[[int, int], Tensor]) -> Tensor:
        """Tokens with their positions, [B, C, h, w] -> [B, N, dim]; `table` of the grid's height
        and width is [N, dim]."""
        p, dtype = self.patch_size, self.proj.weight.dtype
        position = table(x.shape[2] // p, x.shape[3] // p)
        tokens: Tensor = self(x.to(dtype))
        return tokens + position.to(dtype)


def unpatchify(tokens: Tensor, height: int, width: int, patch_size: int) -> Tensor:
    """[B, N, p p C] with the channel fastest -> [B, C, height, width] (sizes in latent cells)."""
    p = patch_size
    b, _, n = tokens.shape
    x = tokens.view(b, height // p, width // p, p, p, n // (p * p))  # [B, h/p, w/p, p, p, C]
    x = x.permute(0, 5, 1, 3, 2, 4)  # [B, C, h/p, p, w/p, p]
    return x.reshape(b, -1, height, width)
