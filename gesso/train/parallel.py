"""Data-parallel training on the cores of one machine.

Small networks do not keep a second thread busy: two processes, each with one thread and its half of
every batch, take about 1.5 times as many pictures a second as one process with two threads
(docs/performance.md). The first process leads: it decides about time and interrupts, logs,
validates and saves. The others follow it step by step.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from gesso.types import Batch, GessoError

FEWEST = 16  # pictures of a batch below which another process does not pay
PATIENCE = timedelta(hours=2)  # followers wait while the leader validates or saves


class Group:
    """The processes of one training.

    Attributes:
        rank: 0 for the leader.
        size: how many there are; 1 for an ordinary training.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, batch: Batch) -> Batch:
        """This process's rows of a batch: every `size`-th one."""
        if self.size == 1:
            return batch
        rows = slice(self.rank, None, self.size)
        return replace(
            batch,
            keys=batch.keys[rows],
            cond=batch.cond[rows],
            latents=None if batch.latents is None else batch.latents[rows],
            pixels=None if batch.pixels is None else batch.pixels[rows],
        )

    def agree(self, *values: float) -> list[float]:
        """The leader's values, in every process."""
        if self.size == 1:
            return list(values)
        shared = torch.tensor(values, dtype=torch.float64)
        self._together(lambda: dist.broadcast(shared, 0))
        return shared.tolist()

    def mean_(self, tensors: list[Tensor]) -> None:
        """Replace float32 tensors by their means over the processes, bitwise alike in each."""
        if self.size == 1:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        self._together(lambda: dist.all_reduce(flat))
        parts = flat.div_(self.size).split([t.numel() for t in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def _together(self, talk: Callable[[], object]) -> None:
        try:
            talk()
        except RuntimeError as e:
            why = re.sub(r"^\[[^]]*\] *", "", str(e).splitlines()[0])  # without the C++ source line
            raise GessoError(
                "Another process of this training has ended (out of memory, perhaps): continue "
                f"with --resume, or with train.processes=1 ({why[:120]})."
            ) from None


def count(processes: int, batch_size: int, device: torch.device) -> int:
    """How many processes a recipe means.

    Args:
        processes: `train.processes`; 0 is one a core, with at least 16 pictures each.
        batch_size: which the processes share.
        device: one process trains on CUDA.

    Raises:
        GessoError: several processes on CUDA, or a batch that they cannot share evenly.
    """
    if device.type != "cpu":
        if processes > 1:
            raise GessoError(
                f"train.processes is {processes}, but only CPU trainings have several: leave it "
                "out, or set train.device=cpu."
            )
        return 1
    if processes == 0:
        n = max(1, min(_cores(), batch_size // FEWEST))
        return max(k for k in range(1, n + 1) if batch_size % k == 0)
    if batch_size % processes:
        raise GessoError(
            f"train.batch_size {batch_size} does not divide among {processes} processes: make it a "
            "multiple of train.processes."
        )
    return processes


@contextmanager
def start(size: int, follow: Callable[..., None], args: tuple[Any, ...]) -> Iterator[Group]:
    """A group whose leader is this process; the others run `follow(group, *args)`.

    Args:
        size: processes in all; 1 starts none.
        follow: a function of a module, for it is named to the new processes.
        args: what can be pickled between processes.

    Raises:
        GessoError: one of them ended while it started.
    """
    if size == 1:
        yield Group()
        return
    threads = torch.get_num_threads()
    each = max(1, _cores() // size)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{Path(folder) / 'meeting'}"
        ready = context.Semaphore(0)
        followers = [
            context.Process(target=_follow, args=(rank, size, meeting, each, ready, follow, args))
            for rank in range(1, size)
        ]
        try:
            for follower in followers:
                follower.start()
            _await(followers, ready)
            _join(0, size, meeting, each)
            yield Group(0, size)
            for follower in followers:
                follower.join()
        finally:
            for follower in followers:
                if follower.is_alive():
                    follower.kill()
            if dist.is_initialized():
                dist.destroy_process_group()
            torch.set_num_threads(threads)


def _await(followers: list[SpawnProcess], ready: Semaphore) -> None:
    """Wait until all followers run: a meeting with a dead one would last as long as `PATIENCE`."""
    for _ in followers:
        while not ready.acquire(timeout=0.2):
            if not all(follower.is_alive() for follower in followers):
                raise GessoError(
                    "Another process of this training ended while it started (out of memory, "
                    "perhaps): try again, or with train.processes=1."
                )


def _follow(
    rank: int,
    size: int,
    meeting: str,
    threads: int,
    ready: Semaphore,
    follow: Callable[..., None],
    args: Any,
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # the leader hears them and tells
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_leader, daemon=True).start()
    ready.release()
    _join(rank, size, meeting, threads)
    try:
        follow(Group(rank, size), *args)
    except GessoError:  # the leader meets the same, and says so
        sys.exit(1)
    finally:
        dist.destroy_process_group()


def _end_with_the_leader() -> None:
    """A killed leader cannot end its followers, and they may not be talking to it just then."""
    leader = multiprocessing.parent_process()
    if leader is not None:
        leader.join()
        os._exit(1)


def _join(rank: int, size: int, meeting: str, threads: int) -> None:
    torch.set_num_threads(threads)
    if sys.platform == "linux":  # a machine's name need not resolve to anything
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=size, timeout=PATIENCE
    )


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
