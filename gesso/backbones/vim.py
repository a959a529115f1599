"""VIM: a decoder-only transformer over the codes of a tokenizer, row by row.

ViT-VQGAN's second stage (Yu et al. 2022, https://arxiv.org/abs/2110.04627, sections 4 and 5.2): the
condition comes first, then each code is predicted from those before it. The condition is a class,
or a caption, whose tokens then stand before its pooled feature (Parti's task, arXiv 2206.10789,
with a decoder alone).

Dims: B batch, T = h w codes of a grid, N positions, L text tokens, D width, H heads, d width of a
head, V entries of the codebook.
"""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from gesso.config import Config as BaseConfig
from gesso.nn.attention import MASKED, SelfAttention, attend
from gesso.nn.checks import check_codes, check_heads, check_pooled, check_text
from gesso.nn.dropout import Dropout
from gesso.nn.init import normal_, xavier_, zero_
from gesso.nn.kv_cache import Cache
from gesso.nn.label import LabelEmbedder
from gesso.nn.mlp import Mlp
from gesso.types import Cond, GessoError


class Config(BaseConfig):
    """A demo size by default; `SIZES` has the published ones.

    Attributes:
        depth, hidden_size, num_heads, mlp_ratio: of the transformer.
        grid: codes of a picture, (h, w).
        vocabulary: V.
        in_channels: width of a code; only the tokenizer's is compared with it.
        num_classes: of class labels; None: the condition is text.
        text_dim, pooled_dim: widths of the text tokens and of the pooled text.
        dropout: after the embedding and after each branch of a block.
    """

    depth: int = Field(default=6, ge=1)
    hidden_size: int = Field(default=128, ge=4)
    num_heads: int = Field(default=2, ge=1)
    mlp_ratio: float = 4.0
    grid: tuple[int, int] = (8, 8)
    vocabulary: int = Field(default=512, ge=2)
    in_channels: int = Field(default=8, ge=1)
    num_classes: int | None = Field(default=None, ge=1)
    text_dim: int = Field(default=128, ge=1)
    pooled_dim: int = Field(default=128, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)


SIZES: dict[str, Config] = {
    name: Config(
        depth=depth,
        hidden_size=width,
        num_heads=16,
        grid=(32, 32),
        vocabulary=8192,
        in_channels=32,
        num_classes=1000,
    )
    for name, depth, width in (("base", 24, 1536), ("large", 36, 2048))
}
"""Table 2 of the paper, for ImageNet at 256 px in 32 x 32 codes."""


