"""Batches on the device, prepared while the one before is learnt from."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from gesso.types import Batch


class Dataset(Protocol):
    """What the loop asks of the data. Batches follow from their number and the seed alone."""

    def batch(self, step: int, batch_size: int, seed: int) -> Batch: ...

    def validation_batches(self, batch_size: int) -> Iterable[Batch]: ...


class Feed:
    """Numbered batches of a dataset; the next one is read in a thread.

    Args:
        dataset: where they come from.
        batch_size: pictures in each.
        seed: of their order.
        device: where they go.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, device: torch.device) -> None:
        self.dataset, self.device = dataset, device
        self.batch_size, self.seed = batch_size, seed
        self._pool = ThreadPoolExecutor(1)
        self._ahead: tuple[int, Future[Batch]] | None = None

    def __getitem__(self, number: int) -> Batch:
        if self._ahead is None or self._ahead[0] != number:
            self._ahead = number, self._read(number)
        future = self._ahead[1]
        self._ahead = number + 1, self._read(number + 1)
        return to_device(future.result(), self.device)

    def validation(self) -> Iterable[Batch]:
        """The held-out batches."""
        for batch in self.dataset.validation_batches(self.batch_size):
            yield to_device(batch, self.device)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _read(self, number: int) -> Future[Batch]:
        return self._pool.submit(self.dataset.batch, number, self.batch_size, self.seed)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch with its tensors on a device."""

    def move(x: Tensor | None) -> Tensor | None:
        return None if x is None else x.to(device, non_blocking=True)

    cond = batch.cond.to(device)
    return replace(batch, cond=cond, latents=move(batch.latents), pixels=move(batch.pixels))
