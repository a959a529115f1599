"""Checkpoints that a kill or a full disk cannot break.

A checkpoint is a model folder (the averaged weights, loadable on its own) with `state/` beside:
    state/weights.safetensors    the live weights and buffers of every role
    state/ema.safetensors        their moving averages
    state/optimizer.safetensors  moments and counters, keys `phase|parameter|entry`
    state/state.json             step, seconds and what else is a number
A sharded training writes `weights-0-of-2.safetensors` and so on, one file a process, each with its
pieces of the tensors. The header says where a piece begins, under the key and in the form that
torch.distributed.checkpoint gives its own safetensors files, whose reader therefore reads these.
Any number of processes loads what any other number has saved.

It is written under another name, synced to the disk and renamed, so a folder called `step-...` is
always whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gesso.train.sharding import local, offset
from gesso.types import GessoError

FOLDER = "checkpoints"
TEMPORARY = ".tmp-"
FORMAT = 1
PARTS = ("weights", "ema", "optimizer")
OFFSETS = "DCP_SHARDING_INFO"  # torch.distributed.checkpoint's name in a header for ...
START = "saved_offsets"  # ... where the file's piece of a tensor begins


@dataclass(frozen=True)
class Piece:
    """A tensor, or this process's part of one.

    Attributes:
        tensor: plain.
        start: where it begins in the whole, along each dimension.
    """

    tensor: Tensor
    start: tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """A tensor in a checkpoint, read when it is asked for.

    Attributes:
        shape: of the whole.
        pieces: file, start and shape of each piece.
    """

    key: str
    shape: tuple[int, ...]
    pieces: tuple[tuple[Path, tuple[int, ...], tuple[int, ...]], ...]

    def read(self, start: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """A part of it, put together from the pieces that have some.

        Raises:
            GessoError: a file is damaged, or the pieces leave a gap.
        """
        found = None
        missing = torch.Size(shape).numel()
        for file, begin, extent in self.pieces:
            low = [max(a, b) for a, b in zip(start, begin, strict=True)]
            high = [
                min(a + n, b + m) for a, n, b, m in zip(start, shape, begin, extent, strict=True)
            ]
            if any(h <= b for b, h in zip(low, high, strict=True)):
                continue
            there = tuple(slice(b - o, h - o) for b, h, o in zip(low, high, begin, strict=True))
            here = tuple(slice(b - o, h - o) for b, h, o in zip(low, high, start, strict=True))
            value = _read(file, self.key, there)
            if found is None:
                found = torch.empty(shape, dtype=value.dtype)
            found[here] = value
            missing -= value.numel()
        if missing:
            files = ", ".join(str(file) for file, _, _ in self.pieces)
            raise GessoError(f"The pieces of {self.key} in {files} leave a gap: a file is missing.")
        return torch.empty(shape) if found is None else found

    def whole(self) -> Tensor:
        """All of it."""
        return self.read((0,) * len(self.shape), self.shape)


@dataclass
class State:
    """What a training needs to go on as if it had never stopped.

    Attributes:
        numbers: JSON values: step, seconds, ...
        weights, ema, optimizer: tensors by name.
    """

    numbers: dict[str, Any]
    weights: Mapping[str, Stored]
    ema: Mapping[str, Stored]
    optimizer: Mapping[str, Stored]


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [p for p in (run / FOLDER).glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
    return sorted(found, key=number)


def number(checkpoint: Path) -> int:
    """The step of a checkpoint."""
    return int(checkpoint.name.removeprefix("step-"))


def temporary(run: Path, step: int) -> Path:
    """Where a checkpoint is written."""
    return run / FOLDER / f"{TEMPORARY}{name(step)}"


def name(step: int) -> str:
    return f"step-{step:06d}"


def write(folder: Path, parts: Mapping[str, Mapping[str, Piece]], shard: tuple[int, int]) -> None:
    """Write this process's pieces into `state/`, and have the disk hold them.

    Args:
        folder: as `temporary` gives it; made if it is not there.
        parts: weights, ema and optimizer.
        shard: (this process, how many write pieces).

    Raises:
        OSError: a full disk, ...; names the file.
    """
    (folder / "state").mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        pieces = {k: p for k, p in parts[part].items() if p.tensor.numel() or not p.start}
        starts = {k: {START: list(p.start)} for k, p in pieces.items()}
        file = folder / "state" / _file(part, *shard)
        tensors = {k: p.tensor.detach().cpu().contiguous() for k, p in pieces.items()}
        header = {OFFSETS: json.dumps(starts)} if shard[1] > 1 else None
        try:
            save_file(tensors, file, metadata=header)
            sync(file)
        except (OSError, SafetensorError) as e:
            raise OSError(f"{file.name}: {e}") from e


def commit(run: Path, numbers: Mapping[str, Any], shards: int, keep: int, keep_every: int) -> Path:
    """Make a written checkpoint the newest one, and remove those that are not kept.

    Args:
        run: the run's folder.
        numbers: `step` and what else is a number.
        shards: how many processes have written pieces.
        keep: so many of the last ones stay; at least 1.
        keep_every: those of steps divisible by this stay for good; 0: none.

    Raises:
        OSError: a full disk, ...
    """
    parent, folder = run / FOLDER, temporary(run, numbers["step"])
    final = parent / name(numbers["step"])
    values = {"format": FORMAT, "shards": shards, **numbers}
    (folder / "state" / "state.json").write_text(json.dumps(values, indent=1))
    for file in folder.rglob("*"):
        sync(file)
    folder.rename(final)
    sync(parent)
    for old in checkpoints(run)[: -max(1, keep)]:
        if not (keep_every and number(old) % keep_every == 0):
            # Renamed first, so that a kill in the middle leaves no half-deleted checkpoint.
            stale = parent / f"{TEMPORARY}old-{old.name}"
            with suppress(OSError):  # the new one is whole, whatever becomes of the old
                old.rename(stale)
            shutil.rmtree(stale, ignore_errors=True)
    return final


def load(folder: Path) -> State:
    """Open a checkpoint's `state/`; tensors are read when they are asked for.

    Raises:
        GessoError: a file is missing or damaged.
    """
    file = folder / "state" / "state.json"
    try:
        numbers = json.loads(file.read_text())
        if numbers.pop("format") > FORMAT:
            raise GessoError(f"{file} was written by a newer gesso: upgrade gesso to resume it.")
        shards = int(numbers.pop("shards", 1))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise GessoError(
            f"{file} is missing or damaged: delete {folder} to resume from the one before."
        ) from None
    return State(numbers, *(_open(folder / "state", part, shards) for part in PARTS))


def clean(run: Path) -> None:
    """Remove what an interrupted save or removal left behind."""
    for stale in (run / FOLDER).glob(f"{TEMPORARY}*"):
        shutil.rmtree(stale, ignore_errors=True)


def restore(into: Mapping[str, Tensor], state: Mapping[str, Stored], where: str) -> None:
    """Copy tensors in place, strictly; of a sharded one this process's piece.

    Raises:
        GessoError: a tensor is missing, left over or of another shape; names it.
    """
    for what, keys in (("lacks", into.keys() - state.keys()), ("has", state.keys() - into.keys())):
        if keys:
            some = ", ".join(sorted(keys)[:4]) + (", ..." if len(keys) > 4 else "")
            extra = "" if what == "lacks" else ", which this model does not have"
            raise GessoError(f"{where} {what} the tensors {some}{extra}: resume with its recipe.")
    for key, target in into.items():
        if state[key].shape != tuple(target.shape):
            raise GessoError(
                f"{where}: {key} has shape {state[key].shape} where the model has "
                f"{tuple(target.shape)}: resume with its recipe."
            )
        piece = local(target)
        with torch.no_grad():
            piece.copy_(state[key].read(offset(target), tuple(piece.shape)))


def sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _file(part: str, shard: int, shards: int) -> str:
    return f"{part}-{shard}-of-{shards}.safetensors" if shards > 1 else f"{part}.safetensors"


def _open(folder: Path, part: str, shards: int) -> dict[str, Stored]:
    """The tensors of a part, by key, over all its files."""
    pieces: dict[str, list[tuple[Path, tuple[int, ...], tuple[int, ...]]]] = {}
    for shard in range(shards):
        file = folder / _file(part, shard, shards)
        if not file.is_file():
            raise GessoError(f"{file} is missing: delete {folder.parent} to resume from another.")
        try:
            with safe_open(file, framework="pt") as f:
                starts = json.loads((f.metadata() or {}).get(OFFSETS, "{}"))
                for key in f.keys():  # noqa: SIM118
                    shape = tuple(f.get_slice(key).get_shape())
                    start = tuple(starts[key][START]) if starts else (0,) * len(shape)
                    if len(start) != len(shape):
                        raise ValueError(f"the header contradicts itself about {key}")
                    pieces.setdefault(key, []).append((file, start, shape))
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as e:
            raise _damaged(file, e) from None
    return {key: Stored(key, _extent(found), tuple(found)) for key, found in pieces.items()}


def _extent(pieces: list[tuple[Path, tuple[int, ...], tuple[int, ...]]]) -> tuple[int, ...]:
    """The shape that pieces reach to."""
    ends = [[s + n for s, n in zip(start, shape, strict=True)] for _, start, shape in pieces]
    return tuple(max(sizes) for sizes in zip(*ends, strict=True))


def _read(file: Path, key: str, part: tuple[slice, ...]) -> Tensor:
    try:
        with safe_open(file, framework="pt") as f:
            value: Tensor = f.get_slice(key)[part] if part else f.get_tensor(key)
        return value
    except (SafetensorError, OSError) as e:
        raise _damaged(file, e) from None


def _damaged(file: Path, why: Exception) -> GessoError:
    return GessoError(
        f"{file} is truncated or not a safetensors file ({why}): delete {file.parents[1]} to "
        "resume from the one before."
    )
