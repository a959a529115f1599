"""PixArt's control branch in published names, to gesso's and back.

Formats:
    original    `controlnet.{i}.copied_block.*`, `.after_proj`, `controlnet.0.before_proj`: gesso's
                own names within the backbone. The backbone lies beside them, behind `base_model.`
    diffusers   the research example's adapter, a model of its own: `controlnet_blocks.{i}.*`, with
                `transformer_block` in diffusers' names for `copied_block`
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from gesso.config import Spec
from gesso.convert import checkpoint, pixart
from gesso.types import GessoError

BASE = "base_model."
BRANCH = "controlnet."
THEIRS = re.compile(r"controlnet_blocks\.(\d+)\.(transformer_block\.)?(.+)")
OURS = re.compile(r"controlnet\.(\d+)\.(copied_block|after_proj|before_proj)\..+")


def split(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of a backbone in any format, and those of its branch in gesso's names."""
    branch = {k: v for k, v in tensors.items() if k.startswith(BRANCH)}
    return {k: v for k, v in tensors.items() if k not in branch}, branch


def adapter_of(branch: Mapping[str, Tensor]) -> Spec | None:
    """The adapter that these tensors belong to, None for none; published ones have its wiring."""
    if not branch:
        return None
    numbers = {int(m[1]) for k in branch if (m := OURS.fullmatch(k))}
    return {
        "name": "controlnet",
        "condition": None,
        "blocks": max(1, len(numbers)),
        "wiring": "released",
    }


def from_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A branch in gesso's names. What has no counterpart stays as it is.

    Raises:
        GessoError: one of the slices of a joined projection is missing.
    """
    blocks: dict[str, Tensor] = {}
    branch: dict[str, Tensor] = {}
    for key, value in tensors.items():
        found = THEIRS.fullmatch(key)
        if found is None:
            branch[key] = value
        elif found[2]:
            blocks[f"transformer_blocks.{found[1]}.{found[3]}"] = value
        else:
            branch[f"{BRANCH}{found[1]}.{found[3]}"] = value
    for key, value in pixart.from_diffusers(blocks).items():
        _, number, rest = key.split(".", 2)
        branch[f"{BRANCH}{number}.copied_block.{rest}"] = value
    return branch


def to_diffusers(branch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The research example's tensors of a branch in gesso's names."""
    tensors: dict[str, Tensor] = {}
    blocks: dict[str, Tensor] = {}
    for key, value in branch.items():
        _, number, part, rest = key.split(".", 3)
        if part == "copied_block":
            blocks[f"blocks.{number}.{rest}"] = value
        else:
            tensors[f"controlnet_blocks.{number}.{part}.{rest}"] = value
    for key, value in pixart.to_diffusers(blocks).items():
        _, number, rest = key.split(".", 2)
        tensors[f"controlnet_blocks.{number}.transformer_block.{rest}"] = value
    return tensors


def read_branch(path: Path) -> dict[str, Tensor]:
    """The branch in a file or folder of either format, in gesso's names; a backbone is left out.

    Raises:
        GessoError: nothing there, unreadable, or no control branch.
    """
    if not path.exists():
        raise GessoError(f"There is no file or folder {path} of a control branch: correct it.")
    files = [path] if path.is_file() else checkpoint.weight_files(path)
    if not files:
        raise GessoError(f"{path} holds no weights of a control branch: complete the download.")
    tensors = checkpoint.read(files, str(path)).tensors
    theirs = any(THEIRS.fullmatch(k) for k in tensors)
    branch = from_diffusers(tensors) if theirs else split(tensors)[1]
    if not branch:
        raise GessoError(f"{path} holds no control branch: its tensors have other names.")
    return branch
