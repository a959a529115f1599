"""STAR: scale-wise autoregression from text.

Ma et al. 2024, https://arxiv.org/abs/2406.10797, on VAR, https://arxiv.org/abs/2404.02905. All
codes of a scale are predicted at once from the picture that the scales before it make.

Dims: B batch, T codes over all scales, C code width, L text tokens, D width, H heads, d width of a
head, V entries of the codebook.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from gesso.config import Config as BaseConfig
from gesso.nn.attention import MASKED, CrossAttention, attend, mask_bias
from gesso.nn.checks import check_codes, check_pooled, check_text
from gesso.nn.init import normal_, xavier_, zero_
from gesso.nn.kv_cache import Cache
from gesso.nn.linear import Linear
from gesso.nn.mlp import Mlp
from gesso.nn.modulation import EPS
from gesso.nn.rope import grid_positions, rotary, rotate
from gesso.types import Cond, GessoError

SPAN = 64.0  # of normalised positions
SHARPEST = 100.0  # bound on the scale of attention logits


class Config(BaseConfig):
    """A demo size by default. Published: depth D, width 64 D, D heads, D = 16 or 30."""

    depth: int = Field(default=4, ge=1)
    hidden_size: int = Field(default=128, ge=4)
    num_heads: int = Field(default=2, ge=1)
    text_dim: int = Field(default=128, ge=1)  # width of the text tokens
    pooled_dim: int = Field(default=128, ge=1)  # width of the pooled text: the start token
    in_channels: int = Field(default=8, ge=1)  # C
    vocabulary: int = Field(default=512, ge=2)  # V
    scales: list[int] = Field(default=[1, 2, 3, 4, 6, 8])
    mlp_ratio: float = 4.0
    normalise_rope: bool = True  # every scale covers the same range of positions


class Attention(nn.Module):
    """Self-attention of normalised queries and keys with a learned sharpness in each head."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.mat_qkv = xavier_(Linear(dim, 3 * dim))  # its bias on keys decides nothing
        self.scale_mul = nn.Parameter(torch.full((num_heads, 1, 1), math.log(4.0)))
        self.proj = xavier_(Linear(dim, dim))

    def forward(
        self, x: Tensor, turn: Tensor, bias: Tensor | None, cache: Cache | None = None
    ) -> Tensor:
        """x [B, N, D], turn [2, N, d/2], bias [1, 1, N, M] -> [B, N, D]."""
        qkv = self.mat_qkv(x).unflatten(2, (3, self.num_heads, -1))  # [B, N, 3, H, d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 of [B, H, N, d]
        sharpness = self.scale_mul.clamp(max=math.log(SHARPEST)).exp()
        q = F.normalize(q.float(), dim=-1) * sharpness * q.shape[-1] ** 0.5  # `attend` divides
        q, k = rotate(q, turn).to(v.dtype), rotate(F.normalize(k.float(), dim=-1), turn).to(v.dtype)
        if cache is not None:
            k, v = cache.extend(self, k, v)
        return self.proj(attend(q, k, v, bias).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention over the scales so far, cross-attention to the text, MLP."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim = config.hidden_size
        self.attn = Attention(dim, config.num_heads)
        self.cross_attn = CrossAttention(dim, config.num_heads)
        self.ffn = Mlp(dim, int(dim * config.mlp_ratio), dim)

    def forward(
        self,
        x: Tensor,
        text: Tensor,
        turn: Tensor,
        bias: Tensor | None,
        text_bias: Tensor | None,
        cache: Cache | None,
    ) -> Tensor:
        """x [B, N, D], text [B, L, D] -> [B, N, D]."""
        x = x + self.attn(norm(x), turn, bias, cache)
        x = x + self.cross_attn(norm(x), text, text_bias)
        return x + self.ffn(norm(x))


def norm(x: Tensor) -> Tensor:
    """Layer norm without parameters."""
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


class STAR(nn.Module):
    """The network. See `Config` for its options."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, heads = config.hidden_size, config.num_heads
        if dim % heads or dim // heads % 4:
            raise GessoError(
                f"star: hidden_size {dim} over num_heads {heads} must leave a width divisible by 4:"
                " change one of them."
            )
        if config.scales != sorted(set(config.scales)) or config.scales[:1] != [1]:
            raise GessoError(f"star: scales {config.scales} must ascend from 1: change them.")
        self.config = config
        self.in_channels = config.in_channels
        self.start = normal_(nn.Linear(config.pooled_dim, dim))
        self.text_proj = xavier_(nn.Linear(config.text_dim, dim))
        self.word_embed = xavier_(nn.Linear(config.in_channels, dim))
        self.lvl_embed = nn.Embedding(len(config.scales), dim)
        nn.init.normal_(self.lvl_embed.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head = zero_(nn.Linear(dim, config.vocabulary))
        self.sampler: nn.Module | None = None  # of the last scales, `adapters.stable_sampler`

    def check(self, tokenizer: Any) -> None:
        """Raise a GessoError unless these are the scales and codes that a tokenizer has."""
        check_codes(tokenizer, self.config.vocabulary, self.config.in_channels, "star")
        found = list(getattr(tokenizer, "scales", []))
        if found != self.config.scales:
            has = f"has {found}" if found else "codes no scales"
            raise GessoError(
                f"star was made for a tokenizer of the scales {self.config.scales}, and this one"
                f" {has}: use its own tokenizer, or leave out backbone.scales and train it anew."
            )

    def groups(self, grid: tuple[int, int]) -> list[int]:
        """How many codes each step predicts: those of a scale.

        Raises:
            GessoError: the grid (h, w) is not the last scale.
        """
        side = self.config.scales[-1]
        if grid != (side, side):
            raise GessoError(
                f"This model of codes paints grids of {side}x{side}, not {grid[0]}x{grid[1]}: leave"
                " out height and width."
            )
        return [p * p for p in self.config.scales]

    def teach(self, codes: Tensor, cond: Cond, tokenizer: Any) -> Tensor:
        """Codes [B, T] to logits [B, T, V] of each from the scales before it."""
        inputs = tokenizer.inputs(codes) if codes.shape[1] > 1 else None
        return self(inputs, cond)

    def follow(self, codes: Tensor, cond: Cond, tokenizer: Any, cache: Cache) -> Tensor:
        """Codes [B, n] of the scales so far, all but the last in the cache, to logits [B, p^2, V]
        of the next one."""
        return self.head(norm(self.follow_features(codes, cond, tokenizer, cache)))

    def follow_features(self, codes: Tensor, cond: Cond, tokenizer: Any, cache: Cache) -> Tensor:
        """As `follow`, to what the next scale is predicted from, [B, p^2, D]."""
        inputs = None
        if codes.shape[1]:  # [B, n + p^2 - 1, C], of which the cache has seen n - 1
            inputs = tokenizer.inputs(codes)[:, cache.length - 1 :]
        return self.features(inputs, cond, cache)

    def forward(self, inputs: Tensor | None, cond: Cond, cache: Cache | None = None) -> Tensor:
        """Predict the codes of the first scales, or with a cache those of the next one.

        Args:
            inputs: [B, T_k - 1, C], what the tokenizer's `inputs` gives for the first k scales: the
                picture so far at scales 1..k-1, one after the other. None for scale 0 alone. With
                a cache: [B, p^2, C], those of the next scale only.
            cond: tokens [B, L, text_dim], pooled [B, pooled_dim]; mask [B, L] hides padding.
            cache: holds the scales before, and afterwards these, too; one a batch.

        Returns:
            Logits [B, T_k, V]; with a cache [B, p^2, V].

        Raises:
            GessoError: the condition or the number of inputs does not fit the model.
        """
        return self.head(norm(self.features(inputs, cond, cache)))

    def features(self, inputs: Tensor | None, cond: Cond, cache: Cache | None = None) -> Tensor:
        """What the codes are predicted from, [B, T_k, D]; for the arguments see `forward`."""
        tokens = check_text(cond.tokens, self.config.text_dim, "star")
        pooled = check_pooled(cond.pooled, self.config.pooled_dim, "star")
        done = 0 if cache is None else cache.length
        x = self._embed(inputs, pooled if done == 0 else None)  # [B, N, D]
        levels, turn = places(self.config, self._some(done, done + x.shape[1]), x.device)
        x = x + self.lvl_embed(levels).to(x.dtype)
        bias = None
        if cache is None:  # a code sees its own scale and those before
            seen = levels[None, :] <= levels[:, None]  # [N, N]
            bias = torch.where(seen, 0.0, MASKED).to(x.dtype)[None, None]
        text = self.text_proj(tokens.to(x.dtype))  # [B, L, D]
        text_bias = None if cond.mask is None else mask_bias(cond.mask, x.dtype)
        for block in self.blocks:
            x = block(x, text, turn, bias, text_bias, cache)
        return x

    def _embed(self, inputs: Tensor | None, pooled: Tensor | None) -> Tensor:
        """[B, N, D]: the start token, which stands at scale 0, and what follows it."""
        dtype = self.word_embed.weight.dtype
        start = [] if pooled is None else [self.start(pooled.to(dtype))[:, None]]  # [B, 1, D]
        follow = [] if inputs is None else [self.word_embed(inputs.to(dtype))]
        return torch.cat(start + follow, dim=1)

    def _some(self, start: int, end: int) -> range:
        """The scales whose codes are those from `start` to `end`."""
        scales = self.config.scales
        bounds = [0, *itertools.accumulate(p * p for p in scales)]
        if start not in bounds or end not in bounds:
            raise GessoError(
                f"star was given inputs for {end - start} codes after {start}, which no number of"
                f" its scales {scales} has: give whole scales."
            )
        return range(bounds.index(start), bounds.index(end))


def places(config: Config, some: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale [N] and rotation [2, N, d/2] of the codes of some scales, one after the other."""
    span = SPAN if config.normalise_rope else None
    sides = [config.scales[k] for k in some]
    positions = torch.cat([grid_positions(p, p, span) for p in sides])
    levels = torch.cat([torch.full((p * p,), k) for k, p in zip(some, sides, strict=True)])
    turn = rotary(positions, config.hidden_size // config.num_heads)
    return levels.to(device), turn.to(device)


def build(options: Config) -> STAR:
    """The network for validated options, freshly initialised."""
    return STAR(options)
