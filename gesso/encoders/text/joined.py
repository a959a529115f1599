"""Several text encoders as one: Stable Diffusion 3's two CLIPs and T5, or any others by name.

text_encoder:
  name: joined
  encoders:
    - [{name: clip, path: CLIP_L}, {name: clip, path: CLIP_G}]
    - [{name: t5, path: T5_XXL, max_tokens: 256, padding: max}]

Encoders of one inner list read the same places: their features stand side by side. The lists follow
each other along the sequence, and narrower ones are filled up with zeros. Pooled features of those
that pool stand side by side. Every part has a fixed length, and its padding is read like words
(Esser et al. 2024, https://arxiv.org/abs/2403.03206, section 4).

Each encoder may be left out on its own (`mixed`): so a model learns to do with any of them.

Dims: B prompts, E encoders, L tokens in all, D width, P width of all pooled features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from gesso import config
from gesso.config import Spec
from gesso.types import Cond, GessoError


class Config(config.Config):
    """Options.

    Attributes:
        encoders: lists of encoders, see above.
    """

    encoders: list[list[Spec]] = Field(min_length=1)


@dataclass(frozen=True)
class Place:
    """Where the features of one encoder stand: in L, in D and in P (None: it does not pool)."""

    tokens: slice
    width: slice
    pooled: slice | None


class JoinedTextEncoder(nn.Module):
    """Prompts -> features of all; the contract is `gesso.encoders.text.TextEncoder`.

    Args:
        groups: encoders, all of them trained or all of them frozen.

    Attributes:
        places: where each encoder's features stand, in the order of the lists.
        length: L.
        max_tokens: of the encoder that reads most.
        pooled_dim: P, None if nothing pools.

    Raises:
        GessoError: frozen and trained ones, or ones side by side of different length.
    """

    def __init__(self, groups: list[list[Any]]) -> None:
        super().__init__()
        parts = [part for group in groups for part in group]
        kinds = {part.trainable for part in parts}
        if len(kinds) != 1:
            raise GessoError(
                "The text encoder `joined` has frozen and trained encoders: give one kind only."
            )
        for group in groups:
            lengths = [part.max_tokens for part in group]
            if len(set(lengths)) != 1:
                raise GessoError(
                    f"Text encoders that stand side by side have max_tokens {lengths}: make them"
                    " equal, or put them into lists of their own."
                )
        self.parts = nn.ModuleList(parts)
        self.trainable = kinds.pop()
        self.dim = max(sum(part.dim for part in group) for group in groups)
        self.max_tokens = max(part.max_tokens for part in parts)
        self.length = sum(group[0].max_tokens for group in groups)
        self.places = list(_places(groups))
        self.pooled_dim = sum(getattr(part, "pooled_dim", 0) for part in parts) or None

    def prepare(self, prompts: list[str]) -> Cond:
        """Prompts to `tokens` [B, L, D] and `pooled` [B, P], or to `ids` [B, sum of lengths] of
        trained encoders; the `mask` [B, L] is True everywhere."""
        found = [part.prepare(prompts) for part in self.parts]  # type: ignore[operator]
        if self.trainable:
            rows = [_lengthen(c.ids, n) for c, n in zip(found, self._lengths(), strict=True)]
            ids = torch.cat(rows, dim=1)
            return Cond(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool))
        return self._join(found)

    def forward(self, cond: Cond) -> Cond:
        """Fill in `tokens` [B, L, D] and `pooled` [B, P] of trained encoders.

        The mask goes, as it masks nothing and attention is faster without one.
        """
        if cond.tokens is not None or cond.ids is None:
            return cond.replace(mask=None)
        found = []
        for part, ids in zip(self.parts, cond.ids.split(self._lengths(), dim=1), strict=True):
            found.append(part(Cond(ids=ids, mask=torch.ones_like(ids, dtype=torch.bool))))
        joined = self._join(found)
        return cond.replace(ids=None, tokens=joined.tokens, pooled=joined.pooled, mask=None)

    def mixed(self, cond: Cond, other: Cond, drop: Tensor) -> Cond:
        """Features of `other` where `drop` [B, E] bool is True, of `cond` elsewhere."""
        assert cond.tokens is not None and other.tokens is not None
        tokens, pooled = cond.tokens.clone(), None if cond.pooled is None else cond.pooled.clone()
        for place, gone in zip(self.places, drop.unbind(1), strict=True):  # gone [B]
            own = (slice(None), place.tokens, place.width)
            tokens[own] = torch.where(gone[:, None, None], other.tokens[own], tokens[own])
            if place.pooled is not None and pooled is not None and other.pooled is not None:
                at = (slice(None), place.pooled)
                pooled[at] = torch.where(gone[:, None], other.pooled[at], pooled[at])
        return cond.replace(tokens=tokens, pooled=pooled)

    def dropped(self, prompt: str) -> str:
        """What even the encoder that reads most loses of the prompt."""
        return min((str(part.dropped(prompt)) for part in self.parts), key=len)  # type: ignore[operator]

    def fingerprint(self) -> str:
        """16 hex digits over those of the encoders, in their places."""
        lines = ["joined"]
        for place, part in zip(self.places, self.parts, strict=True):
            lines.append(f"{place} {part.fingerprint()}")  # type: ignore[operator]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

    def _lengths(self) -> list[int]:
        return [int(part.max_tokens) for part in self.parts]  # type: ignore[arg-type]

    def _join(self, found: list[Cond]) -> Cond:
        """The features of all encoders in their places."""
        first = found[0].tokens
        assert first is not None
        tokens = first.new_zeros(len(first), self.length, self.dim)  # [B, L, D]
        pooled = first.new_zeros(len(first), self.pooled_dim or 0)  # [B, P]
        for place, cond in zip(self.places, found, strict=True):
            length = place.tokens.stop - place.tokens.start
            tokens[:, place.tokens, place.width] = _lengthen(cond.tokens, length).to(tokens.device)
            if place.pooled is not None:
                assert cond.pooled is not None
                pooled[:, place.pooled] = cond.pooled.to(pooled.device)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return Cond(tokens=tokens, mask=mask, pooled=pooled if self.pooled_dim else None)


def _places(groups: list[list[Any]]) -> Iterator[Place]:
    """Lists one after the other along the sequence, their encoders one beside the other."""
    start = pooled = 0
    for group in groups:
        tokens, width = slice(start, start + group[0].max_tokens), 0
        for part in group:
            pools = getattr(part, "pooled_dim", None) or 0
            own = slice(pooled, pooled + pools) if pools else None
            yield Place(tokens, slice(width, width + part.dim), own)
            width, pooled = width + part.dim, pooled + pools
        start = tokens.stop


def _lengthen(x: Tensor | None, length: int) -> Tensor:
    """[B, n] or [B, n, D] -> [B, length] or [B, length, D], filled up with zeros."""
    assert x is not None
    return F.pad(x, (0, 0) * (x.dim() - 2) + (0, length - x.shape[1]))


def build(options: Config) -> JoinedTextEncoder:
    """Build all encoders.

    Raises:
        GessoError: see `JoinedTextEncoder`, and what the encoders themselves refuse.
    """
    return JoinedTextEncoder(
        [[config.build("encoders.text", spec) for spec in group] for group in options.encoders]
    )
