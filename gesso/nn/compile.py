"""Compiling networks: one graph for all blocks of a kind."""

from __future__ import annotations

import types
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from gesso.types import Cond

TEXT_MULTIPLE = 8


def compile_blocks(networks: Iterable[nn.Module], *, learning: bool = True) -> bool:
    """Compile the members of every `nn.ModuleList` of some networks, in place.

    Compiling whole networks gains nothing more and takes longer: blocks of one class share one
    graph, so the time (20 to 40 s on two busy cores, at the first step) does not grow with depth.
    Names, state dicts and deep copies stay as they are.

    Args:
        networks: on their final devices.
        learning: compile for calls that record gradients; those that record none stay eager, as
            sampling and validation come in many sizes, each of which would compile again. False:
            the other way round. Then a picture's size is a constant of the graph, prepared texts
            come in multiples of 8 tokens, and another size or length compiles once more.

    Returns:
        True if compiled; False, after one warning, where there is no working compiler.
    """
    networks = list(networks)
    for device in {p.device for network in networks for p in network.parameters()}:
        try:
            torch.compile(lambda x: x.sin() + 1)(torch.zeros(8, device=device))
        except Exception as e:  # whatever the compiler stack raises, training can do without it
            reason = (str(e).strip() or type(e).__name__).splitlines()[0]
            warnings.warn(f"Nothing compiles, so all is slower: {reason[:200]}", stacklevel=2)
            return False
    # Blocks of one class and different widths are a graph each, and beyond a limit of 8 graphs the
    # compiler silently leaves a function as it is. 8 more are for other sizes.
    kinds = {(type(b), *(p.shape for p in b.parameters())) for n in networks for b in _blocks(n)}
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, len(kinds) + 8)
    compiled: dict[type, Callable[..., Tensor]] = {}
    for network in networks:
        for block in _blocks(network):
            cls = type(block)
            if cls not in compiled:
                compiled[cls] = _when(cls.forward, learning)
            # A bound method, which a deep copy of the block binds to the copy.
            block.forward = types.MethodType(compiled[cls], block)
        if learning:
            network.register_forward_pre_hook(_FixedText())
    return True


def _blocks(network: nn.Module) -> list[nn.Module]:
    lists = (m for m in network.modules() if isinstance(m, nn.ModuleList))
    return [block for members in lists for block in members]


def _when(forward: Callable[..., Tensor], learning: bool) -> Callable[..., Tensor]:
    fast = torch.compile(forward)

    def either(self: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        use = fast if torch.is_grad_enabled() == learning else forward
        return use(self, *args, **kwargs)

    return either


class _FixedText:
    """Pads text tokens to one length, so that captions of other lengths do not compile again.

    The length is a multiple of 8 and grows when a longer text comes. Padding is masked, so the
    result does not change.
    """

    def __init__(self) -> None:
        self.length = 0

    def __call__(self, network: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(self._pad(a) if isinstance(a, Cond) else a for a in args)

    def _pad(self, cond: Cond) -> Cond:
        if cond.tokens is None or not torch.is_grad_enabled():
            return cond
        batch, length = cond.tokens.shape[:2]
        self.length = max(self.length, -(-length // TEXT_MULTIPLE) * TEXT_MULTIPLE)
        mask = cond.mask
        if mask is None:
            mask = torch.ones(batch, length, dtype=torch.bool, device=cond.tokens.device)
        extra = self.length - length
        return cond.replace(
            tokens=nn.functional.pad(cond.tokens, (0, 0, 0, extra)),  # [B, self.length, D]
            mask=nn.functional.pad(mask, (0, extra)),  # [B, self.length]
        )
