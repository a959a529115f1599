"""LoRA files: from tensors and their names to `gesso.nn.low_rank.Layer`s.

A key is PREFIX PATH SUFFIX. Trainers differ in all three: the prefix names the part of the
pipeline, the path is diffusers' or the original's, dotted or with underscores ("flat"), and the
suffix names the factor. docs/lora.md lists who writes what, and how sure that is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gesso.convert.pixart import BLOCK_MODULES, MODULES, diffusers_modules, first, original_module
from gesso.nn.low_rank import Kind, Layer
from gesso.types import GessoError

DOTTED = ("base_model.model.", "unet.", "transformer.", "diffusion_model.", "model.", "module.")
FLAT = ("lora_transformer_", "lora_unet_", "lycoris_")
TEXT = ("lora_te_", "lora_te1_", "text_encoder.", "text_encoders.", "bundle_emb.")
METADATA = "lora_adapter_metadata"  # where diffusers keeps an adapter's configuration

# What stands behind the path, and which factor it is. peft puts the adapter's name, "default", in
# between where a state is saved by hand.
_SUFFIXES: list[tuple[str, Kind | None, str]] = [
    (r"(?:lora_A(?:\.default)?|lora_down|lora\.down)(?:\.weight)?", "lora", "down"),
    (r"(?:lora_B(?:\.default)?|lora_up|lora\.up)(?:\.weight)?", "lora", "up"),
    (r"lora_mid\.weight", "lora", "mid"),
    (r"hada_(w[12]_[ab]|t[12])(?:\.default)?", "loha", ""),
    (r"lokr_(w[12](?:_[ab])?|t2)(?:\.default)?", "lokr", ""),
    (r"alpha", None, "alpha"),
    (r"dora_scale|magnitude|lora_magnitude_vector(?:\.default)?(?:\.weight)?", None, "magnitude"),
]
_KEY = [(re.compile(rf"(.+?)\.(?:{suffix})"), kind, name) for suffix, kind, name in _SUFFIXES]

_NEEDED: dict[Kind, list[set[str]]] = {
    "lora": [{"down", "up"}],
    "loha": [{"w1_a", "w1_b", "w2_a", "w2_b"}],
    "lokr": [{*a, *b} for a in (("w1",), ("w1_a", "w1_b")) for b in (("w2",), ("w2_a", "w2_b"))],
}

_FOREIGN = {
    r"(down|up|mid)_blocks?[._]|(input|output|middle)_blocks?[._]": "a Stable Diffusion UNet",
    r"double_blocks[._]|single_(transformer_)?blocks[._]": "Flux",
    r"joint_(transformer_)?blocks[._]|add_[qkv]_proj": "Stable Diffusion 3 or a relative",
}


@dataclass
class Parsed:
    """What a LoRA file holds.

    Attributes:
        layers: by target and part.
        prefixes: those that its keys have.
        left_out: keys for the text encoder.
        assumed_alpha: nothing said how much the products count: taken once.
    """

    layers: list[Layer]
    prefixes: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    assumed_alpha: bool = False


def is_adapter_key(key: str) -> bool:
    """Whether a tensor of this name is a factor of an adapter (and not, say, a plain weight)."""
    return any(kind is not None and pattern.fullmatch(key) for pattern, kind, _ in _KEY)


def parse(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any] | None,
    where: str,
    own: Container[str] = (),
) -> Parsed:
    """The adapters in a file's tensors.

    Args:
        tensors: as the file names them.
        config: peft's `adapter_config.json`, or what diffusers keeps in the file's metadata.
        where: the file, for messages.
        own: layers that a network has besides PixArt's.

    Raises:
        GessoError: no key fits, a foreign model, an unsupported kind, an incomplete layer.
    """
    found: dict[tuple[str, int, int], dict[str, Any]] = {}
    parsed = Parsed([])
    unknown, unsupported = [], []
    for key, value in tensors.items():
        if key.startswith(TEXT):
            parsed.left_out.append(key)
            continue
        match = _split(key)
        if match is None:
            unsupported.append(key)
            continue
        place = _place(match[0], own)
        if place is None:
            unknown.append(key)
            continue
        prefix, path, address = place
        if prefix not in parsed.prefixes:
            parsed.prefixes.append(prefix)
        entry = found.setdefault(address, {"path": path, "kind": None, "factors": {}})
        _put(entry, match, value, key, where)
    if unknown:
        raise _no_match(unknown, len(tensors), where)
    if unsupported:
        raise GessoError(
            f"{where} holds {first(unsupported)}, which gesso does not read: it reads LoRA, LoHa, "
            "LoKr and DoRA on linear and convolutional layers."
        )
    if not found:
        raise GessoError(f"{where} holds no LoRA for the denoiser: it has {len(tensors)} tensors.")
    for address, entry in sorted(found.items()):
        parsed.layers.append(_layer(address, entry, config, where))
    peft = any(p.endswith("base_model.model.") for p in parsed.prefixes)
    parsed.assumed_alpha = peft and config is None and all(la.alpha is None for la in parsed.layers)
    return parsed


def metadata_config(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    """The adapter's configuration in a safetensors file's metadata, as diffusers writes it."""
    try:
        values = json.loads(metadata.get(METADATA, "null"))
    except ValueError:
        return None
    if not isinstance(values, dict):
        return None
    return {
        key.split(".", 1)[1]: value
        for key, value in values.items()
        if key.startswith(("transformer.", "unet."))
    } or None


def flat(path: str) -> str:
    """A path with underscores for dots."""
    return path.replace(".", "_")


def _split(key: str) -> tuple[str, Kind | None, str] | None:
    """(prefix and path, kind, factor) of a key."""
    for pattern, kind, name in _KEY:
        match = pattern.fullmatch(key)
        if match:
            return match[1], kind, name or match[2]
    return None


def _place(path: str, own: Container[str]) -> tuple[str, str, tuple[str, int, int]] | None:
    """(prefix, diffusers' or original path, (layer, part, parts)) of a prefixed path."""
    prefix = ""
    flattened = re.sub("__+", "_", path)  # as old versions of ai-toolkit write it
    for start in FLAT:
        if "." not in path and flattened.startswith(start):
            unflat = _unflatten(flattened.removeprefix(start))
            return None if unflat is None else (start, unflat, _address(unflat))
    while start := next((p for p in DOTTED if path.startswith(p)), ""):
        prefix, path = prefix + start, path.removeprefix(start)
    if original_module(path) is None and diffusers_modules(path) is None and path not in own:
        return None
    return prefix, path, _address(path)


def _address(path: str) -> tuple[str, int, int]:
    return original_module(path) or (path, 0, 1)


_OUTSIDE = {flat(name): name for table in (MODULES, *MODULES.values()) for name in table if name}
_INSIDE = {
    flat(name): name for table in (BLOCK_MODULES, *BLOCK_MODULES.values()) for name in table if name
}


def _unflatten(path: str) -> str | None:
    block = re.fullmatch(r"((?:transformer_)?blocks)_(\d+)_(.+)", path)
    if block is None:
        return _OUTSIDE.get(path)
    inside = _INSIDE.get(block[3])
    return inside and f"{block[1]}.{block[2]}.{inside}"


def _put(
    entry: dict[str, Any], match: tuple[str, Kind | None, str], value: Tensor, key: str, where: str
) -> None:
    _, kind, name = match
    if kind is None:
        if name == "magnitude" and not key.endswith(".dora_scale"):
            value = _per_output(value)
        known = entry.setdefault(name, value)
    else:
        if entry["kind"] not in (None, kind):
            raise GessoError(f"{where}: {entry['path']} is {entry['kind']} and {kind} at once.")
        entry["kind"] = kind
        known = entry["factors"].setdefault(name, value)
    if known is not value and not torch.equal(known, value):
        raise GessoError(
            f"{where} holds two different adapters of {entry['path']}: give one file a LoRA."
        )


def _per_output(magnitude: Tensor) -> Tensor:
    """peft's [o] or [1, o, 1, 1] -> [o, 1] or [o, 1, 1, 1]."""
    return magnitude[:, None] if magnitude.dim() == 1 else magnitude.transpose(0, 1)


def _layer(
    address: tuple[str, int, int],
    entry: dict[str, Any],
    config: Mapping[str, Any] | None,
    where: str,
) -> Layer:
    kind, factors, path = entry["kind"], entry["factors"], entry["path"]
    if kind is None or not any(needed <= factors.keys() for needed in _NEEDED[kind]):
        has = ", ".join(sorted(factors)) or "alpha or magnitude"
        raise GessoError(f"{where} has only {has} of the adapter of {path}: it is incomplete.")
    if min(factor.dim() for factor in factors.values()) < 2 or (
        "alpha" in entry and entry["alpha"].numel() != 1
    ):
        raise GessoError(
            f"{where}: the adapter of {path} has tensors of wrong shapes: it is broken."
        )
    numbers = [*factors.values(), *(entry[k] for k in ("alpha", "magnitude") if k in entry)]
    if not all(bool(tensor.isfinite().all()) for tensor in numbers):
        raise GessoError(
            f"{where}: the adapter of {path} holds NaN or infinity: its training failed."
        )
    whole = kind == "lokr" and {"w1", "w2"} <= factors.keys()
    rank = 1
    if not whole:
        inner = {"lora": "down", "loha": "w1_b"}.get(kind)
        rank = factors[inner or next(n for n in ("w2_b", "w1_b") if n in factors)].shape[0]
    alpha, stabilised = None, False
    if "alpha" in entry:
        alpha = float(entry["alpha"]) or None  # 0 stands for the rank
        if whole and alpha is not None:
            # LyCORIS counts a Kronecker product of two whole factors once: alpha is its rank.
            rank, alpha = max(1, round(alpha)), float(max(1, round(alpha)))
    elif config is not None:
        given = config.get("lora_alpha" if kind == "lora" else "alpha", 8)
        alpha = float(_pattern(config.get("alpha_pattern"), path, given))
        stabilised = bool(config.get("use_rslora"))
        if whole:
            rank = int(_pattern(config.get("rank_pattern"), path, config.get("r", 8)))
    magnitude = entry.get("magnitude")
    if magnitude is not None and "down" in factors and magnitude.dim() < factors["down"].dim():
        magnitude = magnitude.view(*magnitude.shape, *[1] * (factors["down"].dim() - 2))
    return Layer(
        target=address[0],
        kind=kind,
        factors=factors,
        rank=rank,
        alpha=alpha,
        rank_stabilised=stabilised,
        magnitude=magnitude,
        part=address[1:],
    )


def _pattern(patterns: Mapping[str, Any] | None, path: str, default: Any) -> Any:
    """peft's rule: the first key that is the path's end, as a regular expression."""
    for key, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({key})$", path):
            return value
    return default


def _no_match(unknown: list[str], total: int, where: str) -> GessoError:
    for pattern, model in _FOREIGN.items():
        if any(re.search(pattern, key) for key in unknown):
            return GessoError(
                f"{where} is a LoRA for {model}, not for PixArt ({first(unknown, 1)}): use one "
                "made for this model."
            )
    some = "None" if len(unknown) == total else f"{len(unknown)} of the {total}"
    return GessoError(
        f"{some} of the keys of {where} name a layer of PixArt, such as {first(unknown, 3)}: known "
        f"prefixes are {', '.join((*DOTTED, *FLAT))}, or none."
    )
