"""Places in a backbone where adapters take hold, without a line about any of them there.

A backbone with tokens declares two:

    tokens_in     [B, N, width] image tokens, before its first block
    patches_out   [B, N, p p C] predictions of the patches, after its final layer

and calls them like layers. By themselves they change nothing. Blocks are modules, so an adapter
that works inside of the trunk puts its hook on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class HookPoint(nn.Identity):
    """One such place: x -> x, or what an adapter makes of it. Has no state."""


@contextmanager
def hooked(point: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, what passes a point becomes `change` of it; afterwards all is as it was."""
    handle = point.register_forward_hook(lambda _module, _args, x: change(x))
    try:
        yield
    finally:
        handle.remove()
