"""Sampling of models of codes: a group of codes at a time, each from those before it.

A group is what the backbone predicts at once: a scale of STAR, one code of a raster model. Keys and
values of what has been read are kept, so every code is read once. Where a sampler is attached to
the backbone (`gesso.adapters.stable_sampler`), it draws the groups that are its.

Dims: B pictures, T codes of a picture, m codes of a group, V entries of the codebook.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gesso.config import SampleConfig
from gesso.diffusion.noise import Generators
from gesso.nn.choose import Chosen, choose
from gesso.nn.kv_cache import Cache
from gesso.types import Cond


def steps(backbone: Any, grid: tuple[int, int]) -> int:
    """How many times `generate` runs the backbone.

    Raises:
        GessoError: the backbone cannot paint a grid (h, w) of codes.
    """
    return len(backbone.groups(grid))


def generate(
    backbone: Any,
    tokenizer: Any,
    cond: Cond,
    null: Cond,
    contract: SampleConfig,
    grid: tuple[int, int],
    *,
    generator: Generators,
    callback: Callable[[int], None] | None = None,
) -> Tensor:
    """Draw the codes of B pictures.

    Guidance: l = l_u + s (l_c - l_u) for the logits l_c with the condition and l_u without it, both
    run as one batch and continued by the same codes. With step k of K, s is `guidance_scale`, or
    1 + (guidance_scale - 1) k / (K - 1) where it grows: STAR's (1 + t) l_c - t l_u with
    t = cfg k / (K - 1) and cfg = guidance_scale - 1 (arXiv:2406.10797, code).

    Args:
        backbone: has `groups` and `follow`, see `gesso.backbones`.
        tokenizer: whose codes they are; frozen.
        cond, null: B rows each; null is not read for a guidance_scale of 1 or less.
        contract: guidance_scale, guidance_growth, temperature, top_k and top_p are used.
        grid: (h, w) of the latents.
        generator: one a picture.
        callback: told the step after each run of the backbone.

    Returns:
        [B, T] int64.
    """
    groups, n = backbone.groups(grid), len(cond)
    guided = contract.guidance_scale > 1
    both = Cond.cat([cond, null]) if guided else cond
    device = next(backbone.parameters()).device
    cache, codes = Cache(), torch.zeros(n, 0, dtype=torch.long, device=device)
    sampler = getattr(backbone, "sampler", None)

    def pick(logits: Tensor, scale: float) -> Chosen:
        if guided:
            with_cond, without = logits.float().chunk(2)
            logits = torch.lerp(without, with_cond, scale)
        return choose(
            logits,
            generator,
            temperature=contract.temperature,
            top_k=contract.top_k,
            top_p=contract.top_p,
        )

    for k in range(len(groups)):
        known = torch.cat([codes, codes]) if guided else codes
        if sampler is not None and k in sampler.drawn:  # fully guided in every round
            features = backbone.follow_features(known, both, tokenizer, cache)
            settle = partial(pick, scale=contract.guidance_scale)
            new = sampler.draw(features, both.pooled, tokenizer, k, settle, generator)
        else:
            logits = backbone.follow(known, both, tokenizer, cache)  # [B or 2B, m, V]
            new = pick(logits, guidance(contract, k, len(groups))).codes
        codes = torch.cat([codes, new], dim=1)
        if callback is not None:
            callback(k)
    return codes


def guidance(contract: SampleConfig, k: int, steps: int) -> float:
    """s of step k."""
    if contract.guidance_growth == "constant" or steps == 1:
        return contract.guidance_scale
    return 1 + (contract.guidance_scale - 1) * k / (steps - 1)
