"""How much memory there is, and whether a model's parts fit into it together."""

from __future__ import annotations

import contextlib
import ctypes
import gc
from collections.abc import Iterable
from pathlib import Path

import psutil
import torch

CGROUP = Path("/sys/fs/cgroup")


def available_bytes(device: torch.device | str = "cpu") -> int:
    """Free memory of a device; in a container no more than what its limit leaves."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit, used = _number(CGROUP / "memory.max"), _number(CGROUP / "memory.current")
    if limit is None or used is None:
        return free
    # Cached file pages count as used but are given back when memory is short.
    return min(free, max(0, limit - used + _file_pages(CGROUP / "memory.stat")))


def give_back() -> None:
    """Return memory that is free inside this process to the system.

    glibc keeps what lies between blocks that are still in use, such as the copies that quantising
    makes (docs/memory.md).
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def total_bytes(files: Iterable[Path]) -> int:
    """The size of some files together; those that are not there count nothing."""
    return sum(f.stat().st_size for f in files if f.is_file())


def gib(size: float) -> str:
    """Bytes as "1.5 GiB"."""
    return f"{size / 2**30:.1f} GiB"


def _number(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):  # no such control group, or "max": no limit
        return None


def _file_pages(file: Path) -> int:
    try:
        rows = dict(line.split() for line in file.read_text().splitlines())
    except (OSError, ValueError):
        return 0
    return int(rows.get("inactive_file", 0))
