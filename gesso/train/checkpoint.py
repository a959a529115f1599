"""Checkpoints that a kill or a full disk cannot break.

A checkpoint is a model folder (the averaged weights, loadable on its own) with `state/` beside:
    state/weights.safetensors    the live weights and buffers of every role
    state/ema.safetensors        their moving averages
    state/optimizer.safetensors  moments and counters, keys `phase|parameter|entry`
    state/state.json             step, seconds and what else is a number

It is written under another name, synced to the disk and renamed, so a folder called `step-...` is
always whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from gesso.model import Model, read_tensors
from gesso.types import GessoError

FOLDER = "checkpoints"
TEMPORARY = ".tmp-"
FORMAT = 1
TENSORS = ("weights", "ema", "optimizer")


@dataclass
class State:
    """What a training needs to go on as if it had never stopped.

    Attributes:
        numbers: JSON values: step, seconds, ...
        weights, ema, optimizer: tensors by name.
    """

    numbers: dict[str, Any]
    weights: Mapping[str, Tensor]
    ema: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


def checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = [p for p in (run / FOLDER).glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step-")))


def save(run: Path, model: Model, state: State, keep: int) -> Path:
    """Write a checkpoint and remove all but the last `keep`.

    Args:
        run: the run's folder.
        model: holding the averaged weights.
        keep: at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        GessoError: it could not be written (a full disk); earlier checkpoints are untouched.
    """
    parent = run / FOLDER
    step = state.numbers["step"]
    final = parent / f"step-{step:06d}"
    temporary = parent / f"{TEMPORARY}{final.name}"
    try:
        clean(run)
        (temporary / "state").mkdir(parents=True)
        model.save(temporary, step=step)
        _write_state(temporary / "state", state)
        for file in temporary.rglob("*"):
            _sync(file)
        temporary.rename(final)
        _sync(parent)
    except (OSError, SafetensorError) as e:
        shutil.rmtree(temporary, ignore_errors=True)
        last = next(reversed(checkpoints(run)), None)
        intact = f"{last} is intact" if last else "there is no earlier one"
        raise GessoError(
            f"The checkpoint {final} could not be written ({e}); {intact}: free some space."
        ) from e
    for old in checkpoints(run)[: -max(1, keep)]:
        # Renamed first, so that a kill in the middle leaves no half-deleted checkpoint.
        old.rename(parent / f"{TEMPORARY}old-{old.name}")
    clean(run)
    return final


def load(folder: Path) -> State:
    """Read a checkpoint's `state/`.

    Raises:
        GessoError: a file is missing or damaged.
    """
    file = folder / "state" / "state.json"
    try:
        numbers = json.loads(file.read_text())
        if numbers.pop("format") > FORMAT:
            raise GessoError(f"{file} was written by a newer gesso: upgrade gesso to resume it.")
    except (OSError, ValueError, KeyError):
        raise GessoError(
            f"{file} is missing or damaged: delete {folder} to resume from the one before."
        ) from None
    parts = [read_tensors(folder / "state" / f"{k}.safetensors") for k in TENSORS]
    return State(numbers, *parts)


def clean(run: Path) -> None:
    """Remove what an interrupted save or removal left behind."""
    for stale in (run / FOLDER).glob(f"{TEMPORARY}*"):
        shutil.rmtree(stale, ignore_errors=True)


def restore(into: Mapping[str, Tensor], state: Mapping[str, Tensor], where: str) -> None:
    """Copy tensors in place, strictly.

    Raises:
        GessoError: a tensor is missing, left over or of another shape; names it.
    """
    for what, keys in (("lacks", into.keys() - state.keys()), ("has", state.keys() - into.keys())):
        if keys:
            some = ", ".join(sorted(keys)[:4]) + (", ..." if len(keys) > 4 else "")
            extra = "" if what == "lacks" else ", which this model does not have"
            raise GessoError(f"{where} {what} the tensors {some}{extra}: resume with its recipe.")
    for key, target in into.items():
        if state[key].shape != target.shape:
            raise GessoError(
                f"{where}: {key} has shape {tuple(state[key].shape)} where the model has "
                f"{tuple(target.shape)}: resume with its recipe."
            )
        with torch.no_grad():
            target.copy_(state[key])


def _write_state(folder: Path, state: State) -> None:
    for part in TENSORS:
        tensors = getattr(state, part)
        save_file(
            {k: v.detach().cpu().contiguous() for k, v in tensors.items()},
            folder / f"{part}.safetensors",
        )
    (folder / "state.json").write_text(json.dumps({"format": FORMAT, **state.numbers}, indent=1))


def _sync(path: Path) -> None:
    """Have the disk hold what was written to a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
