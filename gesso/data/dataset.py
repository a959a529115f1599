"""Training batches, from a feature cache or from pictures held in memory.

`batch(number, batch_size, seed, rows)` depends on its arguments alone: a resumed training sees what
an uninterrupted one would have seen, and processes that share a batch read their own rows of it.
The position of the data in a checkpoint is therefore one number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from gesso.data.buckets import Size, assign, bucket_table, ratio_key
from gesso.data.captions import check_weights
from gesso.data.features import device_of
from gesso.data.group import Group
from gesso.data.images import cover, to_tensor
from gesso.data.order import Split
from gesso.data.shard_io import merge
from gesso.data.shards import Cache
from gesso.data.source import Source, read
from gesso.draws import EVERY, Draws
from gesso.types import Bad, Batch, Cond, GessoError

RAM_LIMIT = 4 * 1024**3
_CAPTION, _LATENT = 2, 3  # uses of a seed, apart from those of `Order`


class Latents(Protocol):
    """The part of an image encoder that reads a cache."""

    def sample(self, raw: Tensor, generator: Draws | None = None) -> Tensor: ...


class Codes(Latents, Protocol):
    """The part of a tokenizer that reads a cache."""

    def codes(self, raw: Tensor) -> Tensor: ...


class CachedDataset:
    """Batches of latents and text features.

    Args:
        cache: from `open_cache`.
        image_encoder: turns cached raw latents into normalised ones; a KL posterior is sampled
            anew at every read.
        coded: give its codes instead.
        caption_weights: by caption kind; None: all captions alike.
        holdout: so many pictures, chosen by a hash of their keys, are kept out of training.
        ram_limit: a cache of fewer bytes is read into memory, a larger one is memory-mapped.

    Attributes:
        holdout_keys: keys of the held-out pictures.

    Raises:
        GessoError: nothing is left to train on, or caption weights that fit no caption.
    """

    def __init__(
        self,
        cache: Cache,
        image_encoder: Latents | Codes,
        *,
        coded: bool = False,
        caption_weights: Mapping[str, float] | None = None,
        holdout: int = 0,
        ram_limit: int = RAM_LIMIT,
    ) -> None:
        self._image_encoder, self._coded = image_encoder, coded
        kinds = (
            c.kind for g in cache.groups.values() for s in g for row in s.captions for c in row
        )
        check_weights(caption_weights, kinds)
        in_memory = cache.bytes <= ram_limit
        self._groups = [
            Group(size, [merge(shards)] if in_memory else shards, caption_weights)
            for size, shards in cache.groups.items()
        ]
        self._has_labels = all(bool((s.labels >= 0).all()) for g in self._groups for s in g.shards)
        self._split = Split([g.keys for g in self._groups], holdout)
        self.holdout_keys = self._split.holdout_keys

    def __len__(self) -> int:
        """Pictures to train on."""
        return len(self._split)

    def batch(self, number: int, batch_size: int, seed: int, rows: slice = EVERY) -> Batch:
        """Own rows of a numbered batch: one bucket, one caption per picture.

        Args:
            number: of the batch, from 0.
            batch_size: pictures in the whole batch.
            seed: of order, captions and latents.
            rows: which of them to read.

        Returns:
            Batch with latents [B, C, h, w], or codes [B, T]; and with cond: ids | tokens, mask,
            size, aspect, label, control.
        """
        place, pictures = self._split.rows(number, batch_size, seed)
        group, pictures = self._groups[place], pictures[rows]
        chance = np.random.default_rng([seed, _CAPTION, number]).random(batch_size)[rows]
        captions = [group.choose(r, u) for r, u in zip(pictures.tolist(), chance, strict=True)]
        device = device_of(self._image_encoder)
        draws = Draws(device, seed, _LATENT, number, rows=rows, total=batch_size)
        return self._read(group, pictures, captions, draws)

    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        """The held-out pictures, always alike: posterior means and the likeliest caption."""
        for number, rows in self._split.holdout(batch_size):
            group = self._groups[number]
            captions = [group.likeliest(r) for r in rows.tolist()]
            yield self._read(group, rows, captions, None)

    def _read(
        self,
        group: Group,
        rows: np.ndarray,
        captions: list[int],
        generator: Draws | None,
    ) -> Batch:
        raw, cond = group.read(rows, captions)
        if not self._has_labels:
            cond.label = None
        batch = Batch(keys=[group.keys[r] for r in rows.tolist()], cond=cond)
        raw = raw.to(device_of(self._image_encoder))
        with torch.no_grad():
            if self._coded:
                batch.codes = self._image_encoder.codes(raw)  # type: ignore[union-attr]
            else:
                batch.latents = self._image_encoder.sample(raw, generator)
            if cond.control is not None:
                cond.control = self._image_encoder.sample(cond.control.to(raw.device))
        return batch


class PixelDataset:
    """Batches of pictures, decoded once and held in memory as uint8.

    Args:
        source: yields `Sample` and `Bad`.
        size: side in pixels of the squares, or base size of the buckets.
        buckets: cut to aspect-ratio buckets; False: to centred squares.
        multiple: bucket sides are multiples of this.
        limit: only the first so many usable pictures.
        holdout: so many pictures are kept out of training, chosen as in `CachedDataset`.
        ram_limit: most bytes that the pictures may take.

    Attributes:
        bad: skipped samples with reasons.
        holdout_keys: keys of the held-out pictures.

    Raises:
        GessoError: no usable picture, or more than fit into `ram_limit`.
    """

    def __init__(
        self,
        source: Source,
        size: int,
        *,
        buckets: bool = False,
        multiple: int | None = None,
        limit: int | None = None,
        holdout: int = 0,
        ram_limit: int = RAM_LIMIT,
    ) -> None:
        table = bucket_table(size, multiple) if buckets else {1.0: (size, size)}
        self.bad: list[Bad] = []
        pictures: dict[Size, list[np.ndarray]] = {}
        keys: dict[Size, list[str]] = {}
        sizes: dict[Size, list[Size]] = {}
        used = count = 0
        for item in read(source):
            if limit is not None and count >= limit:
                break
            if isinstance(item, Bad):
                self.bad.append(item)
                continue
            h, w = item.image.shape[:2]
            bucket = assign(h, w, table)
            pictures.setdefault(bucket, []).append(cover(item.image, bucket))
            keys.setdefault(bucket, []).append(item.key)
            sizes.setdefault(bucket, []).append((h, w))
            count += 1
            used += bucket[0] * bucket[1] * 3
            if used > ram_limit:
                raise GessoError(
                    f"The pictures take over {ram_limit / 1e9:.1f} GB of memory after {count} of "
                    f"them: set data.limit or a smaller data.size."
                )
        if not count:
            reason = f", the first: {self.bad[0].reason}" if self.bad else "."
            raise GessoError(f"No picture of the source could be used{reason}")
        self._buckets = sorted(pictures, key=lambda s: (s[0] / s[1], s))
        self._pixels = [torch.from_numpy(np.stack(pictures.pop(b))) for b in self._buckets]
        self._sizes = [torch.tensor(sizes[b], dtype=torch.float32) for b in self._buckets]
        self._keys = [keys[b] for b in self._buckets]
        self._split = Split(self._keys, holdout)
        self.holdout_keys = self._split.holdout_keys

    def __len__(self) -> int:
        """Pictures to train on."""
        return len(self._split)

    def batch(self, number: int, batch_size: int, seed: int, rows: slice = EVERY) -> Batch:
        """Own rows of a numbered batch: pixels [B, 3, H, W] in [-1, 1]; cond has size, aspect."""
        place, pictures = self._split.rows(number, batch_size, seed)
        return self._read(place, pictures[rows])

    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        """The held-out pictures, in a fixed order."""
        for number, rows in self._split.holdout(batch_size):
            yield self._read(number, rows)

    def _read(self, number: int, rows: np.ndarray) -> Batch:
        index = torch.from_numpy(rows)
        aspect = torch.full((len(rows), 1), ratio_key(self._buckets[number]))
        return Batch(
            keys=[self._keys[number][r] for r in rows.tolist()],
            cond=Cond(size=self._sizes[number][index], aspect=aspect),
            pixels=to_tensor(self._pixels[number][index]),
        )
