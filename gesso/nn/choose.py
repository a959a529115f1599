"""Drawing codes from logits, each picture's from a generator of its own.

Dims: B pictures, N codes, V entries of the codebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Chosen(NamedTuple):
    """Codes that were drawn.

    Attributes:
        codes: [B, N] int64.
        shares: [B, N], the probability that each had among those that were drawn from.
    """

    codes: Tensor
    shares: Tensor


def choose(
    logits: Tensor,
    generators: Sequence[torch.Generator],
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Chosen:
    """Draw a code from each distribution.

    Drawn by Gumbel's trick, argmax of log p - log(-log u): what a picture draws depends on its
    generator alone, and a rounding error of the logits changes a code only where two nearly tie.

    Args:
        logits: [B, N, V].
        generators: B of them; each is advanced by N V numbers, with temperature 0 by none.
        temperature: divides the logits; 0 takes the likeliest code.
        top_k, top_p: see `keep`.
    """
    if temperature == 0:
        codes = logits.argmax(dim=-1)
        return Chosen(codes, _shares(logits.float(), codes))
    kept = keep(logits.float() / temperature, top_k, top_p)
    shape = tuple(logits.shape[1:])
    rows = [torch.empty(shape, device=g.device).exponential_(generator=g) for g in generators]
    waits = torch.stack(rows).to(logits.device).clamp(min=1e-20)  # [B, N, V]
    codes = (kept - waits.log()).argmax(dim=-1)
    return Chosen(codes, _shares(kept, codes))


def _shares(logits: Tensor, codes: Tensor) -> Tensor:
    return logits.softmax(dim=-1).gather(-1, codes[..., None])[..., 0]


def keep(logits: Tensor, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Logits with all but the likeliest codes at minus infinity.

    Args:
        logits: [..., V].
        top_k: so many stay, and those that tie with the last of them; 0: all.
        top_p: of these, the fewest likeliest that have this share of the probability (nucleus
            sampling, Holtzman et al. 2020, https://arxiv.org/abs/1904.09751); 1: all.
    """
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, place = logits.sort(dim=-1, descending=True)
        share = ordered.softmax(dim=-1)
        before = share.cumsum(dim=-1) - share  # of those that are likelier
        ordered = ordered.masked_fill(before >= top_p, -torch.inf)
        logits = torch.empty_like(logits).scatter(-1, place, ordered)
    return logits
