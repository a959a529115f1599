"""Adapters of fused projections (qkv, kv) and of their parts (q, k, v): one into the other.

A fused weight is its parts' rows on top of each other. So a fused adapter splits into one per part
that has the rows of its output factor and shares the input factor; parts join into a fused one
whose output factor is block-diagonal, or, where they share the input factor, which is what a
splitting leaves, into the one that was split. Both change the same weights by the same amounts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce

import torch
from torch import Tensor

from gesso.nn.low_rank import Layer
from gesso.types import GessoError

# Factors with the rows of the weight, and those that parts may share.
_ROWS = {"lora": ("up",), "loha": ("w1_a", "w2_a"), "lokr": ("w1", "w1_a")}


def split(layer: Layer, count: int) -> list[Layer]:
    """One adapter for each of `count` row blocks of the layer's weight.

    Raises:
        GessoError: the adapter does not come apart by rows.
    """
    rows = [name for name in _ROWS[layer.kind] if name in layer.factors]
    if any(layer.factors[name].shape[0] % count for name in rows):
        raise GessoError(
            f"The LoKr of {layer.target} does not split into {count} projections: its first factor "
            f"has {layer.factors[rows[0]].shape[0]} rows; keep a format with fused projections."
        )
    magnitudes: list[Tensor | None] = [None] * count
    if layer.magnitude is not None:
        if layer.magnitude.shape[0] == 1:
            raise GessoError(
                f"The DoRA of {layer.target} has one norm per input over all of its rows and does "
                "not split into projections: keep a format with fused projections."
            )
        magnitudes = [part.contiguous() for part in layer.magnitude.chunk(count)]
    parts = []
    for i in range(count):
        cut = {name: layer.factors[name].chunk(count)[i].contiguous() for name in rows}
        part = replace(
            layer, factors={**layer.factors, **cut}, magnitude=magnitudes[i], part=(i, count)
        )
        parts.append(_without_idle_ranks(part) if layer.kind == "lora" else part)
    if all(part.magnitude is None for part in parts):
        moving = [p for p in parts if any(p.factors[name].any() for name in rows)]
        return moving or parts
    return parts


def fuse(parts: Sequence[Layer], count: int) -> Layer:
    """One adapter for the whole weight.

    Args:
        parts: of one target, one or more of its `count` row blocks.

    Raises:
        GessoError: the parts are of different kinds, or there is no fused adapter of their kind.
    """
    target, kind = parts[0].target, parts[0].kind
    present = {part.part[0]: part for part in parts}
    if any(part.kind != kind or part.part[1] != count for part in parts):
        raise GessoError(f"The projections of {target} have adapters of several kinds: split ones.")
    decomposed = [part.magnitude is not None for part in parts]
    if any(decomposed) and (not all(decomposed) or len(present) < count):
        raise GessoError(
            f"Not every projection of {target} has a DoRA: a fused one needs all {count}; keep a "
            "format with split projections."
        )
    ordered = [present[i] for i in sorted(present)]
    if any(p.magnitude is not None and p.magnitude.shape[0] == 1 for p in ordered):
        raise GessoError(
            f"The DoRA of {target} has one norm per input for each projection and cannot be fused: "
            "keep a format with split projections."
        )
    magnitude = (
        torch.cat([p.magnitude for p in ordered if p.magnitude is not None])
        if any(decomposed)
        else None
    )
    shared = len(present) == count and _shared(ordered)
    if kind == "lokr" and not shared:
        raise GessoError(
            f"The projections of {target} have LoKrs of their own, which are no fused LoKr: keep a "
            "format with split projections."
        )
    if shared:
        rows = [name for name in _ROWS[kind] if name in ordered[0].factors]
        joined = {name: torch.cat([p.factors[name] for p in ordered]) for name in rows}
        factors = {**ordered[0].factors, **joined}
        return replace(ordered[0], factors=factors, magnitude=magnitude, part=(0, 1))
    return _block_diagonal(present, count, magnitude)


def _shared(parts: Sequence[Layer]) -> bool:
    """Whether the parts differ in nothing but their rows."""
    one = parts[0]
    for part in parts[1:]:
        if part.scale != one.scale or part.factors.keys() != one.factors.keys():
            return False
        for name, value in one.factors.items():
            if name not in _ROWS[one.kind] and not torch.equal(value, part.factors[name]):
                return False
    return True


def _block_diagonal(present: dict[int, Layer], count: int, magnitude: Tensor | None) -> Layer:
    """[B1 0; 0 B2] [A1; A2], with zero rows for absent parts; equal scales stay apart."""
    parts = [present[i] for i in sorted(present)]
    rank = sum(p.rank for p in parts)
    same = len({p.scale for p in parts}) == 1
    names = [("up", "down")] if parts[0].kind == "lora" else [("w1_a", "w1_b"), ("w2_a", "w2_b")]
    factors = {}
    for number, (out, inner) in enumerate(names):
        size = parts[0].factors[out].shape[0]
        blocks = []
        for part in parts:
            block = part.factors[out]
            if not same and number == 0:
                block = block.float() * part.scale
            blocks.append(block)
        dtype = reduce(torch.promote_types, [block.dtype for block in blocks])
        joined = torch.zeros(count * size, rank, dtype=dtype)
        column = 0
        for i, block in zip(sorted(present), blocks, strict=True):
            joined[i * size : (i + 1) * size, column : column + block.shape[1]] = block
            column += block.shape[1]
        factors[out] = joined
        factors[inner] = torch.cat([p.factors[inner] for p in parts])
    # s = alpha / rank is kept: the rank has grown.
    alpha = parts[0].scale * rank if same and parts[0].scale != 1 else None
    return Layer(parts[0].target, parts[0].kind, factors, rank, alpha, magnitude=magnitude)


def _without_idle_ranks(layer: Layer) -> Layer:
    """Without the ranks that do nothing for this part: the zero blocks that `fuse` made."""
    up, down = layer.factors["up"], layer.factors["down"]
    used = up.flatten(1).any(dim=0)
    if "mid" in layer.factors or used.all() or not used.any():
        return layer
    rank = int(used.sum())
    alpha = None if layer.alpha is None else layer.scale * rank
    factors = {"up": up[:, used].contiguous(), "down": down[used].contiguous()}
    return replace(layer, factors=factors, rank=rank, alpha=alpha, rank_stabilised=False)
