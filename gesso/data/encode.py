"""The job behind `gesso encode`: captioned pictures -> feature cache.

It can be stopped at any time: finished shards are kept, and the next run makes the rest, with the
same bytes as an uninterrupted run.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from gesso.data.buckets import Size, assign, bucket_table
from gesso.data.cache import read_manifest, refuse_different
from gesso.data.images import cover, to_tensor
from gesso.data.shards import (
    DTYPES,
    Features,
    Manifest,
    ShardInfo,
    open_shard,
    shard_bucket,
    shard_name,
    write_manifest,
    write_shard,
)
from gesso.data.source import EntrySource, Source, read
from gesso.types import Bad, Caption, Cond, GessoError, Sample

Progress = Callable[[int, int | None], None]
"""(pictures done, pictures in all or None) -> None"""


class ImageEncoder(Protocol):
    """The part of an image encoder that fills a cache."""

    factor: int

    def encode(self, pixels: Tensor) -> Tensor: ...
    def fingerprint(self) -> str: ...


class TextEncoder(Protocol):
    """The part of a text encoder that fills a cache."""

    def prepare(self, prompts: list[str]) -> Cond: ...
    def fingerprint(self) -> str: ...


@dataclass(frozen=True)
class EncodeReport:
    """What `encode` did.

    Attributes:
        folder: the cache.
        pictures: in the cache, of which `resumed` were there before this run.
        captions: in the cache.
        bad: skipped samples with reasons.
        buckets: pictures by bucket (H, W).
        bytes: size of the shards.
        seconds: this run took.
    """

    folder: Path
    pictures: int
    resumed: int
    captions: int
    bad: list[Bad]
    buckets: dict[Size, int]
    bytes: int
    seconds: float


class _Cut(NamedTuple):
    """A picture cut to its bucket, waiting to be encoded."""

    key: str
    pixels: np.ndarray  # [H, W, 3] uint8
    size: Size
    label: int
    captions: list[Caption]


def encode(
    source: Source,
    image_encoder: ImageEncoder,
    text_encoder: TextEncoder,
    out_dir: Path | str,
    *,
    size: int,
    buckets: bool = False,
    shard_size: int = 512,
    batch_size: int = 32,
    limit: int | None = None,
    background: str | None = None,
    dtype: Literal["float16", "float32"] = "float16",
    multiple: int | None = None,
    progress: Progress | None = None,
) -> EncodeReport:
    """Encode every picture and every caption of a source into a cache folder.

    Args:
        source: yields `Sample` and `Bad`.
        image_encoder: its raw latents are stored.
        text_encoder: what its `prepare` returns is stored: ids, or tokens of a frozen encoder.
        out_dir: the cache; an unfinished one made with the same settings is continued.
        size: side in pixels of the squares, or base size of the buckets.
        buckets: cut to aspect-ratio buckets; False: to centred squares.
        shard_size: pictures per shard.
        batch_size: pictures, and captions, that go through an encoder at a time.
        limit: only the first so many usable pictures.
        background: behind transparent pixels; None: as the source says.
        dtype: of stored latents and tokens.
        multiple: bucket sides are multiples of this; None: twice the latent factor, which suits
            backbones with patches of 2.
        progress: called after every batch.

    Raises:
        GessoError: the folder holds a cache of something else, the size does not suit the encoder,
            or nothing could be used.
    """
    started = time.monotonic()
    if background is not None and isinstance(source, EntrySource):
        source.background = background
    multiple = multiple or image_encoder.factor * (2 if buckets else 1)
    table = bucket_table(size, multiple)
    if not buckets:
        table = {1.0: (size, size)}
    manifest = Manifest(
        image_encoder=image_encoder.fingerprint(),
        text_encoder=text_encoder.fingerprint(),
        source=source.fingerprint(),
        size=size,
        buckets=buckets,
        limit=limit,
        dtype=dtype,
        shard_size=shard_size,
        multiple=multiple,
    )
    folder = Path(out_dir)
    done = _resume(folder, manifest)
    writer = _Writer(folder, image_encoder, text_encoder, shard_size, batch_size, DTYPES[dtype])
    resumed = count = len(done)
    total = _total(source, limit)
    bad: list[Bad] = []
    for item in _first(read(source, done), None if limit is None else limit - count):
        if isinstance(item, Bad):
            bad.append(item)
            continue
        h, w = item.image.shape[:2]
        bucket = assign(h, w, table)
        cut = _Cut(item.key, cover(item.image, bucket), (h, w), _label(item), item.captions)
        bad += writer.add(bucket, cut)
        count += 1
        if progress and count % batch_size == 0:
            progress(count, total)
    bad += writer.finish()
    manifest.bad = sorted(tuple(b) for b in bad)
    return _finish(folder, manifest, resumed, started, progress)


def _first(items: Iterator[Sample | Bad], limit: int | None) -> Iterator[Sample | Bad]:
    """Up to the limit-th `Sample`."""
    left = limit
    while left is None or left > 0:
        item = next(items, None)
        if item is None:
            return
        if left is not None and isinstance(item, Sample):
            left -= 1
        yield item


def _total(source: Source, limit: int | None) -> int | None:
    known = len(source) if hasattr(source, "__len__") else None
    if known is None or limit is None:
        return known if limit is None else limit
    return min(known, limit)


def _label(sample: Sample) -> int:
    label = sample.meta.get("label")
    return label if isinstance(label, int) and 0 <= label < 2**63 else -1


def _resume(folder: Path, manifest: Manifest) -> set[str]:
    """Keys in the finished shards of an earlier run; a damaged shard is made again."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise GessoError(f"The folder {folder} cannot be made: {e.strerror}.") from None
    earlier = read_manifest(folder)
    if earlier is None:
        if any(folder.iterdir()):
            raise GessoError(
                f"The folder {folder} holds other files and no cache: choose an empty one."
            )
    else:
        fields = set(Manifest.model_fields) - {"version", "complete", "shards", "bad"}
        refuse_different(folder, earlier, {f: getattr(manifest, f) for f in sorted(fields)})
    write_manifest(folder, manifest)
    done: set[str] = set()
    for path in _shards(folder):
        try:
            keys = open_shard(path).keys
        except GessoError:
            path.unlink()
        else:
            done.update(keys)
    return done


