"""Pictures and captions -> features, a batch at a time, and into shards.

Dims: B pictures in a batch, R channels of a raw latent, L tokens, D their width.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import chain
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from gesso.data.buckets import Size
from gesso.data.images import to_tensor
from gesso.data.shard_io import Features, shard_files, shard_name, write_shard
from gesso.types import Bad, Caption, Cond, Sample


class ImageEncoder(Protocol):
    """The part of an image encoder that fills a cache."""

    factor: int

    def encode(self, pixels: Tensor) -> Tensor: ...
    def fingerprint(self) -> str: ...


class TextEncoder(Protocol):
    """The part of a text encoder that fills a cache."""

    def prepare(self, prompts: list[str]) -> Cond: ...
    def fingerprint(self) -> str: ...


class Condition(Protocol):
    """The part of a condition that fills a cache; see `gesso.controls`."""

    def __call__(self, sample: Sample, size: Size) -> np.ndarray: ...
    def fingerprint(self) -> str: ...


class Cut(NamedTuple):
    """A picture cut to its bucket, waiting to be encoded."""

    key: str
    pixels: np.ndarray  # [H, W, 3] uint8
    size: Size  # before it was cut
    label: int
    captions: list[Caption]
    control: np.ndarray | None = None  # [H, W, 3] uint8


class FeatureWriter:
    """Encodes batches of one bucket and writes a shard whenever a bucket has enough."""

    def __init__(
        self,
        folder: Path,
        image_encoder: ImageEncoder,
        text_encoder: TextEncoder,
        shard_size: int,
        batch_size: int,
        dtype: torch.dtype,
    ) -> None:
        self._folder = folder
        self._image_encoder = image_encoder
        self._text_encoder = text_encoder
        self._shard_size = shard_size
        self._batch_size = batch_size
        self._dtype = dtype
        self._cut: dict[Size, list[Cut]] = defaultdict(list)
        self._ready: dict[Size, list[Features]] = defaultdict(list)
        self._taken = {path.name for path in shard_files(folder)}
        self._next: dict[Size, int] = defaultdict(int)

    def add(self, bucket: Size, picture: Cut) -> list[Bad]:
        """Take a picture; returns those that turned out bad."""
        waiting = self._cut[bucket]
        waiting.append(picture)
        # A batch never crosses the end of a shard: after an interruption, batches fall the same.
        room = self._shard_size - len(self._ready[bucket])
        return self._encode(bucket) if len(waiting) >= min(self._batch_size, room) else []

    def finish(self) -> list[Bad]:
        """Encode and write what is left."""
        bad = [b for bucket in list(self._cut) for b in self._encode(bucket)]
        for bucket in [b for b, rows in self._ready.items() if rows]:
            self._write(bucket)
        return bad

    def _encode(self, bucket: Size) -> list[Bad]:
        pictures = self._cut.pop(bucket, [])
        if not pictures:
            return []
        latents = self._latents([p.pixels for p in pictures])  # [B, R, h, w]
        drawn = [p.control for p in pictures if p.control is not None]
        controls = self._latents(drawn) if drawn else None
        texts, pooled = self._texts([c.text for p in pictures for c in p.captions])
        bad, start = [], 0
        for i, (picture, latent) in enumerate(zip(pictures, latents, strict=True)):
            own = slice(start, start + len(picture.captions))
            start = own.stop
            row = Features(
                picture.key,
                latent,
                picture.size,
                picture.label,
                picture.captions,
                texts[own],
                None if pooled is None else pooled[own],
                None if controls is None else controls[i],
            )
            control = [] if row.control is None else [row.control]
            if all(t.isfinite().all() for t in (latent, *control, *row.text)):
                self._ready[bucket].append(row)
            else:
                dtype = str(self._dtype).removeprefix("torch.")
                bad.append(Bad(picture.key, f"Its features are not finite as {dtype}."))
        if len(self._ready[bucket]) >= self._shard_size:
            self._write(bucket)
        return bad

    def _latents(self, pictures: list[np.ndarray]) -> Tensor:
        """B pictures [H, W, 3] uint8 -> raw latents [B, R, h, w]."""
        pixels = to_tensor(np.stack(pictures))  # [B, 3, H, W]
        with torch.no_grad():
            latents = self._image_encoder.encode(pixels.to(device_of(self._image_encoder)))
        return latents.to("cpu", self._dtype)

    def _texts(self, texts: list[str]) -> tuple[list[Tensor], Tensor | None]:
        """Captions -> one [L] or [L, D] tensor each, unpadded, and [captions, P] or None."""
        ragged: list[Tensor] = []
        pooled: list[Tensor] = []
        for start in range(0, len(texts), self._batch_size):
            with torch.no_grad():
                cond = self._text_encoder.prepare(texts[start : start + self._batch_size]).to("cpu")
            values = cond.ids if cond.tokens is None else cond.tokens.to(self._dtype)
            assert values is not None and cond.mask is not None  # the contract of `prepare`
            ragged += [v[:n] for v, n in zip(values, cond.mask.sum(1).tolist(), strict=True)]
            if cond.pooled is not None:
                pooled.append(cond.pooled)
        return ragged, torch.cat(pooled) if pooled else None

    def _write(self, bucket: Size) -> None:
        number = self._next[bucket]
        while shard_name(bucket, number) in self._taken:  # by an earlier run
            number += 1
        self._next[bucket] = number + 1
        path = self._folder / shard_name(bucket, number)
        write_shard(path, self._ready.pop(bucket), self._dtype)


def device_of(encoder: object) -> torch.device:
    """Where a module's weights are; the CPU for anything without weights."""
    if isinstance(encoder, torch.nn.Module):
        for tensor in chain(encoder.parameters(), encoder.buffers()):
            return tensor.device
    return torch.device("cpu")
