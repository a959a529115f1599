"""Attention, and the choice of the kernel that computes it.

Dims: B batch, H heads, N queries, M keys, d width of a head, dim = H d.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gesso.nn.init import xavier_, zero_
from gesso.nn.linear import Linear

MASKED = -10000.0  # finite, so that a row with no real token averages its padding and is not NaN

# Largest N M per head for which two products and a softmax train faster than the fused kernel on a
# CPU: the fused backward is slow there, 4 times at N = M = 64 in bfloat16. The table behind it is
# in docs/performance.md; it stops short of where the explicit form's memory would hurt.
EXPLICIT_LIMIT = {torch.bfloat16: 256 * 256, torch.float32: 64 * 64}

# H N M between which one picture at a time is faster in bfloat16 on a CPU without gradients: above,
# its logits (16 MB at the limit) leave the cache; below, a call a picture costs more than it saves.
PICTURE_LIMITS = (2**16, 2**22)

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of a context, [B, H, M, d] each."""


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, by the fastest of three kernels.

    Args:
        q: [B, H, N, d].
        k, v: [B, H, M, d].
        bias: [B, 1, 1, M] added to the logits, see `mask_bias`.

    Returns:
        [B, H, N, d].
    """
    if q.device.type == "cpu":
        pairs = q.shape[2] * k.shape[2]
        if torch.is_grad_enabled():
            if pairs <= EXPLICIT_LIMIT.get(q.dtype, 0):
                return explicit_attention(q, k, v, bias)
        elif q.dtype == torch.bfloat16 and _by_picture(q.shape[1] * pairs):
            return attention_by_picture(q, k, v, bias)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def _by_picture(size: int) -> bool:
    return PICTURE_LIMITS[0] <= size <= PICTURE_LIMITS[1]


def explicit_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """`attend` as two batched matrix products around a softmax; needs N M memory per head."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)  # [B, H, N, M]
    if bias is not None:
        logits = logits + bias
    return logits.softmax(dim=-1).to(v.dtype) @ v


def attention_by_picture(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """`attend` without gradients, one picture after another, whose logits stay in the cache.

    Logits and softmax are float32, as in the fused kernel: rounded to bfloat16 they are off by
    percents where attention is sharp.
    """
    b, h, n, d = q.shape
    out = q.new_empty(b, n, h, d)
    logits = q.new_empty(h, n, k.shape[2], dtype=torch.float32)
    for i in range(b):
        offset, beta = (logits, 0) if bias is None else (bias[i].float(), 1)
        keys = k[i].float().transpose(1, 2)  # [H, d, M]
        torch.baddbmm(offset, q[i].float(), keys, beta=beta, alpha=d**-0.5, out=logits)
        torch.softmax(logits, dim=-1, out=logits)
        out[i] = torch.bmm(logits.to(v.dtype), v[i]).transpose(0, 1)  # [N, H, d]
    return out.transpose(1, 2)  # [B, H, N, d]


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """[B, M] bool, True for real keys -> [B, 1, 1, M] to add to attention logits."""
    return torch.where(mask[:, None, None, :], 0.0, MASKED).to(dtype)


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection: [B, N, dim] -> [B, N, dim]."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = xavier_(Linear(dim, 3 * dim))
        self.proj = xavier_(Linear(dim, dim))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [B, N, dim], bias [B, 1, 1, N] or None -> [B, N, dim]."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))  # [B, N, 3, H, d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 of [B, H, N, d]
        return self.proj(attend(q, k, v, bias).transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention from x to a context. Its output projection starts at zero (PixArt, 2.3)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_linear = xavier_(Linear(dim, dim))
        self.kv_linear = xavier_(Linear(dim, 2 * dim))
        self.proj = zero_(Linear(dim, dim))

    def keys_values(self, context: Tensor) -> KeysValues:
        """What `forward` makes of a context [B, M, dim], to be made once and used many times."""
        kv = self.kv_linear(context).unflatten(2, (2, self.num_heads, -1))  # [B, M, 2, H, d]
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)  # 2 of [B, H, M, d]
        return k, v

    def forward(
        self, x: Tensor, context: Tensor | KeysValues, bias: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            x: [B, N, dim].
            context: [B, M, dim], or its `keys_values`.
            bias: [B, 1, 1, M] or None.

        Returns:
            [B, N, dim].
        """
        q = self.q_linear(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)  # [B, H, N, d]
        k, v = self.keys_values(context) if isinstance(context, Tensor) else context
        return self.proj(attend(q, k, v, bias).transpose(1, 2).flatten(2))
