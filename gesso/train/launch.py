"""Starting the processes of a training, or joining those that torchrun has started.

Small networks do not keep a second thread of a CPU busy: two processes, each with one thread and
its half of every batch, take about 1.5 times as many pictures a second as one process with two
threads (docs/performance.md). There gesso starts the processes itself. On GPUs, and on several
machines, torchrun does.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Semaphore
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from gesso.train.parallel import Group, cores, launched
from gesso.train.watch import Watch
from gesso.types import GessoError

HOST = "127.0.0.1"


@contextmanager
def start(
    size: int, follow: Callable[..., object], args: tuple[Any, ...], timeout: float
) -> Iterator[Group]:
    """The group that this process belongs to.

    Under a launcher that is the group of all its processes, each of which comes here. Else this
    process leads, and `size - 1` new ones run `follow(group, *args)`.

    Args:
        size: processes in all; 1 starts none.
        follow: a function of a module, for it is named to the new processes.
        args: what can be pickled between processes.
        timeout: seconds until a process that is not heard of counts as lost.

    Raises:
        GessoError: one of them ended while it started.
    """
    if size == 1:
        yield Group()
    elif launched():
        group = _launched_group(timeout)
        with _telling(group):
            yield group
    else:
        yield from _spawned(size, follow, args, timeout)


@contextmanager
def _telling(group: Group) -> Iterator[None]:
    try:
        yield
    except BaseException as e:
        group.fault(e)
        raise


@cache
def _launched_group(timeout: float) -> Group:
    """The group of the processes that torchrun has started; it lasts as long as this process."""
    try:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            _stay_local()
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
    except (KeyError, ValueError) as e:
        raise GessoError(
            f"RANK and WORLD_SIZE are set, but not all that processes need to meet ({e}): start "
            "them with torchrun, or unset RANK and WORLD_SIZE."
        ) from None
    group = _join(store, rank, size, timeout)
    atexit.register(group.end)
    if rank:  # the leader speaks for all; errors are told by each
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115
    return group


def _spawned(
    size: int, follow: Callable[..., object], args: tuple[Any, ...], timeout: float
) -> Iterator[Group]:
    threads = torch.get_num_threads()
    each = max(1, cores() // size)
    context = multiprocessing.get_context("spawn")
    store = dist.TCPStore(HOST, 0, size, is_master=True, wait_for_workers=False)
    ready = context.Semaphore(0)
    followers = [
        context.Process(
            target=_follow, args=(rank, size, store.port, each, timeout, ready, follow, args)
        )
        for rank in range(1, size)
    ]
    group = None
    try:
        for follower in followers:
            follower.start()
        _await(followers, ready)
        torch.set_num_threads(each)
        _stay_local()
        group = _join(store, 0, size, timeout)
        with _telling(group):
            yield group
        for follower in followers:
            follower.join()
    finally:
        for follower in followers:
            if follower.is_alive():
                follower.kill()
        if group is not None:
            group.end()
        torch.set_num_threads(threads)


def _await(followers: list[SpawnProcess], ready: Semaphore) -> None:
    """Wait until all followers run: a meeting with a dead one would last as long as the timeout."""
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
    port: int,
    threads: int,
    timeout: float,
    ready: Semaphore,
    follow: Callable[..., object],
    args: tuple[Any, ...],
) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # the leader hears them and tells
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_leader, daemon=True).start()
    ready.release()
    torch.set_num_threads(threads)
    _stay_local()
    store = dist.TCPStore(HOST, port, size, is_master=False, wait_for_workers=False)
    group = _join(store, rank, size, timeout)
    try:
        with _telling(group):
            follow(group, *args)
    except GessoError:  # the leader has been told, and says so
        sys.exit(1)
    finally:
        group.end()


def _end_with_the_leader() -> None:
    """A killed leader cannot end its followers, and they may not be talking to it just then."""
    leader = multiprocessing.parent_process()
    if leader is not None:
        leader.join()
        os._exit(1)


def _join(store: dist.Store, rank: int, size: int, timeout: float) -> Group:
    """Meet the others; every process is heard of before this returns."""
    cuda = torch.cuda.is_available() and launched() > 0
    watch = Watch(store, rank, size, timeout, ends=cuda)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=dist.PrefixStore("torch", store),
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=timeout),
    )
    watch.start()
    return Group(rank, size, store, watch)


def _stay_local() -> None:
    """All processes are on this machine, whose name need not resolve to anything."""
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
