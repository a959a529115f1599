"""Places in a backbone where adapters take hold, without a line about any of them there.

A backbone with tokens is `Hooked`. Two of its layers are hook points, which by themselves change
nothing:

    tokens_in     [B, N, width] image tokens, before its first block
    patches_out   [B, N, p p C] predictions of the patches, after its final layer

Its blocks are modules, so an adapter that works inside of the trunk puts its hook on them. A block
takes image tokens [B, N, D] as its first argument, whatever the others are, and returns them alone
or as the first of a tuple. So an adapter can run another block of the kind on the same arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn


class HookPoint(nn.Identity):
    """One such place: x -> x, or what an adapter makes of it. Has no state."""


@runtime_checkable
class Hooked(Protocol):
    """What a backbone declares for adapters.

    Attributes:
        tokens_in, patches_out: see the module.
        trunk: the blocks, in the order in which image tokens pass them.
    """

    tokens_in: nn.Module
    patches_out: nn.Module

    @property
    def trunk(self) -> nn.ModuleList: ...

    def embed(self, x: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> tokens with their positions, [B, N, D]."""


def image_tokens(out: Any) -> Tensor:
    """The image tokens [B, N, D] of what a block returned."""
    tokens: Tensor = out[0] if isinstance(out, tuple) else out
    return tokens


def streams(out: Any) -> tuple[Any, ...]:
    """All that a block passes on, image tokens first: as many of the next block's arguments."""
    return out if isinstance(out, tuple) else (out,)


def with_image_tokens(out: Any, tokens: Tensor) -> Any:
    """What a block returned, with other image tokens [B, N, D]."""
    return (tokens, *out[1:]) if isinstance(out, tuple) else tokens


@contextmanager
def hooked(point: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, what passes a point becomes `change` of it; afterwards all is as it was."""
    handle = point.register_forward_hook(lambda _module, _args, x: change(x))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def skipped(blocks: Iterable[nn.Module]) -> Iterator[None]:
    """Inside, these blocks give what they are given: the first argument, or as many of the first
    ones as a block returns streams. What they compute is thrown away."""

    def unchanged(_block: nn.Module, args: tuple[Any, ...], out: Any) -> Any:
        return args[: len(out)] if isinstance(out, tuple) else args[0]

    with ExitStack() as stack:
        for block in blocks:
            stack.callback(block.register_forward_hook(unchanged).remove)
        yield
