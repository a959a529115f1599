"""A Stable Diffusion 3 or 3.5 transformer read from weight files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gesso.backbones.mmdit import Config
from gesso.convert import checkpoint, sd3
from gesso.convert.checkpoint import Checkpoint
from gesso.convert.families import name_family
from gesso.convert.network import METADATA, Network
from gesso.encoders._weights import fingerprint
from gesso.types import GessoError

FAMILY = "Stable Diffusion 3"  # as `name_family` calls it


def read_network(
    files: list[Path],
    transformer: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    where: str | None = None,
) -> Network:
    """The network in one file, or in the shards of one checkpoint.

    Of a file of a whole pipeline the transformer is taken.

    Args:
        files: at least one.
        transformer: diffusers' `config.json`; None for the authors' files.
        dtype: of its tensors; None keeps the files'.
        where: what to call them in messages.

    Raises:
        GessoError: unreadable, of another model (says of which), or no complete one.
    """
    where = where or str(files[0] if len(files) == 1 else files[0].parent)
    found = checkpoint.strip_prefix(checkpoint.read(files, where), sd3.MARKERS)
    format = sd3.format_of(found.tensors)
    if format is None:
        what = (
            f"is {family}" if (family := name_family(found.tensors)) else "has none of its tensors"
        )
        raise GessoError(f"{where} {what}, not the weights of a Stable Diffusion 3 transformer.")
    mark = fingerprint("mmdit", found.tensors)
    found.tensors = {k: v.to(dtype) for k, v in found.tensors.items()}
    convert = sd3.from_diffusers if format == "diffusers" else sd3.from_original
    state, table = convert(found.tensors), found.tensors.get(sd3.POSITIONS[format])
    config = _saved(found) or sd3.identify(state, table, transformer, where)
    comfyui = format == "original" and found.prefix.endswith("diffusion_model.")
    return Network(
        state,
        config,
        None,
        "comfyui" if comfyui else format,
        where,
        raw=found.tensors,
        fingerprint=mark,
        notes=found.notes,
        backbone="mmdit",
    )


def saved_options(network: Network) -> str:
    """What a converted file says of its network, under the key `METADATA`."""
    return json.dumps({"mmdit": network.config.model_dump()})


def _saved(found: Checkpoint) -> Config | None:
    """The options that gesso wrote into a file that it converted."""
    if METADATA not in found.metadata:
        return None
    try:
        return Config(**json.loads(found.metadata[METADATA])["mmdit"])
    except (ValueError, TypeError, KeyError):
        raise GessoError(
            f"{found.where}: its options under {METADATA!r} are not readable."
        ) from None
