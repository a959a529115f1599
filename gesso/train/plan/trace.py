"""What a computation does, found without doing it: kernels, FLOPs, bytes, live memory.

The computation runs on fake tensors, which have a shape, a dtype and a device but no memory, while
`Recorder` notes every operation that would run a kernel and every tensor that would take memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

aten = torch.ops.aten
_CPU_ATTENTION = aten._scaled_dot_product_flash_attention_for_cpu
_CPU_ATTENTION_BACKWARD = aten._scaled_dot_product_flash_attention_for_cpu_backward
# Those that write nothing, and the zeros of an optimiser's state, which are written once.
_UNWRITTEN = {aten.empty, aten.empty_like, aten.new_empty, aten.empty_strided, aten.zeros_like}


@dataclass(frozen=True)
class Spec:
    """A tensor without its values."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class Kernel:
    """One operation on operands of certain shapes, and how often it ran.

    Attributes:
        name: of the operator, such as "aten.mm.default".
        args: its arguments, tensors as `Spec`; (args, kwargs).
        flops: floating-point operations of one call; 0 for anything but products.
        bytes: read and written by one call.
        count: calls.
    """

    name: str
    args: tuple[Any, ...]
    flops: int
    bytes: int
    count: int = 0


@dataclass
class Buffer:
    """Memory that some operation allocated, in the order of operations.

    Attributes:
        bytes: its size.
        born: number of the operation that made it.
        died: number of the operation before which it was freed; None: it outlives the recording.
        made_by_product, read_by_product: by a matrix product or attention.
        readers: numbers of the groups (see `Trace.groups`) that read it.
    """

    bytes: int
    born: int
    group: int
    made_by_product: bool
    died: int | None = None
    read_by_product: bool = False
    readers: set[int] = field(default_factory=set)


@dataclass
class Trace:
    """What was recorded.

    Attributes:
        kernels: different ones.
        buffers: every allocation.
        turn: number of the operation at which `Recorder.turn` was called: where backward begins.
        turn_group: its group.
        operations: that run kernels.
        calls: of operators, those that make views included.
        outside: by group, bytes read of tensors that were there before.
        products: the groups that are one product each.
    """

    kernels: list[Kernel]
    buffers: list[Buffer]
    turn: int
    turn_group: int
    operations: int
    calls: int
    outside: dict[int, int]
    products: set[int]

    @property
    def flops(self) -> int:
        return sum(k.flops * k.count for k in self.kernels)


