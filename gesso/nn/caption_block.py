"""What MicroDiT makes of a caption before its blocks read it.

Dims: B batch, L text tokens, D width of the network.
"""

from __future__ import annotations

from torch import Tensor, nn

from gesso.nn.init import normal_
from gesso.nn.linear import Linear
from gesso.nn.mlp import SwiGLU, gelu_tanh
from gesso.nn.modulation import EPS
from gesso.nn.normed_attention import NormedSelfAttention


def layer_norm(dim: int) -> nn.LayerNorm:
    """With a weight and without a bias."""
    return nn.LayerNorm(dim, eps=EPS, bias=False)


class NormMlp(nn.Module):
    """Linear, tanh-GELU, norm, linear: [..., dim] -> [..., out]."""

    def __init__(self, dim: int, out: int, std: float) -> None:
        super().__init__()
        self.fc1 = normal_(Linear(dim, out), std)
        self.norm = layer_norm(out)
        self.fc2 = normal_(Linear(out, out), std)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(gelu_tanh(self.fc1(x))))


class CaptionEmbedder(nn.Module):
    """Projects text features to the width of the network: [B, L, text_dim] -> [B, L, D]."""

    def __init__(self, text_dim: int, dim: int, std: float) -> None:
        super().__init__()
        self.y_proj = NormMlp(text_dim, dim, std)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.y_proj(tokens)


class CaptionBlock(nn.Module):
    """Self-attention over the caption and a gated MLP, both silent at the start.

    Args:
        dim: D.
        head_dim: width of an attention head.
        hidden: of the MLP.
        std: initial standard deviation of the weights that are not zero.
    """

    def __init__(self, dim: int, head_dim: int, hidden: int, std: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = layer_norm(dim), layer_norm(dim)
        self.attn = NormedSelfAttention(dim, dim, head_dim, std, out_std=0.0)
        self.mlp = SwiGLU(dim, hidden, std, std)
        nn.init.zeros_(self.mlp.w3.weight)

    def forward(self, y: Tensor, bias: Tensor | None) -> Tensor:
        """y [B, L, D], bias [B, 1, 1, L] or None -> [B, L, D]."""
        y = y + self.attn(self.norm1(y), bias)
        return y + self.mlp(self.norm2(y))
