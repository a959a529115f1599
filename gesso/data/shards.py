"""Opening a feature cache, or saying why it does not fit the training that wants it."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Protocol

from gesso.config import validate
from gesso.data.buckets import Size
from gesso.data.shard_io import MANIFEST, Manifest, Shard, ShardInfo, open_shard, shard_bucket
from gesso.types import GessoError


class Encoder(Protocol):
    """What a cache needs to know of an encoder or a condition."""

    def fingerprint(self) -> str: ...


class Cache:
    """An open cache.

    Attributes:
        folder: where it lies.
        manifest: its `cache.json`.
        groups: shards by bucket (H, W), buckets from wide to tall.
    """

    def __init__(self, folder: Path, manifest: Manifest, groups: dict[Size, list[Shard]]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.groups = groups

    def __len__(self) -> int:
        """Pictures."""
        return sum(info.rows for info in self.manifest.shards)

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(info.bytes for info in self.manifest.shards)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a cache folder; None if there is none.

    Raises:
        GessoError: it is there but broken.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise GessoError(f"{path} is broken: delete the folder and run `gesso encode` again.")
    return validate(Manifest, values, str(path))


def open_cache(
    folder: Path | str,
    *,
    image_encoder: Encoder,
    text_encoder: Encoder,
    size: int,
    buckets: bool,
    condition: Encoder | None = None,
    source_fingerprint: str | None = None,
    limit: int | None = None,
) -> Cache:
    """Open a finished cache that was made from the same source by the same encoders.

    Args:
        folder: written by `encode`.
        image_encoder, text_encoder: the encoders of the training; their fingerprints must match.
        condition: what draws the control pictures; None: the training takes none.
        size, buckets: `data.size` and `data.buckets` of the training.
        source_fingerprint: of the training's source; None where the source is not at hand.
        limit: `data.limit` of the training; None takes however many the cache holds.

    Raises:
        GessoError: no cache, an unfinished one, one of other origin (says what differs), or a
            missing or damaged shard (names it).
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest is None:
        raise GessoError(f"There is no feature cache in {folder}: make one with `gesso encode`.")
    wanted = {
        "image_encoder": image_encoder.fingerprint(),
        "text_encoder": text_encoder.fingerprint(),
        "size": size,
        "buckets": buckets,
        "control": None if condition is None else condition.fingerprint(),
    }
    if source_fingerprint is not None:
        wanted["source"] = source_fingerprint
    if limit is not None:
        wanted["limit"] = limit
    refuse_different(folder, manifest, wanted)
    if not manifest.complete:
        raise GessoError(f"The cache {folder} is unfinished: run `gesso encode` again to go on.")
    groups: dict[Size, list[Shard]] = defaultdict(list)
    kinds: dict[tuple[object, ...], str] = {}
    for info in manifest.shards:
        bucket = shard_bucket(info.name)
        assert bucket is not None  # the manifest admits only names of shards
        shard = _open_listed(folder / info.name, info)
        groups[bucket].append(shard)
        kinds.setdefault(_kind(shard, bucket), info.name)
    if len(kinds) > 1:
        one, other, *_ = kinds.values()
        raise GessoError(
            f"The shard {folder / other} does not fit {one} in shape or dtype: delete the one that "
            f"is foreign and run `gesso encode` again."
        )
    ordered = sorted(groups, key=lambda s: (s[0] / s[1], s))
    return Cache(folder, manifest, {size: groups[size] for size in ordered})


def _open_listed(path: Path, info: ShardInfo) -> Shard:
    if not path.is_file():
        raise GessoError(f"The shard {path} is missing: run `gesso encode` again to make it.")
    size = path.stat().st_size
    shard = open_shard(path) if size == info.bytes else None
    if shard is None or len(shard) != info.rows:
        what = "ends early" if size < info.bytes else "is not the one that was written"
        raise GessoError(
            f"The shard {path} {what} ({size} bytes, {info.bytes} were written): delete it and run "
            f"`gesso encode` again, which makes only what is missing."
        )
    return shard


def _kind(shard: Shard, bucket: Size) -> tuple[object, ...]:
    """What all shards of a cache have in common: latent factor and channels, widths, dtypes."""
    channels, h, w = shard.latents.shape[1:]
    pooled = None if shard.pooled is None else shard.pooled.shape[1:]
    factors = bucket[0] / h, bucket[1] / w
    text = shard.text.shape[1:], shard.text.dtype, pooled
    return factors, channels, shard.latents.dtype, shard.control is None, *text


def refuse_different(folder: Path, manifest: Manifest, wanted: dict[str, object]) -> None:
    """Compare what a cache was made from with what is wanted now.

    Raises:
        GessoError: names everything that differs.
    """
    names = {
        "image_encoder": "image encoder",
        "text_encoder": "text encoder",
        "source": "source",
        "control": "kind of control pictures",
    }
    differs = []
    for field, value in wanted.items():
        held = getattr(manifest, field)
        if held != value:
            hashed = field in names  # fingerprints say nothing to a reader
            differs.append(names[field] if hashed else f"{field} ({held}, now {value})")
    if differs:
        raise GessoError(
            f"The cache {folder} was made with another {' and another '.join(differs)}: delete it "
            f"or choose another folder, and run `gesso encode` again."
        )
