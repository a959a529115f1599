"""Perceptrons: with tanh-GELU, as in DiT blocks and the caption projection, and gated (SwiGLU)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gesso.nn.init import bare, xavier_
from gesso.nn.linear import Linear


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by its tanh approximation (Hendrycks & Gimpel 2016, section 2).

    x (1 + tanh u) / 2 is x sigmoid(2 u). Compiled for a CPU the second form is much faster, as
    its vectorised exponential is; eagerly one fused kernel beats several.
    """
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        x32 = x.float()
        u = 0.7978845608028654 * (x32 + 0.044715 * x32 * x32 * x32)  # sqrt(2 / pi) (x + c x^3)
        return (x32 * torch.sigmoid(2 * u)).to(x.dtype)
    return F.gelu(x, approximate="tanh")


class Mlp(nn.Module):
    """[..., dim] -> [..., hidden] -> [..., out]."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = xavier_(Linear(dim, hidden))
        self.fc2 = xavier_(Linear(hidden, out))

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.fc1, Linear) and self.fc1.packed is not None:
            return self.fc2(self.fc1.packed_forward(x, gelu=True))
        return self.fc2(gelu_tanh(self.fc1(x)))


class SwiGLU(nn.Module):
    """[..., dim] -> [..., dim]: w3 (silu(w1 x) * w2 x) without biases (Shazeer 2020, eq. 6).

    Args:
        dim: width of input and output.
        hidden: of both inner layers.
        std, out_std: initial standard deviations of w1, and of w2 and w3.
    """

    def __init__(self, dim: int, hidden: int, std: float, out_std: float) -> None:
        super().__init__()
        self.w1 = bare(dim, hidden, std)
        self.w2 = bare(dim, hidden, out_std)
        self.w3 = bare(hidden, dim, out_std)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))
