"""A network read from weight files, and built from them strictly; how a PixArt is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gesso.backbones.pixart import Config
from gesso.config import Spec, module, resolve
from gesso.convert import checkpoint, controlnet, pixart, variants
from gesso.convert.checkpoint import Checkpoint
from gesso.convert.families import name_family
from gesso.encoders._weights import fingerprint
from gesso.nn.init import WithoutWeights
from gesso.types import GessoError

METADATA = "gesso"  # key under which converted files carry family and options as JSON
MARKERS = ("t_block.1.weight", "adaln_single.linear.weight")  # of the original, of diffusers


@dataclass
class Network:
    """A network read from published files.

    Attributes:
        state: tensors in gesso's names, of the files' dtype.
        config: the network's options.
        family: of a PixArt, "alpha" or "sigma"; None where nothing tells.
        raw: tensors as the files name them, without prefixes.
        format: of the files.
        fingerprint: over names and sampled values, as the files have them.
        where: the file or folder.
        backbone: name of the architecture.
        adapter: that stays on it and whose tensors are among them, such as a control branch.
    """

    state: dict[str, Tensor]
    config: Any
    family: pixart.Family | None
    format: pixart.Format
    where: str
    raw: Mapping[str, Tensor] = field(default_factory=dict)
    fingerprint: str = ""
    notes: list[str] = field(default_factory=list)
    backbone: str = "pixart"
    adapter: Spec | None = None

    def build(self, dtype: torch.dtype | None = None) -> Any:
        """The network with these weights, cast to `dtype` if given; in evaluation mode.

        Raises:
            GessoError: a tensor is missing, unknown or of another shape (names the first few).
        """
        with WithoutWeights():
            network = module("backbones", self.backbone).build(self.config)
            if self.adapter is not None:
                adapter, options = resolve("adapters", self.adapter)
                adapter.attach(options, network)
        own, kind = network.state_dict(), type(network).__name__
        for problem, keys in (
            ("lacks the tensors", own.keys() - self.state.keys()),
            ("has the tensors", self.state.keys() - own.keys()),
        ):
            if keys:
                known = "" if problem.startswith("lacks") else f", which no {kind} has"
                raise GessoError(
                    f"{self.where} {problem} {pixart.first(keys)}{known}: it is incomplete or of"
                    " another architecture."
                )
        for key, value in self.state.items():
            if value.shape != own[key].shape:
                raise GessoError(
                    f"{self.where}: {key} has shape {tuple(value.shape)} where this {kind} has"
                    f" {tuple(own[key].shape)}: it is corrupt or of another architecture."
                )
        network.load_state_dict({k: v.to(dtype) for k, v in self.state.items()}, assign=True)
        return network.eval()


def read_pixart(files: list[Path], where: str | None = None) -> Checkpoint:
    """The tensors of files, without prefixes.

    Raises:
        GessoError: unreadable, or of another model than a PixArt transformer (says of which).
    """
    found = checkpoint.strip_prefix(checkpoint.read(files, where), MARKERS)
    recognise(found)
    return found


def read_network(
    files: list[Path], hints: variants.Hints, dtype: torch.dtype | None = None
) -> Network:
    """The network in one file, or in the shards of one checkpoint.

    Args:
        files: at least one.
        hints: what is known besides.
        dtype: of its tensors; None keeps the files'.

    Raises:
        GessoError: unreadable, of another model, or not told apart by its tensors.
    """
    found = read_pixart(files, str(files[0] if len(files) == 1 else files[0].parent))
    mark = fingerprint("pixart", found.tensors)
    # Cast before projections are joined: half the bytes to copy, and less memory at the peak.
    found.tensors = {k: v.to(dtype) for k, v in found.tensors.items()}
    network = network_of(found, hints)
    network.fingerprint = mark
    return network


def recognise(found: Checkpoint) -> pixart.Format:
    """The format of a PixArt transformer's tensors, whose prefix is stripped.

    Raises:
        GessoError: they are of another model (says of which).
    """
    format = pixart.format_of_file(found.tensors, found.prefix)
    if format is None:
        other = name_family(found.tensors)
        what = f"is {other}" if other else "has none of a PixArt's tensors"
        raise GessoError(f"{found.where} {what}, not the weights of a PixArt transformer.")
    return format


def network_of(found: Checkpoint, hints: variants.Hints) -> Network:
    """A PixArt network from tensors whose prefix is stripped.

    Raises:
        GessoError: they are of another family (says of which), or do not tell the variant.
    """
    format = recognise(found)
    if METADATA in found.metadata:
        hints = _with_saved(hints, found.metadata[METADATA], found.where)
    positions = found.tensors.get(pixart.POSITIONS)
    convert = pixart.from_diffusers if format == "diffusers" else pixart.from_original
    base, branch = controlnet.split(found.tensors)
    state = convert(base)
    config, family = variants.identify(state, positions, hints, found.where)
    return Network(
        state | branch,
        config,
        family,
        format,
        found.where,
        raw=found.tensors,
        notes=found.notes,
        adapter=controlnet.adapter_of(branch),
    )


def with_branch(network: Network, path: Path) -> Network:
    """A PixArt with the control branch of a file or folder in place of any of its own.

    Raises:
        GessoError: as `gesso.convert.controlnet.read_branch`.
    """
    branch = controlnet.read_branch(path)
    dtype = next(iter(network.state.values())).dtype
    state = controlnet.split(network.state)[0] | {k: v.to(dtype) for k, v in branch.items()}
    where = f"{network.where} with {path}"
    return replace(network, state=state, adapter=controlnet.adapter_of(branch), where=where)


def saved_options(network: Network) -> str:
    """What a converted file says of its network, under the key `METADATA`."""
    return json.dumps({"family": network.family, "pixart": network.config.model_dump()})


def _with_saved(hints: variants.Hints, text: str, where: str) -> variants.Hints:
    try:
        values = json.loads(text)
        config, family = Config(**values["pixart"]), values["family"]
    except (ValueError, TypeError, KeyError):
        raise GessoError(f"{where}: its options under {METADATA!r} are not readable.") from None
    return replace(hints, saved=config, family=hints.family or family)
