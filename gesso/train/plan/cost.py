"""Seconds of a training step, from its trace and the rates of a device."""

from __future__ import annotations

from dataclasses import dataclass

from gesso.train.plan.accelerators import LINKS, MEMORY, PRODUCTS, Accelerator
from gesso.train.plan.probe import Rates
from gesso.train.plan.step import StepTrace
from gesso.train.plan.trace import Kernel, Trace, traffic

GRADIENT = 4  # bytes


@dataclass
class Seconds:
    """What one step takes.

    Attributes:
        products: matrix products and attention.
        others: everything between them, and what calling operators costs.
        update: clipping, optimisers, moving average.
        exchange: between processes, as far as it is not hidden behind the rest.
    """

    products: float
    others: float
    update: float
    exchange: float

    @property
    def step(self) -> float:
        return sum(vars(self).values())


def kernels_of(step: StepTrace) -> list[Kernel]:
    """Every kernel of a step, in order: what `probe` measures and `measured` expects."""
    return [k for trace, _ in step.passes for k in trace.kernels] + step.update.kernels


def measured(step: StepTrace, rates: Rates, *, compiled: bool, scale: float = 1.0) -> Seconds:
    """Seconds on the machine that was probed.

    A compiled step's products are the same; what lies between them takes as much less as it moves
    fewer bytes.

    Args:
        step: the one whose kernels were probed.
        rates: what `probe` found for them.
        compiled: whether blocks are compiled.
        scale: how many times as many pictures the real step has.
    """
    found = Seconds(0.0, 0.0, 0.0, 0.0)
    start = 0
    for trace, times in step.passes:
        taken = list(zip(trace.kernels, rates.seconds[start:], strict=False))
        start += len(trace.kernels)
        products = sum(s * k.count for k, s in taken if k.flops)
        others = sum(s * k.count for k, s in taken if not k.flops)
        if compiled:
            apart, fused = traffic(trace)
            others *= fused / max(apart, 1)
        else:
            others += rates.overhead * trace.calls / scale
        found.products += times * scale * products
        found.others += times * scale * others
    found.update = _sum(step.update, rates.seconds[start:])
    found.exchange = rates.average * GRADIENT * step.trained
    return found


def roofline(
    step: StepTrace, device: Accelerator, *, compiled: bool, devices: int, recomputed: bool = False
) -> Seconds:
    """Seconds on an accelerator of the table: each kernel at the assumed share of its limit.

    Over several devices weights are gathered for the forward and again for the backward pass and
    gradients are scattered, all in bfloat16 or float32 as they are kept (4 bytes at most), behind
    the products as far as those last.
    """
    found = Seconds(0.0, 0.0, 0.0, 0.0)
    for trace, times in step.passes:
        apart, fused = traffic(trace)
        for k in trace.kernels:
            if k.flops:
                limit = max(
                    k.flops / (PRODUCTS * device.flops), k.bytes / (MEMORY * device.bandwidth)
                )
                found.products += times * k.count * limit
        found.others += times * (fused if compiled else apart) / (MEMORY * device.bandwidth)
    moved = sum(k.bytes * k.count for k in step.update.kernels)
    found.update = moved / devices / (MEMORY * device.bandwidth)
    if devices > 1:
        sent = 3 * GRADIENT * step.trained * (devices - 1) / devices
        found.exchange = max(0.0, sent / (LINKS * device.link) - found.products)
    return found


def _sum(trace: Trace, seconds: list[float]) -> float:
    return sum(s * k.count for k, s in zip(trace.kernels, seconds, strict=True))