class Recorder(TorchDispatchMode):
    """Records operations on fake tensors; `trace` has the result when it is left.

    Operations between two products form a group: a compiler makes about one kernel of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kernels: dict[Any, Kernel] = {}
        self._buffers: list[Buffer] = []
        self._alive: dict[int, Buffer] = {}  # by the address of the storage
        self._outside: dict[int, set[int]] = {}
        self._sizes: dict[int, int] = {}
        self._now = self._group = self._calls = 0
        self._products: set[int] = set()
        self._turn = (0, 0)
        self._over = False

    def turn(self) -> None:
        """Mark the end of the forward pass."""
        self._group += 1
        self._turn = (self._now, self._group)

    @property
    def trace(self) -> Trace:
        outside = {g: sum(self._sizes[s] for s in ids) for g, ids in self._outside.items()}
        kernels = list(self._kernels.values())
        return Trace(
            kernels, self._buffers, *self._turn, self._now, self._calls, outside, self._products
        )

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._over = True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func is torch.ops.prim.device.default:
            return out
        self._calls += 1
        made = [t for t in pytree.tree_leaves(out) if isinstance(t, Tensor)]
        read = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if made or func._schema.is_mutable:
            self._note(func, args, kwargs, out, made, read)
        return out

    def _note(
        self, func: Any, args: Any, kwargs: Any, out: Any, made: list[Tensor], read: list[Tensor]
    ) -> None:
        sources = {_address(t) for t in read}
        fresh = [t for t in made if _address(t) not in sources and _address(t) not in self._alive]
        if not fresh and not func._schema.is_mutable:
            return  # a view
        self._now += 1
        flops = _flops(func, args, kwargs, out)
        if flops:
            self._group += 1
            self._products.add(self._group)
        for tensor in fresh:
            self._allocate(tensor, bool(flops))
        if func._overloadpacket not in _UNWRITTEN:
            for tensor in read:
                self._read(tensor, bool(flops))
            written = fresh or made or read[:1]
            key, template = _template(func, args, kwargs)
            moved = sum(_span(t) for t in (*read, *written))
            kernel = self._kernels.setdefault(key, Kernel(str(func), template, flops, moved))
            kernel.count += 1
        if flops:
            self._group += 1

    def _allocate(self, tensor: Tensor, product: bool) -> None:
        storage = tensor.untyped_storage()
        buffer = Buffer(storage.nbytes(), self._now, self._group, product)
        address = storage._cdata
        self._buffers.append(buffer)
        self._alive[address] = buffer

        def freed() -> None:
            if not self._over:
                buffer.died = self._now + 1
            self._alive.pop(address, None)

        weakref.finalize(storage, freed).atexit = False

    def _read(self, tensor: Tensor, product: bool) -> None:
        address = _address(tensor)
        buffer = self._alive.get(address)
        if buffer is None:
            self._sizes[address] = _span(tensor)
            self._outside.setdefault(self._group, set()).add(address)
            return
        buffer.readers.add(self._group)
        buffer.read_by_product |= product


def _address(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address


def _span(tensor: Tensor) -> int:
    """Bytes that reading a tensor moves: what is expanded is read once."""
    n = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        n *= size if stride else 1
    return n * tensor.element_size()


def _template(func: Any, args: Any, kwargs: Any) -> tuple[Any, tuple[Any, ...]]:
    def spec(x: Any) -> Any:
        if isinstance(x, Tensor):
            return Spec(tuple(x.shape), x.stride(), x.dtype)
        return None if isinstance(x, torch.Generator) else x

    template = pytree.tree_map(spec, (args, kwargs))
    leaves, structure = pytree.tree_flatten(template)
    return (func, str(structure), tuple(map(str, leaves))), template


def _flops(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    packet = func._overloadpacket
    if packet is _CPU_ATTENTION:
        return int(sdpa_flop_count(args[0].shape, args[1].shape, args[2].shape))
    if packet is _CPU_ATTENTION_BACKWARD:
        return int(sdpa_backward_flop_count(*(a.shape for a in args[:4])))
    count = flop_registry.get(packet)
    return 0 if count is None else int(count(*args, **kwargs, out_val=out))


def live(trace: Trace, buffers: list[Buffer]) -> Iterator[tuple[int, int]]:
    """(operation, bytes of these buffers in use during it), in order."""
    change = [0] * (trace.operations + 3)
    for b in buffers:
        change[b.born] += b.bytes
        if b.died is not None:
            change[b.died] -= b.bytes
    now = 0
    for operation, delta in enumerate(change):
        now += delta
        yield operation, now


def stored(trace: Trace) -> list[Buffer]:
    """The buffers that exist in a compiled computation.

    A fused kernel keeps what only it reads in registers, and what the backward pass needs of that
    is computed again from what products made or read. Left are the operands and results of
    products, and what a later group of the same pass reads (the residual stream).
    """

    def crosses(b: Buffer) -> bool:
        same_pass = [g for g in b.readers if (g < trace.turn_group) == (b.group < trace.turn_group)]
        return any(g != b.group for g in same_pass)

    return [
        b
        for b in trace.buffers
        if b.made_by_product or b.read_by_product or b.died is None or crosses(b)
    ]


def traffic(trace: Trace) -> tuple[int, int]:
    """Bytes that everything but products moves: (operation by operation, in fused kernels)."""
    apart = sum(k.bytes * k.count for k in trace.kernels if not k.flops)
    fused = sum(b for group, b in trace.outside.items() if group not in trace.products)
    for b in stored(trace):
        fused += b.bytes * len({g for g in b.readers if g not in trace.products and g != b.group})
        if not b.made_by_product:
            fused += b.bytes
    return apart, min(apart, fused)
