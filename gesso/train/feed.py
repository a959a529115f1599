"""Own rows of numbered batches on the device, prepared while earlier ones are learnt from."""

from __future__ import annotations

import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from gesso.draws import EVERY
from gesso.types import Batch


class Dataset(Protocol):
    """What the loop asks of the data. Batches follow from their number and the seed alone."""

    def batch(self, number: int, batch_size: int, seed: int, rows: slice = EVERY) -> Batch:
        """Own `rows` of a batch of `batch_size` pictures."""
        ...

    def validation_batches(self, batch_size: int) -> Iterable[Batch]: ...


class Feed:
    """Numbered batches of a dataset; the next ones are read in threads.

    Args:
        dataset: where they come from.
        batch_size: pictures in each, over all processes.
        seed: of their order.
        device: where they go.
        rows: this process's rows of a batch.
        workers: threads; thread w of n reads every n-th batch, so n batches are read ahead.

    Attributes:
        waited: seconds that batches were waited for, since it was last set.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        seed: int,
        device: torch.device,
        rows: slice = EVERY,
        workers: int = 1,
    ) -> None:
        self.dataset, self.device, self.rows = dataset, device, rows
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.waited = 0.0
        self._pool = ThreadPoolExecutor(workers)
        self._ahead: dict[int, Future[Batch]] = {}

    def __getitem__(self, number: int) -> Batch:
        start = time.perf_counter()
        wanted = range(number, number + self.workers + 1)
        for stale in self._ahead.keys() - set(wanted):
            self._ahead.pop(stale).cancel()
        for n in wanted:
            if n not in self._ahead:
                self._ahead[n] = self._pool.submit(self._read, n)
        batch = to_device(self._ahead.pop(number).result(), self.device)
        self.waited += time.perf_counter() - start
        return batch

    def validation(self) -> Iterable[Batch]:
        """The held-out batches."""
        for batch in self.dataset.validation_batches(self.batch_size):
            yield to_device(batch, self.device)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _read(self, number: int) -> Batch:
        return self.dataset.batch(number, self.batch_size, self.seed, self.rows)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""

    def move(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(device, non_blocking=True)

    cond = batch.cond.to(device)
    learnt = replace(batch, latents=move(batch.latents), codes=move(batch.codes))
    return replace(learnt, cond=cond, pixels=move(batch.pixels))
