"""The feature cache: safetensors shards of latents and text features, and `cache.json`.

A shard holds pictures of one bucket, so a batch is read without resizing or padding pictures:
    latents        [N, R, h, w]   raw latents
    sizes          [N, 2] int32   original height and width in pixels
    labels         [N] int64      class label, -1 where there is none
    caption_start  [N+1] int64    captions of picture i are caption_start[i] : caption_start[i+1]
    text_start     [K+1] int64    tokens of caption k are text_start[k] : text_start[k+1]
    ids | tokens   [T] | [T, D]   all captions end to end, no padding
    pooled         [K, P]         only if the text encoder pools
    control        [N, R, h, w]   raw latents of the control pictures, only if there are any
    index          [bytes] uint8  JSON: keys, and texts and kinds of the captions
Shards are memory-mapped, and written under another name first, so a finished name is a whole file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gesso.config import Config
from gesso.data.buckets import Size
from gesso.types import Caption, GessoError

MANIFEST = "cache.json"
_NAME = re.compile(r"(\d+)x(\d+)-(\d{6})\.safetensors")
DTYPES = {"float16": torch.float16, "float32": torch.float32}


@dataclass(slots=True)
class Features:
    """One encoded picture.

    Attributes:
        latents: [R, h, w] raw.
        size: original (height, width) in pixels.
        label: class label, or -1.
        text: one tensor per caption, [L] ids or [L, D] tokens, without padding.
        pooled: [captions, P], or None.
        control: [R, h, w] raw latent of its control picture, or None.
    """

    key: str
    latents: Tensor
    size: Size
    label: int
    captions: list[Caption]
    text: list[Tensor]
    pooled: Tensor | None = None
    control: Tensor | None = None


@dataclass(slots=True)
class Shard:
    """An open shard; tensors are as in the module's table. `text` is its `ids` or `tokens`."""

    keys: list[str]
    captions: list[list[Caption]]
    latents: Tensor
    sizes: Tensor
    labels: Tensor
    caption_start: Tensor
    text_start: Tensor
    text: Tensor
    pooled: Tensor | None = None
    control: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)


class ShardInfo(Config):
    """A finished shard, as the manifest lists it."""

    name: str = Field(pattern=f"^{_NAME.pattern}$")
    rows: int = Field(ge=1)
    captions: int = Field(ge=1)
    bytes: int = Field(ge=1)


class Manifest(Config):
    """`cache.json`: what the cache was made from, and what is in it once it is complete."""

    version: Literal[1] = 1
    image_encoder: str
    text_encoder: str
    control: str | None = None
    source: str
    size: int
    buckets: bool
    limit: int | None
    dtype: Literal["float16", "float32"]
    shard_size: int
    multiple: int
    complete: bool = False
    shards: list[ShardInfo] = Field(default_factory=list)
    bad: list[tuple[str, str]] = Field(default_factory=list)  # (key, reason), ordered by key


def shard_name(size: Size, number: int) -> str:
    """The file name of a bucket's shard."""
    return f"{size[0]}x{size[1]}-{number:06d}.safetensors"


def shard_bucket(name: str) -> Size | None:
    """The bucket (H, W) that a shard's name states; None if it is no shard's name."""
    match = _NAME.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def shard_files(folder: Path) -> list[Path]:
    """Finished shards in a folder, by name."""
    return sorted(p for p in folder.iterdir() if shard_bucket(p.name))


def shard_info(path: Path) -> ShardInfo:
    """What the manifest says of a shard."""
    shard = open_shard(path)
    captions = sum(map(len, shard.captions))
    return ShardInfo(name=path.name, rows=len(shard), captions=captions, bytes=path.stat().st_size)


