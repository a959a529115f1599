"""Which pictures step k learns from, computed from (seed, k) alone so that resuming is exact.

Every bucket is an endless stream of shuffled passes over its pictures, cut into batches. An epoch
takes from each bucket as many batches as its share allows, in shuffled order. What is left over in
a stream goes on in the next epoch, so no picture is dropped and a bucket smaller than a batch is
learned from as often as its pictures deserve.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache

import numpy as np

from gesso.types import GessoError

_EPOCH, _PASS = 0, 1  # keep the two uses of a seed apart


class Order:
    """Batches from buckets of pictures.

    Args:
        counts: pictures in each bucket; at least one bucket, none empty.
        batch_size: pictures per batch.
        seed: of the shuffling.
    """

    def __init__(self, counts: list[int], batch_size: int, seed: int) -> None:
        self._counts = counts
        self._batch = batch_size
        self._seed = seed
        # Two passes of each bucket can meet in a batch, and many small buckets take turns.
        self._pass = lru_cache(maxsize=4 * len(counts))(self._shuffled_pass)
        self._epoch = lru_cache(maxsize=2)(self._shuffled_epoch)

    def rows(self, step: int) -> tuple[int, np.ndarray]:
        """(bucket, [batch_size] rows within the bucket) of a step."""
        epoch = self._epoch_of(step)
        bucket, chunk = self._epoch(epoch)[step - self._start(epoch)]
        n = self._counts[bucket]
        position = np.arange(chunk * self._batch, (chunk + 1) * self._batch)
        return int(bucket), np.concatenate(
            [
                self._pass(int(bucket), int(p))[position[position // n == p] % n]
                for p in np.unique(position // n)
            ]
        )

    def _start(self, epoch: int) -> int:
        """The first step of an epoch: full batches in all streams after `epoch` passes."""
        return sum(epoch * n // self._batch for n in self._counts)

    def _epoch_of(self, step: int) -> int:
        low, high = 0, 1
        while self._start(high) <= step:
            high *= 2
        while high - low > 1:  # start(low) <= step < start(high)
            middle = (low + high) // 2
            low, high = (middle, high) if self._start(middle) <= step else (low, middle)
        return low

    def _shuffled_epoch(self, epoch: int) -> np.ndarray:
        """[steps, 2] (bucket, chunk of its stream)."""
        turns = [
            (bucket, chunk)
            for bucket, n in enumerate(self._counts)
            for chunk in range(epoch * n // self._batch, (epoch + 1) * n // self._batch)
        ]
        # Buckets are shuffled, not chunks: chunks of one bucket stay in the order of its stream.
        order = np.random.default_rng([self._seed, _EPOCH, epoch]).permutation(len(turns))
        buckets = np.array([b for b, _ in turns])[order]
        shuffled = np.empty((len(turns), 2), dtype=np.int64)
        shuffled[:, 0] = buckets
        for bucket in np.unique(buckets):
            shuffled[buckets == bucket, 1] = [c for b, c in turns if b == bucket]
        return shuffled

    def _shuffled_pass(self, bucket: int, number: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, _PASS, bucket, number])
        return rng.permutation(self._counts[bucket])


class Split:
    """Which rows of which bucket are trained on, and which are held out."""

    def __init__(self, keys: list[list[str]], holdout: int) -> None:
        total = sum(map(len, keys))
        if holdout < 0 or holdout >= total:
            raise GessoError(
                f"There are {total} pictures and {holdout} are to be held out: lower "
                f"validation.holdout."
            )
        places = [(_hash(k), g, row) for g, group in enumerate(keys) for row, k in enumerate(group)]
        held = {(g, row) for _, g, row in sorted(places)[:holdout]}
        self.holdout_keys = [keys[g][row] for g, row in sorted(held)]
        self._held = [
            np.array([r for r in range(len(k)) if (g, r) in held], dtype=np.int64)
            for g, k in enumerate(keys)
        ]
        self._train = [
            (g, np.array([r for r in range(len(k)) if (g, r) not in held], dtype=np.int64))
            for g, k in enumerate(keys)
        ]
        self._train = [(g, rows) for g, rows in self._train if len(rows)]
        self._orders: dict[tuple[int, int], Order] = {}

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self._train)

    def rows(self, step: int, batch_size: int, seed: int) -> tuple[int, np.ndarray]:
        """(bucket, rows) of a training step."""
        order = self._orders.get((batch_size, seed))
        if order is None:
            order = Order([len(rows) for _, rows in self._train], batch_size, seed)
            self._orders[batch_size, seed] = order
        place, within = order.rows(step)
        bucket, rows = self._train[place]
        return bucket, rows[within]

    def holdout(self, batch_size: int) -> Iterator[tuple[int, np.ndarray]]:
        """(bucket, rows) of each held-out batch; the last of a bucket may be smaller."""
        for bucket, rows in enumerate(self._held):
            for start in range(0, len(rows), batch_size):
                yield bucket, rows[start : start + batch_size]


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
