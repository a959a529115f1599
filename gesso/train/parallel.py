"""The processes that train together, and what they say to each other.

All run the same loop over their own rows of every batch. Numbers that change the training go
through torch.distributed: gloo on CPUs, NCCL on GPUs. The first process leads: it logs, validates
and paints, while the others wait for its word, which goes through the store that they met at.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch import distributed as dist

from gesso.train.watch import SILENCE, Lost, Watch
from gesso.types import GessoError

if TYPE_CHECKING:
    from torch.distributed import Store

FEWEST = 16  # pictures of a batch below which another process does not pay
POLL = 0.005  # seconds between two looks into the store


class Group:
    """The processes of one training.

    Attributes:
        rank: 0 for the leader.
        size: how many there are; 1 for an ordinary training.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, store: Store | None = None, watch: Watch | None = None
    ) -> None:
        self.rank, self.size = rank, size
        self._store, self._watch = store, watch
        self._exchanges = 0

    @property
    def leads(self) -> bool:
        return self.rank == 0

    @property
    def rows(self) -> slice:
        """This process's rows of a batch: every `size`-th one."""
        return slice(self.rank, None, self.size)

    def agree(self, seconds: float, stop: bool) -> tuple[float, bool]:
        """The leader's clock, and whether any process was told to stop; alike in every process."""
        if self.size == 1:
            return seconds, stop
        shared = torch.tensor([seconds if self.leads else -1.0, float(stop)], dtype=torch.float64)
        self._together(lambda: dist.all_reduce(shared, dist.ReduceOp.MAX))
        return float(shared[0]), bool(shared[1])

    def mean_(self, tensors: list[Tensor]) -> None:
        """Replace float32 tensors by their means over the processes, bitwise alike in each."""
        if self.size == 1:
            return
        flat = torch.cat([t.reshape(-1) for t in tensors])
        self._together(lambda: dist.all_reduce(flat))
        parts = flat.div_(self.size).split([t.numel() for t in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """The JSON values of all processes, by rank, in every process.

        Nothing but a lost process ends the wait: a leader may validate for an hour.

        Raises:
            GessoError: a process is lost; says which.
        """
        self._exchanges += 1
        return self.collect(f"exchange/{self._exchanges}", value)

    def collect(self, key: str, value: Any) -> list[Any]:
        """As `gather`, from any thread: `key` names the exchange and is used once."""
        if self.size == 1:
            return [value]
        self._put(f"{key}/{self.rank}", value)
        return [self._get(f"{key}/{rank}") for rank in range(self.size)]

    def tell(self, value: Any) -> Any:
        """The leader's JSON value, in every process; see `gather`."""
        return self.gather(value)[0]

    @contextmanager
    def one_first(self) -> Iterator[None]:
        """The leader does what is inside, and then the others: what it writes is there for them."""
        if not self.leads:
            self.tell(None)
        yield
        if self.leads:
            self.tell(None)

    @contextmanager
    def together(self) -> Iterator[None]:
        """An exchange through torch.distributed that fails inside is one sentence.

        Any other error stays as it is.

        Raises:
            GessoError: a process is lost (says which), or did not come within `train.timeout`.
        """
        try:
            yield
        except RuntimeError as e:
            exchange = isinstance(e, dist.DistError) or "gloo/" in str(e)
            if self._watch is None or not exchange:
                raise
            gone = self._watch.lost(patience=2 * SILENCE)
            why = re.sub(r"^\[[^]]*\] *", "", str(e).splitlines()[0])[:120]  # without C++'s line
            raise gone or Lost(
                f"An exchange between the {self.size} processes failed ({why}), though all of them "
                "live: continue with --resume, and raise train.timeout if a step takes so long."
            ) from None

    def fault(self, error: BaseException) -> None:
        """Tell the others why this process stops."""
        if self._watch is not None and not isinstance(error, Lost):
            known = isinstance(error, GessoError)
            self._watch.fault(str(error) if known else f"{type(error).__name__}: {error}")

    def end(self) -> None:
        """Leave the others; the leader, where they meet, goes last."""
        if dist.is_initialized():
            dist.destroy_process_group()
        if self._watch is not None:
            self._watch.leave()

    def _put(self, key: str, value: Any) -> None:
        assert self._store is not None
        try:
            self._store.set(key, json.dumps(value))
        except RuntimeError:
            self._raise_lost()
            raise

    def _get(self, key: str) -> Any:
        assert self._store is not None
        assert self._watch is not None
        try:
            while not self._store.check([key]):
                time.sleep(POLL)
                if (gone := self._watch.lost()) is not None:
                    raise gone
            return json.loads(self._store.get(key))
        except RuntimeError:
            self._raise_lost()
            raise

    def _raise_lost(self) -> None:
        assert self._watch is not None
        if (gone := self._watch.lost(patience=2 * SILENCE)) is not None:
            raise gone from None

    def _together(self, talk: Callable[[], object]) -> None:
        with self.together():
            talk()


def launched() -> int:
    """How many processes a launcher such as torchrun has started for this training; 0: none did."""
    return int(os.environ.get("WORLD_SIZE", "0")) if "RANK" in os.environ else 0


def leads() -> bool:
    """Whether this process leads, or is the only one, before a group is there."""
    return not launched() or os.environ["RANK"] == "0"


def count(processes: int, batch_size: int, device: torch.device) -> int:
    """How many processes a recipe means.

    Args:
        processes: `train.processes`; 0 is one a core, with at least 16 pictures each. What a
            launcher has started counts instead.
        batch_size: which the processes share.
        device: gesso itself starts one process on CUDA.

    Raises:
        GessoError: several processes on CUDA without a launcher, or a batch that they cannot share
            evenly.
    """
    if not launched() and device.type != "cpu":
        if processes > 1:
            raise GessoError(
                f"train.processes is {processes}, but on GPUs a launcher starts them: run "
                f"torchrun --nproc-per-node {processes} -m gesso train ..."
            )
        return 1
    if not launched() and processes == 0:
        n = max(1, min(cores(), batch_size // FEWEST))
        return max(k for k in range(1, n + 1) if batch_size % k == 0)
    processes = launched() or processes
    if batch_size % processes:
        raise GessoError(
            f"train.batch_size {batch_size} does not divide among {processes} processes: make it a "
            "multiple of their number."
        )
    return processes


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