def _shards(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if shard_bucket(p.name))


class _Writer:
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
        self._cut: dict[Size, list[_Cut]] = defaultdict(list)
        self._ready: dict[Size, list[Features]] = defaultdict(list)

    def add(self, bucket: Size, picture: _Cut) -> list[Bad]:
        """Take a picture; returns those that turned out bad."""
        waiting = self._cut[bucket]
        waiting.append(picture)
        # A batch never crosses the end of a shard: after an interruption, batches fall the same.
        room = self._shard_size - len(self._ready[bucket])
        return self._encode(bucket) if len(waiting) >= min(self._batch_size, room) else []

    def finish(self) -> list[Bad]:
        """Encode and write what is left."""
        bad = [b for bucket in list(self._cut) for b in self._encode(bucket)]
        for bucket, rows in self._ready.items():
            if rows:
                self._write(bucket)
        return bad

    def _encode(self, bucket: Size) -> list[Bad]:
        pictures = self._cut.pop(bucket, [])
        if not pictures:
            return []
        pixels = to_tensor(np.stack([p.pixels for p in pictures]))  # [B, 3, H, W]
        with torch.no_grad():
            latents = self._image_encoder.encode(pixels.to(device_of(self._image_encoder)))
        latents = latents.to("cpu", self._dtype)
        texts, pooled = self._texts([c.text for p in pictures for c in p.captions])
        bad, start = [], 0
        for picture, latent in zip(pictures, latents, strict=True):
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
            )
            if all(t.isfinite().all() for t in (latent, *row.text)):
                self._ready[bucket].append(row)
            else:
                bad.append(Bad(picture.key, f"Its features are not finite as {self._dtype}."))
        if len(self._ready[bucket]) >= self._shard_size:
            self._write(bucket)
        return bad

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
        taken = {p.name for p in _shards(self._folder)}
        number = next(i for i in range(len(taken) + 1) if shard_name(bucket, i) not in taken)
        path = self._folder / shard_name(bucket, number)
        write_shard(path, self._ready.pop(bucket), self._dtype)


def device_of(encoder: object) -> torch.device:
    """Where a module's weights are; the CPU for anything without weights."""
    if isinstance(encoder, torch.nn.Module):
        for tensor in (*encoder.parameters(), *encoder.buffers()):
            return tensor.device
    return torch.device("cpu")


def _finish(
    folder: Path, manifest: Manifest, resumed: int, started: float, progress: Progress | None
) -> EncodeReport:
    counts: dict[Size, int] = defaultdict(int)
    captions = 0
    for path in _shards(folder):
        shard = open_shard(path)
        manifest.shards.append(
            ShardInfo(name=path.name, rows=len(shard), bytes=path.stat().st_size)
        )
        counts[shard_bucket(path.name) or (0, 0)] += len(shard)
        captions += sum(map(len, shard.captions))
    pictures = sum(counts.values())
    if not pictures:
        reason = f"; the first: {manifest.bad[0][0]}: {manifest.bad[0][1]}" if manifest.bad else "."
        raise GessoError(
            f"No picture of the source could be used ({len(manifest.bad)} bad){reason}"
        )
    manifest.complete = True
    write_manifest(folder, manifest)
    if progress:
        progress(pictures, pictures)
    return EncodeReport(
        folder=folder,
        pictures=pictures,
        resumed=resumed,
        captions=captions,
        bad=[Bad(*b) for b in manifest.bad],
        buckets=dict(counts),
        bytes=sum(s.bytes for s in manifest.shards),
        seconds=time.monotonic() - started,
    )
