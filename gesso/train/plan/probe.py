"""How fast this machine is at exactly what a training step does.

Every different kernel of a trace is run on random operands of its shapes, strides and dtypes, in
the order of the step, round after round until the time is over. All operands lie apart, so that a
kernel finds the caches as cold as in training.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gesso.train import launch
from gesso.train.parallel import Group
from gesso.train.plan.trace import Kernel, Spec

SECONDS = 10.0
MOST = 768 * 2**20  # bytes of operands that are held at once
ROUNDS = 2  # at least, besides a first one that is not counted
FLAT = 1 << 22  # numbers that are averaged over processes, to time it


@dataclass
class Rates:
    """What was measured.

    Attributes:
        seconds: of one call of each kernel, in their order.
        overhead: seconds that an operator call takes besides its kernel, recording included.
        average: seconds a byte of averaging gradients over the processes; 0 for one.
        flops: a second, over all products of the probe.
        bandwidth: bytes a second, over all other kernels.
    """

    seconds: list[float]
    overhead: float
    average: float
    flops: float
    bandwidth: float


def probe(kernels: list[Kernel], *, processes: int = 1, seconds: float = SECONDS) -> Rates:
    """Measure kernels as a training with so many processes runs them.

    Args:
        kernels: different ones, in the order of the step.
        processes: that run the same at the same time, on their share of the cores.
        seconds: how long to measure.
    """
    if processes == 1:
        return _rates(kernels, seconds, Group())
    args = (kernels, seconds)
    with launch.start(processes, _work, args, timeout=60 + 10 * seconds) as group:
        return _work(group, *args)


def _work(group: Group, kernels: list[Kernel], seconds: float) -> Rates:
    group.mean_([torch.ones(1)])  # begin together
    rates = _rates(kernels, seconds, group)
    group.mean_([torch.ones(1)])  # and none stops while others measure
    return rates


def _averaging(group: Group) -> float:
    """Seconds a byte of averaging over the processes."""
    if group.size == 1:
        return 0.0
    flat, times = torch.ones(FLAT), []
    for _ in range(5):
        start = time.perf_counter()
        group.mean_([flat])
        times.append(time.perf_counter() - start)
    return median(times[1:]) / (flat.element_size() * FLAT)


def _rates(kernels: list[Kernel], seconds: float, group: Group) -> Rates:
    average = _averaging(group)
    calls = [_call(k) for k in kernels]
    times: list[list[float]] = [[] for _ in kernels]
    end = time.perf_counter() + seconds
    done = 0
    while done <= ROUNDS or time.perf_counter() < end:
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        done += 1
        if done > 64:
            break
    each = [median(taken[1:]) for taken in times]
    del calls
    gc.collect()
    spent = [s * k.count for s, k in zip(each, kernels, strict=True)]
    product = [bool(k.flops) for k in kernels]
    work = sum(k.flops * k.count for k in kernels)
    moved = sum(k.bytes * k.count for k in kernels if not k.flops)
    on_products = sum(s for s, p in zip(spent, product, strict=True) if p)
    on_others = sum(s for s, p in zip(spent, product, strict=True) if not p)
    return Rates(
        seconds=each,
        overhead=_overhead(),
        average=average,
        flops=work / on_products if on_products else 0.0,
        bandwidth=moved / on_others if on_others else 0.0,
    )


def _call(kernel: Kernel) -> Callable[[], object]:
    func: Any = torch.ops
    for part in kernel.name.split("."):
        func = getattr(func, part)
    args, kwargs = pytree.tree_map(_operand, kernel.args, is_leaf=lambda x: isinstance(x, Spec))
    return lambda: func(*args, **kwargs)


def _operand(spec: Any) -> Any:
    """Random numbers in [0, 1), zeros where they are indices, of a tensor's shape and strides."""
    if not isinstance(spec, Spec):
        return spec
    steps = zip(spec.shape, spec.stride, strict=True)
    n = 1 + sum((size - 1) * stride for size, stride in steps) if all(spec.shape) else 0
    flat = torch.zeros(n, dtype=spec.dtype)
    if spec.dtype.is_floating_point:
        flat.copy_(torch.rand(min(n, 1 << 16)).repeat(n // (1 << 16) + 1)[:n])
    return flat.as_strided(spec.shape, spec.stride)


def _overhead() -> float:
    """Seconds of an operator call that is recorded for gradients, on tensors of one number."""
    n = 200
    x: Tensor = torch.ones(1, requires_grad=True)
    times = []
    for _ in range(7):
        start = time.perf_counter()
        y = x
        for _ in range(n):
            y = y.view(1)
        y.backward()
        times.append((time.perf_counter() - start) / (2 * n))
    return median(times)
