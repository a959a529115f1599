"""A linear layer whose compiled CPU form is faster; everywhere else it is `nn.Linear`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Affine(torch.autograd.Function):
    """x w^T + b, written so that inductor's CPU kernels come out well.

    The bias is added apart from the product, where it fuses with what follows: oneDNN's product
    with a bias is about 15 % slower. The bias gradient is a product with ones: as a sum, inductor
    fuses it into the kernel that makes g, which then walks memory by columns and takes 2.5 times
    as long. docs/performance.md has the figures.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.matmul(x, weight.t()) + bias

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        rows = g.flatten(0, -2)  # [M, out]
        grad_x = torch.matmul(g, weight)
        grad_weight = torch.mm(rows.t(), x.flatten(0, -2))  # [out, in]
        grad_bias = torch.mm(rows.new_ones(1, rows.shape[0]), rows)[0]  # [out]
        return grad_x, grad_weight, grad_bias


class Linear(nn.Linear):
    """[..., in] -> [..., out], with a bias; parameters and results as `nn.Linear`."""

    packed: Tensor | None = None  # the weight as the CPU's kernel reads it; see gesso.nn.packed

    def packed_forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        """`forward` in bfloat16 by the packed weight, then tanh-GELU if asked: one kernel."""
        x, bias = x.to(torch.bfloat16), self.bias.to(torch.bfloat16)
        kind, approximation = ("gelu", "tanh") if gelu else ("none", "")
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.packed, bias, kind, [], approximation
        )
        return out

    def forward(self, x: Tensor) -> Tensor:
        if self.packed is not None:
            return self.packed_forward(x)
        if not (torch.compiler.is_compiling() and x.device.type == "cpu"):
            return F.linear(x, self.weight, self.bias)
        dtype = x.dtype
        if torch.is_autocast_enabled("cpu"):  # which does not see through a Function
            dtype = torch.get_autocast_dtype("cpu")
        out: Tensor = _Affine.apply(x.to(dtype), self.weight.to(dtype), self.bias.to(dtype))
        return out
