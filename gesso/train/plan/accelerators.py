"""Accelerators by name, from their makers' data sheets."""

from __future__ import annotations

from dataclasses import dataclass

from gesso.config import nearest
from gesso.types import GessoError

PRODUCTS = 0.55
"""Assumed share of the peak that matrix products reach in training. Not measured here."""

MEMORY = 0.75
"""Assumed share of the memory bandwidth that all other kernels reach. Not measured here."""

LINKS = 0.7
"""Assumed share of the links' bandwidth that collectives reach. Not measured here."""

CONTEXT = 0.7 * 2**30
"""Assumed memory of the driver's context and the libraries' work spaces, in bytes."""

SLACK = 0.05
"""Assumed share of the allocator's memory that is lost between blocks."""


@dataclass(frozen=True)
class Accelerator:
    """One device.

    Attributes:
        memory: bytes.
        flops: a second, dense, bfloat16 with float32 sums (float16 where there is no bfloat16).
        bandwidth: of its memory, bytes a second.
        link: to its neighbours, bytes a second in one direction.
    """

    memory: float
    flops: float
    bandwidth: float
    link: float


def _row(gigabytes: float, teraflops: float, bandwidth: float, link: float) -> Accelerator:
    """Sizes in 10^9 bytes, rates in 10^12 operations and 10^9 bytes a second."""
    return Accelerator(gigabytes * 1e9, teraflops * 1e12, bandwidth * 1e9, link * 1e9)


# Memory as sold (GB), dense bfloat16, memory bandwidth, link in one direction (NVLink, Infinity
# Fabric or PCIe).
ACCELERATORS = {
    "v100": _row(32, 125, 900, 150),  # float16
    "t4": _row(16, 65, 320, 16),  # float16
    "a10": _row(24, 125, 600, 32),
    "a100": _row(80, 312, 2039, 300),
    "a100-40": _row(40, 312, 1555, 300),
    "l4": _row(24, 121, 300, 32),
    "l40s": _row(48, 362, 864, 32),
    "h100": _row(80, 989, 3350, 450),
    "h100-pcie": _row(80, 756, 2000, 64),
    "h200": _row(141, 989, 4800, 450),
    "b200": _row(180, 2250, 7700, 900),
    "rtx3090": _row(24, 71, 936, 32),
    "rtx4090": _row(24, 165, 1008, 32),
    "rtx5090": _row(32, 209, 1792, 64),
    "mi300x": _row(192, 1307, 5300, 448),
}


def find(name: str) -> tuple[str, Accelerator]:
    """An accelerator by name, however it is written ("H100", "rtx 4090", "RTX-4090").

    Raises:
        GessoError: an unknown name, with the nearest one.
    """
    plain = _plain(name)
    for known, accelerator in ACCELERATORS.items():
        if _plain(known) == plain:
            return known, accelerator
    names = ["cpu", *ACCELERATORS]
    raise GessoError(f"There is no accelerator {name!r} in the table: {nearest(plain, names)}")


def this(device_name: str) -> tuple[str, Accelerator] | None:
    """The row of a device by its driver's name, "NVIDIA H100 80GB HBM3"; None: not known."""
    plain = _plain(device_name)
    fitting = [known for known in ACCELERATORS if _plain(known) in plain]
    if not fitting:
        return None
    name = max(fitting, key=len)  # h100-pcie rather than h100
    return name, ACCELERATORS[name]


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
