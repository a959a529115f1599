"""Block cache: on every other step some blocks do not run, and what they added before is reused.

DeepCache (Ma et al. 2023, https://arxiv.org/abs/2312.00858) carried over from U-Nets. With f_0 what
blocks start .. end - 1 are given and f_n what they make of it, a whole step stores f_n - f_0, and
the next `every - 1` steps go on with f_0 + (f_n - f_0) of then. A reusing step costs L - n blocks
instead of L. There is nothing to train.

A step is whole where its time is not earlier than the one before: there another picture begins.
What is stored belongs to the rows of a batch, so the branches of guidance never mix.

Dims: B batch, N image tokens, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from gesso import config
from gesso.nn.hooks import Hooked, streams
from gesso.types import GessoError

STAYS = True


class Config(config.Config):
    """Which blocks are reused, and how often.

    Attributes:
        start, end: the first one, counted from 0, and the first one behind.
        every: one whole step in so many.
    """

    start: int = Field(ge=0)
    end: int = Field(ge=1)
    every: int = Field(default=2, ge=2)


class BlockCache(nn.Module):
    """What a backbone's blocks added in the last whole step. Made by `attach`."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.every = every
        self._step, self._time, self._rows = 0, -math.inf, 0  # since the last picture began
        self._given: tuple[Tensor, ...] = ()
        self._added: tuple[Tensor, ...] = ()

    @property
    def reuses(self) -> bool:
        """Whether this step does."""
        return self._step % self.every > 0

    def begin(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the backbone's forward pass (x, t, cond)."""
        t = args[1] if len(args) > 1 else kwargs["t"]
        time, rows = float(t[0]), len(t)
        if backbone.training:
            raise GessoError("A block cache is for painting: train the model without it.")
        goes_on = time < self._time and rows == self._rows
        self._step = self._step + 1 if goes_on else 0
        self._time, self._rows = time, rows

    def run(self, index: int, last: bool, forward: Callable[..., Any], *args: Any) -> Any:
        """In the place of a block's `forward`: run it, or pass on what stands for its result."""
        if not self.reuses:
            out = forward(*args)
            if index == 0:
                self._given = args[: len(streams(out))]
            if last:
                self._added = tuple(x - y for x, y in zip(streams(out), self._given, strict=True))
            return out
        given = args[: len(self._added)]
        if last:
            given = tuple(x + added for x, added in zip(given, self._added, strict=True))
        return given if len(given) > 1 else given[0]


def attach(options: Config, backbone: nn.Module) -> BlockCache:
    """Give a backbone a block cache, as its submodule `block_cache`; it has no weights.

    Args:
        options: which blocks.
        backbone: with what `gesso.nn.hooks.Hooked` declares.

    Raises:
        GessoError: it declares no trunk, or has no such blocks.
    """
    name = type(backbone).__name__.lower()
    if not isinstance(backbone, Hooked):
        raise GessoError(f"{name} has no hook points for a block cache: take another backbone.")
    depth = len(backbone.trunk)
    if not options.start < options.end <= depth:
        raise GessoError(
            f"block_cache: the blocks {options.start} to {options.end} are not there in this {name}"
            f" of {depth}: set start and end so that start < end <= {depth}."
        )
    cache = BlockCache(options.every)
    backbone.add_module("block_cache", cache)
    backbone.register_forward_pre_hook(cache.begin, with_kwargs=True)
    for index, block in enumerate(list(backbone.trunk)[options.start : options.end]):
        last = index == options.end - options.start - 1
        block.forward = partial(cache.run, index, last, block.forward)  # type: ignore[method-assign]
    return cache