class CausalAttention(SelfAttention):
    """Self-attention that can remember the keys and values of what came before."""

    def forward(  # type: ignore[override]
        self, x: Tensor, bias: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """x [B, N, D], bias [B, 1, N, M], M with what the cache holds -> [B, N, D]."""
        qkv = self.qkv(x).unflatten(2, (3, self.num_heads, -1))  # [B, N, 3, H, d]
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # 3 of [B, H, N, d]
        if cache is not None:
            k, v = cache.extend(self, k, v)
        return self.proj(attend(q, k, v, bias).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention and MLP, each behind a norm (Radford et al. 2019)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim = config.hidden_size
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = CausalAttention(dim, config.num_heads)
        self.mlp = Mlp(dim, int(dim * config.mlp_ratio), dim)
        self.drop1, self.drop2 = Dropout(config.dropout), Dropout(config.dropout)

    def forward(self, x: Tensor, bias: Tensor | None, cache: Cache | None = None) -> Tensor:
        """x [B, N, D] -> [B, N, D]."""
        x = x + self.drop1(self.attn(self.norm1(x), bias, cache))
        return x + self.drop2(self.mlp(self.norm2(x)))


class VIM(nn.Module):
    """The network. See `Config` for its options and `SIZES` for the published ones."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, (h, w) = config.hidden_size, config.grid
        check_heads(dim, config.num_heads, "vim")
        self.config = config
        self.in_channels, self.num_classes = config.in_channels, config.num_classes
        std = dim**-0.5
        if config.num_classes is not None:
            self.label = LabelEmbedder(config.num_classes, dim, std, "vim")
        else:
            self.text_proj = xavier_(nn.Linear(config.text_dim, dim))
            self.start = normal_(nn.Linear(config.pooled_dim, dim), std)
        self.code = nn.Embedding(config.vocabulary, dim)
        self.row, self.column = nn.Embedding(h, dim), nn.Embedding(w, dim)
        for table in (self.code, self.row, self.column):
            nn.init.normal_(table.weight, std=std)
        self.drop = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(dim)
        self.head = zero_(nn.Linear(dim, config.vocabulary))

    def check(self, tokenizer: Any) -> None:
        """Raise a GessoError unless a tokenizer has as many codes, as wide."""
        check_codes(tokenizer, self.config.vocabulary, self.config.in_channels, "vim")
        if hasattr(tokenizer, "scales"):
            raise GessoError(
                "vim writes one grid of codes, and this tokenizer has several scales: take the"
                " backbone star, or the image encoder vit_vqgan."
            )

    def groups(self, grid: tuple[int, int]) -> list[int]:
        """How many codes each step predicts: one.

        Raises:
            GessoError: the grid (h, w) is not the one that the positions are for.
        """
        if tuple(grid) != tuple(self.config.grid):
            h, w = self.config.grid
            raise GessoError(
                f"This model of codes has learnt positions for a grid of {h}x{w}, and pictures of"
                f" this size have {grid[0]}x{grid[1]}: take the size that it was trained on, or"
                " change backbone.grid."
            )
        return [1] * (grid[0] * grid[1])

    def teach(self, codes: Tensor, cond: Cond, tokenizer: Any) -> Tensor:
        """Codes [B, T] to logits [B, T, V] of each from those before it."""
        h, w = self.config.grid
        if codes.shape[1] != h * w:
            raise GessoError(
                f"vim takes {h * w} codes a picture, a grid of {h}x{w}, and this batch has"
                f" {codes.shape[1]}: set backbone.grid to the pictures' sides over the tokenizer's"
                " patch."
            )
        return self(codes[:, :-1], cond)

    def follow(self, codes: Tensor, cond: Cond, tokenizer: Any, cache: Cache) -> Tensor:
        """Codes [B, n] so far, all but the last in the cache, to logits [B, 1, V] of the next."""
        return self(codes, cond, cache)[:, -1:]

    def forward(self, codes: Tensor, cond: Cond, cache: Cache | None = None) -> Tensor:
        """Predict every code up to the one that follows the last that is given.

        Args:
            codes: [B, n] int64, n < T, in raster order.
            cond: label [B]; or tokens [B, L, text_dim], pooled [B, pooled_dim] and mask [B, L].
            cache: holds all codes but the last, and the condition unless n is 0.

        Returns:
            Logits [B, n + 1, V]; with a cache [B, 1, V].

        Raises:
            GessoError: the condition does not fit the model.
        """
        prefix, mask = self._condition(cond)  # [B, L + 1, D], [B, L + 1]
        n, lead = codes.shape[1], prefix.shape[1]
        begins = cache is None or n == 0
        first = 0 if begins else n - 1  # code that is read first
        place = torch.arange(first, n, device=codes.device)
        at = self.row(place // self.config.grid[1]) + self.column(place % self.config.grid[1])
        x = self.code(codes[:, first:]) + at  # [B, n - first, D]
        if begins:
            x = torch.cat([prefix.to(x.dtype), x], dim=1)
        bias = _causal(mask, lead + n, x.shape[1], x.dtype)
        x = self.drop(x)
        for block in self.blocks:
            x = block(x, bias, cache)
        return self.head(self.norm(x[:, lead - 1 :] if begins else x))

    def _condition(self, cond: Cond) -> tuple[Tensor, Tensor]:
        """What stands before the codes, [B, M, D], and which of it is real, [B, M]."""
        if self.config.num_classes is not None:
            if cond.label is None:
                raise GessoError(
                    "vim with num_classes takes class labels, and the condition has none: use the"
                    " text encoder `classes`, or set backbone.num_classes to null."
                )
            first = self.label(cond.label)[:, None]  # [B, 1, D]
            return first, first.new_ones(first.shape[:2], dtype=torch.bool)
        tokens = check_text(cond.tokens, self.config.text_dim, "vim")
        pooled = check_pooled(cond.pooled, self.config.pooled_dim, "vim")
        dtype = self.text_proj.weight.dtype
        text, start = self.text_proj(tokens.to(dtype)), self.start(pooled.to(dtype))[:, None]
        mask = cond.mask
        if mask is None:
            mask = torch.ones(text.shape[:2], dtype=torch.bool, device=text.device)
        real = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)  # [B, L + 1]
        return torch.cat([text, start], dim=1), real


def _causal(mask: Tensor, total: int, queries: int, dtype: torch.dtype) -> Tensor:
    """What is added to the logits of the last positions, [B, 1, queries, total].

    Args:
        mask: [B, M], which of the condition's tokens are real; they see each other.
        total: M and the codes.
        queries: positions that look back.
    """
    seen = torch.ones(queries, total, dtype=torch.bool, device=mask.device)
    seen = seen.tril(total - queries)
    seen[:, : mask.shape[1]] = True
    seen = seen.repeat(len(mask), 1, 1)  # [B, queries, total]
    seen[:, :, : mask.shape[1]] &= mask[:, None]
    return torch.where(seen, 0.0, MASKED).to(dtype)[:, None]


def build(options: Config) -> VIM:
    """The network for validated options, freshly initialised."""
    return VIM(options)
