"""Inner loop feedback: some of a backbone's blocks run twice, the second time with feedback.

Gwilliam et al. 2025, https://arxiv.org/abs/2501.13107. The blocks are split into pre, loop and
post. With f_0 what the loop is given, f_n what its n blocks make of it, and g a block like theirs:

    F       = g(f_n)
    h_1     = loop_1(f_0 + s_1 F)
    h_i     = loop_i(h_{i-1} + s_i F)        and post goes on with h_n

The scales s start at zero, where h_n = f_n: the backbone then predicts exactly what it did without.
A pass is L + n + 1 blocks instead of L, and nothing is remembered from one to the next.

The authors' code is private. Here g starts as a copy of the loop's last block (they leave open
whether weights are copied), and g and the second round are told the time that the first was.

Dims: B batch, N image tokens, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from pydantic import Field
from torch import nn

from gesso import config
from gesso.nn.hooks import Hooked, image_tokens, streams
from gesso.types import GessoError

STAYS = True


class Config(config.Config):
    """Which blocks are the loop.

    Attributes:
        start, end: the first one, counted from 0, and the first one behind; None: the middle third.
    """

    start: int | None = Field(default=None, ge=0)
    end: int | None = Field(default=None, ge=1)


class InnerLoop(nn.Module):
    """The feedback of a backbone. Made by `attach`.

    Args:
        block: of the loop, the last one: g begins as its copy.
        n: blocks of the loop.

    Attributes:
        scales: [n], s.
    """

    def __init__(self, block: nn.Module, n: int) -> None:
        super().__init__()
        self.block = copy.deepcopy(block)
        self.scales = nn.Parameter(torch.zeros(n))
        self._active = True
        self._calls: list[tuple[nn.Module, tuple[Any, ...]]] = []  # of the first round

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, the backbone runs as it was."""
        self._active = False
        try:
            yield
        finally:
            self._active = True

    def before(self, index: int, block: nn.Module, args: tuple[Any, ...]) -> None:
        """Before block `index` of the loop: remember what it is called with."""
        if index == 0:
            self._calls.clear()
        self._calls.append((block, args))

    def again(self, _block: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        """After the loop's last block: the second round, whose result takes the place of `out`."""
        calls, self._calls = self._calls, []
        if not self._active:
            return out
        k = len(streams(out))
        feedback = image_tokens(self.block(*streams(out), *args[k:]))  # [B, N, D]
        given = calls[0][1][:k]
        for scale, (block, first) in zip(self.scales, calls, strict=True):
            x = given[0] + scale * feedback
            # Not by calling it, which would come back here.
            given = streams(block.forward(x, *given[1:], *first[k:]))
        return given if isinstance(out, tuple) else given[0]


def attach(options: Config, backbone: nn.Module) -> InnerLoop:
    """Give a backbone an inner loop, as its submodule `inner_loop`.

    Args:
        options: which blocks.
        backbone: with what `gesso.nn.hooks.Hooked` declares.

    Raises:
        GessoError: it declares no trunk, or has no such blocks with others before and behind.
    """
    name = type(backbone).__name__.lower()
    if not isinstance(backbone, Hooked):
        raise GessoError(f"{name} has no hook points for an inner loop: take another backbone.")
    start, end = loop_of(len(backbone.trunk), options.start, options.end, name)
    loop = list(backbone.trunk)[start:end]
    feedback = InnerLoop(loop[-1], len(loop))
    backbone.add_module("inner_loop", feedback)
    # Bound methods and partials of them: a deep copy of the backbone binds them to its own loop.
    for i, block in enumerate(loop):
        block.register_forward_pre_hook(partial(feedback.before, i))
    loop[-1].register_forward_hook(feedback.again)
    return feedback


def loop_of(depth: int, start: int | None, end: int | None, name: str) -> tuple[int, int]:
    """The first block of the loop and the first one behind it.

    Raises:
        GessoError: a part of pre | loop | post would be empty.
    """
    start = depth // 3 if start is None else start
    end = depth - depth // 3 if end is None else end
    if not 0 < start < end < depth:
        raise GessoError(
            f"The loop from block {start} to {end} leaves no blocks before, in or behind it in"
            f" this {name} of {depth}: set start and end so that 0 < start < end < {depth}."
        )
    return start, end
