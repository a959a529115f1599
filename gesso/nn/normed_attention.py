"""Attention with norms of queries and keys over all heads, without biases (MicroDiT, Next-DiT).

Dims: B batch, H heads, N queries, L keys, d width of a head, inner = H d.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gesso.nn.attention import KeysValues, attend
from gesso.nn.init import bare
from gesso.nn.modulation import EPS


def split_heads(x: Tensor, head_dim: int, norm: bool) -> Tensor:
    """[B, N, H d] -> [B, H, N, d], normed before over all heads if asked."""
    if norm:
        x = F.layer_norm(x, x.shape[-1:], eps=EPS).to(x.dtype)
    return x.unflatten(2, (-1, head_dim)).transpose(1, 2)


class NormedSelfAttention(nn.Module):
    """[B, N, dim] -> [B, N, dim].

    Args:
        dim: width outside.
        inner: width of queries, keys and values.
        head_dim: d.
        std, out_std: initial standard deviations, of the output projection and of the others.
    """

    def __init__(self, dim: int, inner: int, head_dim: int, std: float, out_std: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.qkv = bare(dim, 3 * inner, std)
        self.proj = bare(inner, dim, out_std)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x [B, N, dim], bias [B, 1, 1, N] or None -> [B, N, dim]."""
        parts = self.qkv(x).chunk(3, dim=2)  # 3 of [B, N, inner]
        q, k, v = (split_heads(p, self.head_dim, i < 2) for i, p in enumerate(parts))
        return self.proj(attend(q, k, v, bias).transpose(1, 2).flatten(2))


class NormedCrossAttention(nn.Module):
    """From x [B, N, dim] to a context [B, L, dim]. Arguments as above, inner is dim."""

    def __init__(self, dim: int, head_dim: int, std: float, out_std: float) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_linear = bare(dim, dim, std)
        self.kv_linear = bare(dim, 2 * dim, std)
        self.proj = bare(dim, dim, out_std)

    def keys_values(self, context: Tensor) -> KeysValues:
        """What `forward` makes of a context, to be made once and used many times."""
        k, v = self.kv_linear(context).chunk(2, dim=2)  # 2 of [B, L, dim]
        return split_heads(k, self.head_dim, True), split_heads(v, self.head_dim, False)

    def forward(
        self, x: Tensor, context: Tensor | KeysValues, bias: Tensor | None = None
    ) -> Tensor:
        """x [B, N, dim], context [B, L, dim] or its `keys_values` -> [B, N, dim]."""
        q = split_heads(self.q_linear(x), self.head_dim, True)
        k, v = self.keys_values(context) if isinstance(context, Tensor) else context
        return self.proj(attend(q, k, v, bias).transpose(1, 2).flatten(2))
