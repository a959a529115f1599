"""Mixture of experts in which the experts choose their tokens.

Zhou et al. 2022, https://arxiv.org/abs/2202.09368. Every expert takes the same number of tokens of
every picture, so there is nothing to balance: a token may be taken by several experts, or by none.

Dims: B batch, N tokens, D width, F hidden width, E experts, k tokens that each expert takes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gesso.types import GessoError


class ExpertChoice(nn.Module):
    """[B, N, D] -> [B, N, D]: the sum of what the experts that took a token make of it.

    With p = softmax over the experts of a linear map of the token, expert e takes the
    k = int(capacity N / E) tokens of a picture with the largest p_e, and adds p_e E_e(x) to them
    (eq. 1-3). An expert is two matrices around a GELU, without biases.

    Args:
        dim: D.
        hidden: F.
        experts: E.
        capacity: mean number of experts for a token.
        std, out_std: initial standard deviation of the first matrices and the router, and of the
            second ones.
    """

    def __init__(
        self, dim: int, hidden: int, experts: int, capacity: float, std: float, out_std: float
    ) -> None:
        super().__init__()
        if not 0 < capacity <= experts:
            raise GessoError(
                f"An expert capacity of {capacity} is not above 0 and at most {experts}, the number"
                " of experts: try 2."
            )
        self.capacity = capacity
        self.gate = nn.Linear(dim, experts, bias=False)
        self.w1 = nn.Parameter(torch.empty(experts, dim, hidden))
        self.w2 = nn.Parameter(torch.empty(experts, hidden, dim))
        nn.init.normal_(self.gate.weight, std=std)
        nn.init.normal_(self.w1, std=std)
        nn.init.normal_(self.w2, std=out_std)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        experts = len(self.w1)
        k = max(1, int(self.capacity * n / experts))
        logits = self.gate(x)
        precise = torch.promote_types(logits.dtype, torch.float32)  # bfloat16 would tie many
        scores = logits.softmax(dim=-1, dtype=precise)  # [B, N, E]
        p, taken = scores.transpose(1, 2).topk(k, dim=-1)  # 2 of [B, E, k]
        picture = torch.arange(b, device=x.device)[:, None, None]
        rows = (picture * n + taken).transpose(0, 1).reshape(experts, b * k)  # [E, B k]
        weight = p.transpose(0, 1).reshape(experts, b * k, 1)
        chosen = x.reshape(b * n, d)[rows]  # [E, B k, D]
        out = torch.bmm(F.gelu(torch.bmm(chosen, self.w1)), self.w2)  # [E, B k, D]
        total = out.new_zeros(b * n, d)
        total = total.index_add(0, rows.flatten(), (weight.to(out.dtype) * out).flatten(0, 1))
        return total.view(b, n, d)