def write_shard(path: Path, rows: list[Features], dtype: torch.dtype) -> None:
    """Write a shard whole or not at all, even through a power cut."""
    text = [t for row in rows for t in row.text]
    ragged = torch.cat(text).contiguous()
    tensors = {
        "latents": torch.stack([r.latents for r in rows]).to(dtype),
        "sizes": torch.tensor([r.size for r in rows], dtype=torch.int32),
        "labels": torch.tensor([r.label for r in rows]),
        "caption_start": _starts(len(r.captions) for r in rows),
        "text_start": _starts(len(t) for t in text),
        "tokens" if ragged.is_floating_point() else "ids": (
            ragged.to(dtype) if ragged.is_floating_point() else ragged
        ),
        "index": _to_bytes({"keys": [r.key for r in rows], "captions": [r.captions for r in rows]}),
    }
    pooled = [r.pooled for r in rows if r.pooled is not None]
    if pooled:
        tensors["pooled"] = torch.cat(pooled).to(dtype)
    controls = [r.control for r in rows if r.control is not None]
    if controls:
        tensors["control"] = torch.stack(controls).to(dtype)
    part = path.with_name(f"{path.name}.part")
    save_file({k: v.contiguous() for k, v in tensors.items()}, part)
    replace_file(part, path)


def replace_file(part: Path, path: Path) -> None:
    """Rename a finished file into place after its bytes are on the disk."""
    with part.open("rb+") as f:
        os.fsync(f.fileno())
    part.replace(path)


def open_shard(path: Path) -> Shard:
    """Memory-map a shard; only its index and offsets are read.

    Raises:
        GessoError: missing, truncated, or not a shard; names the file.
    """
    try:
        with safe_open(path, framework="pt") as f:
            tensors = {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118
        index = json.loads(tensors["index"].numpy().tobytes())
        shard = Shard(
            keys=[str(k) for k in index["keys"]],
            captions=[[Caption(str(t), str(k)) for t, k in row] for row in index["captions"]],
            text=tensors["tokens"] if "tokens" in tensors else tensors["ids"],
            pooled=tensors.get("pooled"),
            control=tensors.get("control"),
            **{k: tensors[k] for k in ("latents", "sizes", "labels")},
            **{k: tensors[k] for k in ("caption_start", "text_start")},
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as e:
        raise GessoError(
            f"The shard {path} cannot be read ({str(e)[:80]}): delete it and run `gesso encode` "
            f"again, which makes only what is missing."
        ) from None
    if not _consistent(shard):
        raise GessoError(f"The shard {path} contradicts itself: delete it and run `gesso encode`.")
    return shard


def _consistent(s: Shard) -> bool:
    """Offsets must stay inside what they point into, whoever wrote the file."""
    n = len(s)
    captions = sum(map(len, s.captions))
    per_row = [len(c) for c in s.captions]
    return (
        n > 0
        and len(s.captions) == n
        and min(per_row) > 0
        and s.latents.dim() == 4
        and s.latents.numel() > 0
        and len(s.latents) == n
        and s.sizes.shape == (n, 2)
        and s.labels.shape == (n,)
        and torch.equal(s.caption_start, _starts(per_row))
        and s.text_start.shape == (captions + 1,)
        and int(s.text_start[0]) == 0
        and int(s.text_start[-1]) == len(s.text)
        and bool((s.text_start.diff() >= 0).all())
        and (s.pooled is None or len(s.pooled) == captions)
        and (s.control is None or s.control.shape == s.latents.shape)
    )


def merge(shards: list[Shard]) -> Shard:
    """Shards of one bucket as one, in memory."""
    return Shard(
        keys=[k for s in shards for k in s.keys],
        captions=[c for s in shards for c in s.captions],
        latents=torch.cat([s.latents for s in shards]),
        sizes=torch.cat([s.sizes for s in shards]),
        labels=torch.cat([s.labels for s in shards]),
        caption_start=_starts(n for s in shards for n in s.caption_start.diff().tolist()),
        text_start=_starts(n for s in shards for n in s.text_start.diff().tolist()),
        text=torch.cat([s.text for s in shards]),
        pooled=torch.cat([s.pooled for s in shards if s.pooled is not None])
        if shards[0].pooled is not None
        else None,
        control=torch.cat([s.control for s in shards if s.control is not None])
        if shards[0].control is not None
        else None,
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `cache.json` whole or not at all."""
    part = folder / f"{MANIFEST}.part"
    part.write_text(manifest.model_dump_json(indent=1) + "\n")
    replace_file(part, folder / MANIFEST)


def _starts(lengths: Iterable[int]) -> Tensor:
    """[n+1] int64 offsets of n runs laid end to end."""
    return torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int64))


def _to_bytes(value: object) -> Tensor:
    return torch.from_numpy(np.frombuffer(json.dumps(value).encode(), dtype=np.uint8).copy())
