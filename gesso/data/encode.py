"""The job behind `gesso encode`: captioned pictures -> feature cache.

It can be stopped at any time: finished shards are kept, and the next run makes the rest, with the
same bytes as an uninterrupted run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Literal, TypedDict

from gesso.data.buckets import assign, bucket_table
from gesso.data.features import Condition, Cut, FeatureWriter, ImageEncoder, TextEncoder
from gesso.data.images import cover
from gesso.data.shard_io import (
    DTYPES,
    Manifest,
    open_shard,
    shard_files,
    shard_info,
    write_manifest,
)
from gesso.data.shards import read_manifest, refuse_different
from gesso.data.source import EntrySource, Source, first, read
from gesso.types import Bad, GessoError, Sample

Progress = Callable[[int, int | None], None]
"""(pictures done, pictures in all or None) -> None"""


class EncodeReport(TypedDict):
    """What is in the cache now, in values that JSON can hold.

    Attributes:
        pictures: in the cache, of which `resumed` were there before this run.
        captions: in the cache.
        skipped: pictures that could not be used; `cache.json` names each with its reason.
        reasons: how often each reason for skipping occurred.
        buckets: pictures by bucket "HxW".
        bytes: size of the shards.
        seconds: this run took.
    """

    pictures: int
    resumed: int
    captions: int
    skipped: int
    reasons: dict[str, int]
    buckets: dict[str, int]
    bytes: int
    seconds: float


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
    condition: Condition | None = None,
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
        condition: makes a control picture of each; its latent is stored, too.
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
        control=None if condition is None else condition.fingerprint(),
        source=source.fingerprint(),
        size=size,
        buckets=buckets,
        limit=limit,
        dtype=dtype,
        shard_size=shard_size,
        multiple=multiple,
    )
    folder = Path(out_dir)
    earlier = _earlier(folder, manifest)
    if earlier is not None and earlier.complete and _intact(folder, earlier):
        return _report(earlier, sum(s.rows for s in earlier.shards), started)
    write_manifest(folder, manifest)
    done = _finished(folder)
    writer = FeatureWriter(
        folder, image_encoder, text_encoder, shard_size, batch_size, DTYPES[dtype]
    )
    count = len(done)
    total = _total(source, limit)
    bad: list[Bad] = []
    for item in first(read(source, done), None if limit is None else limit - count):
        if isinstance(item, Bad):
            bad.append(item)
            continue
        h, w = item.image.shape[:2]
        bucket = assign(h, w, table)
        try:
            control = None if condition is None else condition(item, bucket)
        except GessoError as e:
            bad.append(Bad(item.key, str(e)))
            continue
        pixels = cover(item.image, bucket)
        cut = Cut(item.key, pixels, (h, w), _label(item), item.captions, control)
        bad += writer.add(bucket, cut)
        count += 1
        if progress and count % batch_size == 0:
            progress(count, total)
    bad += writer.finish()
    manifest.bad = sorted((b.key, b.reason) for b in bad)
    manifest.shards = [shard_info(path) for path in shard_files(folder)]
    if not manifest.shards:
        why = f", the first, {bad[0].key}: {bad[0].reason}" if bad else "."
        raise GessoError(f"No picture of the source could be used ({len(bad)} skipped){why}")
    manifest.complete = True
    write_manifest(folder, manifest)
    report = _report(manifest, len(done), started)
    if progress:
        progress(report["pictures"], report["pictures"])
    return report


def _total(source: Source, limit: int | None) -> int | None:
    known = len(source) if isinstance(source, Sized) else None
    if known is None or limit is None:
        return known if limit is None else limit
    return min(known, limit)


def _label(sample: Sample) -> int:
    label = sample.meta.get("label")
    return label if isinstance(label, int) and 0 <= label < 2**63 else -1


def _earlier(folder: Path, manifest: Manifest) -> Manifest | None:
    """What an earlier run began in this folder, if it is the same cache."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise GessoError(f"The folder {folder} cannot be made: {e.strerror}.") from None
    for part in folder.glob("*.part"):  # the run stopped while writing it
        part.unlink()
    earlier = read_manifest(folder)
    if earlier is not None:
        fields = set(Manifest.model_fields) - {"version", "complete", "shards", "bad"}
        refuse_different(folder, earlier, {f: getattr(manifest, f) for f in sorted(fields)})
    elif any(folder.iterdir()):
        raise GessoError(f"The folder {folder} holds files and no cache: choose an empty one.")
    return earlier


def _intact(folder: Path, manifest: Manifest) -> bool:
    files = [(folder / s.name, s.bytes) for s in manifest.shards]
    return all(path.is_file() and path.stat().st_size == size for path, size in files)


def _finished(folder: Path) -> set[str]:
    """Keys in the shards of an earlier run; a damaged shard is deleted and made again."""
    done: set[str] = set()
    for path in shard_files(folder):
        try:
            done.update(open_shard(path).keys)
        except GessoError:
            path.unlink()
    return done


def _report(manifest: Manifest, resumed: int, started: float) -> EncodeReport:
    buckets: Counter[str] = Counter()
    for shard in manifest.shards:
        buckets[shard.name.partition("-")[0]] += shard.rows
    return EncodeReport(
        pictures=sum(s.rows for s in manifest.shards),
        resumed=resumed,
        captions=sum(s.captions for s in manifest.shards),
        skipped=len(manifest.bad),
        reasons=dict(Counter(reason for _, reason in manifest.bad)),
        buckets=dict(buckets),
        bytes=sum(s.bytes for s in manifest.shards),
        seconds=time.monotonic() - started,
    )
