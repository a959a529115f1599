"""Reading weight files that others wrote, without running anything in them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gesso.types import GessoError

PREFIXES = ("module.", "base_model.", "model.", "diffusion_model.", "net.", "transformer.")
"""What trainers and ComfyUI put before names, alone or one after the other."""

OTHER_PARTS = ("vae.", "first_stage_model.", "cond_stage_model.", "text_encoders.", "text_encoder.")
"""Prefixes of what else lies in files of whole pipelines."""

WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")


@dataclass
class Checkpoint:
    """The tensors of one network, as its file names them.

    Attributes:
        tensors: without prefixes; on the CPU, mapped from the file where that is possible.
        where: file or folder, for messages.
        prefix: what stood before the names.
        metadata: text that the file carries besides.
        notes: one sentence each on choices that were made.
    """

    tensors: dict[str, Tensor]
    where: str
    prefix: str = ""
    metadata: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read(files: list[Path], where: str | None = None) -> Checkpoint:
    """Read one file, or the shards of one checkpoint.

    Of a training checkpoint the averaged weights (`state_dict_ema`) are taken, and optimiser,
    scheduler and step are left alone.

    Raises:
        GessoError: missing, truncated or corrupt file, one that would run code, no tensors.
    """
    where = where or str(files[0])
    found = Checkpoint({}, where)
    for file in files:
        part = _read_file(file)
        found.tensors.update(part.tensors)
        found.metadata.update(part.metadata)
        found.notes += part.notes
    if not found.tensors:
        raise GessoError(f"{where} holds no tensors: give a file of weights.")
    return found


def strip_prefix(checkpoint: Checkpoint, markers: Iterable[str]) -> Checkpoint:
    """Drop the prefix that stands before one of the marker tensors, and other parts of a pipeline.

    The prefix must consist of `PREFIXES`. What has not got it, and is no other part, stays under
    its name, so that strict loading reports it.
    """
    prefixes = [
        key.removesuffix(marker)
        for marker in markers
        for key in checkpoint.tensors
        if key.endswith(marker) and _known_prefix(key.removesuffix(marker))
    ]
    if not prefixes:
        return checkpoint
    prefix = checkpoint.prefix = min(prefixes, key=len)
    checkpoint.tensors = {
        key.removeprefix(prefix): value
        for key, value in checkpoint.tensors.items()
        if key.startswith(prefix) or not key.startswith(OTHER_PARTS)
    }
    return checkpoint


def _known_prefix(prefix: str) -> bool:
    while prefix:
        known = next((p for p in PREFIXES if prefix.startswith(p)), None)
        if known is None:
            return False
        prefix = prefix.removeprefix(known)
    return True


def weight_files(folder: Path) -> list[Path]:
    """The files of the one checkpoint in a folder of diffusers or transformers; [] if none.

    Safetensors go before pickles and full precision before variants (`*.fp16.*`).

    Raises:
        GessoError: an index that names files that are not there (a half-finished download).
    """
    for suffix in (".safetensors", ".bin"):
        for index in sorted(folder.glob(f"*{suffix}.index*.json"), key=lambda p: len(p.name)):
            names = sorted(set(read_json(index).get("weight_map", {}).values()))
            absent = [n for n in names if not (folder / n).is_file()]
            if absent:
                raise GessoError(
                    f"{folder} is half-downloaded: {len(absent)} of {len(names)} weight files are"
                    f" missing, the first {absent[0]}; download it again."
                )
            return [folder / n for n in names]
        single = [p for p in folder.glob(f"*{suffix}") if "-of-" not in p.name]
        if single:
            return [min(single, key=lambda p: (len(p.name), p.name))]
    return []


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        GessoError: no such file, or no JSON object.
    """
    try:
        values = json.loads(file.read_text())
    except FileNotFoundError:
        raise GessoError(f"{file} is missing: the folder is incomplete, get it again.") from None
    except (ValueError, OSError) as e:
        raise GessoError(f"{file} is not readable JSON ({e}): get it again.") from None
    if not isinstance(values, dict):
        raise GessoError(f"{file} holds no JSON object: get it again.")
    return values


def _read_file(file: Path) -> Checkpoint:
    try:
        with file.open("rb") as f:
            head = f.read(64)
    except OSError as e:
        raise GessoError(f"{file} cannot be read: {e.strerror}.") from None
    if head.startswith(b"version https://git-lfs"):
        raise GessoError(f"{file} is a Git LFS pointer, not the weights: fetch the real file.")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise GessoError(f"{file} is a web page, not weights: download the file itself.")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    return _read_pickle(file)


def _read_safetensors(file: Path) -> Checkpoint:
    try:
        with safe_open(file, framework="pt") as f:
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118
            return Checkpoint(tensors, str(file), metadata=f.metadata() or {})
    except (SafetensorError, OSError) as e:
        raise GessoError(
            f"{file} is truncated or not a safetensors file ({e}): download or save it again."
        ) from None


def _read_pickle(file: Path) -> Checkpoint:
    """A torch file under `weights_only`: tensors and plain containers are built, nothing is run.

    Zip files are mapped into memory instead of read.
    """
    try:
        try:
            values = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as e:
            if "mmap" not in str(e):  # the older format cannot be mapped
                raise
            values = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        refused = str(e).partition("GLOBAL ")[2].split(" ")[0]
        if refused:
            raise GessoError(
                f"{file} holds {refused}, which only running code could rebuild; gesso runs none:"
                " save the weights as safetensors."
            ) from None
        raise _corrupt(file, e) from None
    except Exception as e:  # a broken archive raises whatever its reader happens to stumble on
        raise _corrupt(file, e) from None
    return _of_training(values, file)


def _corrupt(file: Path, e: Exception) -> GessoError:
    said = (str(e).strip().splitlines() or [type(e).__name__])[0][:120].rstrip(".:")
    return GessoError(f"{file} is truncated or no torch file ({said}): download it again.")


def _of_training(values: Any, file: Path) -> Checkpoint:
    """The weights in what `torch.load` returned: a table of tensors, or a training checkpoint."""
    found = Checkpoint({}, str(file))
    if isinstance(values, Mapping):
        found.metadata = {k: v for k, v in values.items() if isinstance(v, str)}
        averaged, trained = values.get("state_dict_ema"), values.get("state_dict")
        if isinstance(averaged, Mapping) and averaged:
            found.notes.append(f"{file}: took the averaged weights, state_dict_ema.")
            values = dict(averaged)
            # The authors' trainer averages parameters only, so this buffer stays random there.
            for key, value in (trained or {}).items():
                if key.endswith("y_embedder.y_embedding"):
                    values[key] = value
        elif isinstance(trained, Mapping):
            values = trained
        found.tensors = {str(k): v for k, v in values.items() if isinstance(v, Tensor)}
    return found
