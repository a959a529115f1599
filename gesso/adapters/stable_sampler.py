"""Causal-driven stable sampling: the codes of the last scales in rounds, each given those before.

Ma et al. 2024 (STAR), https://arxiv.org/abs/2406.10797, section 3.4, and its code. A scale's codes
are drawn at once by the base, each without knowing what its neighbours became. Here a few blocks
read the base's features of the scale and the codes that are fixed already, and predict the rest;
rounds of growing size fix one part after the other. The base stays as it is.

Dims: B pictures, n codes of a scale, D width, C code width, V entries of the codebook.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from gesso import config
from gesso.backbones.star import STAR, Attention, norm, places
from gesso.nn.attention import MASKED
from gesso.nn.choose import Chosen
from gesso.nn.init import normal_, xavier_, zero_
from gesso.nn.linear import Linear
from gesso.nn.mlp import Mlp
from gesso.types import GessoError

STAYS = True  # part of the model that is saved, see `gesso.adapters`
RANDOM = 5  # so many rounds fix codes anywhere, later ones the surest


class Config(config.Config):
    """Options of the sampler.

    Attributes:
        depth: blocks.
        scales: how many of the last scales it draws.
        rounds: in which it draws a scale.
    """

    depth: int = Field(default=3, ge=1)
    scales: int = Field(default=1, ge=1)
    rounds: int = Field(default=8, ge=1)


class Block(nn.Module):
    """Self-attention, MLP."""

    def __init__(self, dim: int, num_heads: int, hidden: int) -> None:
        super().__init__()
        self.attn = Attention(dim, num_heads)
        self.ffn = Mlp(dim, hidden, dim)

    def forward(self, x: Tensor, turn: Tensor, bias: Tensor) -> Tensor:
        """x [B, N, D] -> [B, N, D]."""
        x = x + self.attn(norm(x), turn, bias)
        return x + self.ffn(norm(x))


class StableSampler(nn.Module):
    """What is attached to a `STAR` as its `sampler`.

    Attributes:
        drawn: the scales that it draws, by number.
    """

    def __init__(self, options: Config, star: STAR) -> None:
        super().__init__()
        of = self.star_config = star.config
        dim = of.hidden_size
        self.options = options
        self.drawn = range(len(of.scales) - options.scales, len(of.scales))
        self.text = normal_(nn.Linear(of.pooled_dim, dim))
        self.code_embed = xavier_(nn.Linear(of.in_channels, dim))
        self.lvl_embed = nn.Embedding(len(of.scales), dim)
        nn.init.normal_(self.lvl_embed.weight, std=0.02)
        self.join = xavier_(Linear(2 * dim, dim))
        self.blocks = nn.ModuleList(
            Block(dim, of.num_heads, int(dim * of.mlp_ratio)) for _ in range(options.depth)
        )
        self.head = zero_(nn.Linear(dim, of.vocabulary))

    def forward(
        self, features: Tensor, entries: Tensor, pooled: Tensor, some: Sequence[int]
    ) -> Tensor:
        """Predict the codes of some scales.

        Args:
            features: [B, n, D], the base's, of the scales one after the other.
            entries: [B, n, C] of the codes that are fixed, zero for the others.
            pooled: [B, P], pooled text.
            some: the scales' numbers. A code sees its own scale and the text.

        Returns:
            Logits [B, n, V].
        """
        levels, turn = places(self.star_config, some, features.device)  # [n], [2, n, d/2]
        text = self.text(pooled.to(features.dtype))[:, None]  # [B, 1, D]
        own = self.code_embed(entries.to(features.dtype)) + self.lvl_embed(levels)
        x = torch.cat([torch.cat([text, text], 2), torch.cat([own, features], 2)], 1)
        x = self.join(x)  # [B, 1 + n, D]
        still = turn.new_tensor([1.0, 0.0])[:, None, None].expand(2, 1, turn.shape[2])
        turn = torch.cat([still, turn], dim=1)  # [2, 1 + n, d/2]; the text stands in the corner
        seen = nn.functional.pad(levels[:, None] == levels, (1, 0, 1, 0), value=True)
        bias = torch.where(seen, 0.0, MASKED).to(x.dtype)[None, None]  # [1, 1, 1 + n, 1 + n]
        for block in self.blocks:
            x = block(x, turn, bias)
        return self.head(norm(x[:, 1:]))

    def draw(
        self,
        features: Tensor,
        pooled: Tensor,
        tokenizer: Any,
        k: int,
        pick: Callable[[Tensor], Chosen],
        generators: Sequence[torch.Generator],
    ) -> Tensor:
        """Draw the codes of scale k in rounds.

        Args:
            features: [B, n, D], or [2B, n, D] with the unconditional ones last.
            pooled: as many rows.
            tokenizer: whose codes they are.
            k: the scale.
            pick: logits of as many rows to codes of B pictures.
            generators: B of them, for the places of the first rounds.

        Returns:
            [B, n] int64.
        """
        n = features.shape[1]
        codes = torch.zeros(len(generators), n, dtype=torch.long, device=features.device)
        fixed = torch.zeros_like(codes, dtype=torch.bool)
        for i, count in enumerate(counts(n, self.options.rounds)):
            entries = tokenizer.entries(codes) * fixed[..., None]
            entries = entries.repeat(len(features) // len(codes), 1, 1)
            new, surety = pick(self(features, entries, pooled, [k]))
            if i < RANDOM:
                rows = [torch.rand(n, generator=g, device=g.device) for g in generators]
                surety = torch.stack(rows).to(codes.device)
            where = surety.masked_fill(fixed, -1.0).topk(count, dim=1).indices  # [B, count]
            codes = codes.scatter(1, where, new.gather(1, where))
            fixed = fixed.scatter(1, where, True)
        return codes


def counts(n: int, rounds: int) -> list[int]:
    """How many of n codes each round fixes: in proportion to arccos from 1 to 0, few at first.

    Fewer rounds than asked for where codes run out.
    """
    if rounds == 1:
        return [n]
    weights = [math.acos(1 - i / (rounds - 1)) for i in range(rounds)]
    found: list[int] = []
    for weight in weights[:-1]:
        found.append(min(max(1, round(n * weight / sum(weights))), n - sum(found)))
    return [count for count in [*found, n - sum(found)] if count]


def attach(options: Config, backbone: nn.Module) -> None:
    """Give a STAR a stable sampler.

    Raises:
        GessoError: another backbone, or more scales than it has.
    """
    if not isinstance(backbone, STAR):
        raise GessoError("The adapter stable_sampler is for the backbone star: name that one.")
    if options.scales > len(backbone.config.scales):
        raise GessoError(
            f"stable_sampler is to draw {options.scales} scales and star has "
            f"{len(backbone.config.scales)}: lower adapter.scales."
        )
    backbone.sampler = StableSampler(options, backbone)
