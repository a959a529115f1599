"""Which PixArt a table of tensors belongs to: its size, its positions, its family.

Widths, depth, micro-conditions and compression are read from the tensors. Heads and positions leave
no trace in them: these come from a config, from the user, or from the two buffers of the original
(the position table and the null caption) where only one published model has both.

Dims: D width, N positions of the training grid.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gesso.backbones.pixart import SIZES, Config
from gesso.config import validate
from gesso.convert.pixart import BLOCK, NULL, POSITIONS, Family
from gesso.nn.position import sincos_2d
from gesso.types import GessoError

PUBLISHED = {name: size for name, size in SIZES.items() if name != "demo"}
MAX_TOKENS: dict[Family, int] = {"alpha": 120, "sigma": 300}  # and rows of the null caption
TOKENS = {tokens: family for family, tokens in MAX_TOKENS.items()}
HEAD_WIDTH = 72  # of every published PixArt


@dataclass
class Hints:
    """What is known of a model besides its tensors.

    Attributes:
        variant: a name of `SIZES`, as the user gave it.
        family: by the class of the pipeline that the weights lie in.
        transformer: diffusers' `config.json` of the transformer.
        saved: gesso's own options, which it writes into files that it converts.
    """

    variant: str | None = None
    family: Family | None = None
    transformer: Mapping[str, Any] | None = None
    saved: Config | None = None


def identify(
    state: Mapping[str, Tensor], positions: Tensor | None, hints: Hints, where: str
) -> tuple[Config, Family | None]:
    """The options of the network that these tensors belong to, and its family.

    Args:
        state: tensors in gesso's names.
        positions: the original's position table [1, N, D], if the file has one.
        where: the file, for messages.

    Returns:
        options, and "alpha" or "sigma", None where nothing tells (see `need_family`).

    Raises:
        GessoError: the tensors fit no PixArt, contradict a hint, or do not suffice.
    """
    if hints.variant is not None and hints.variant not in PUBLISHED:
        raise GessoError(
            f"There is no variant {hints.variant!r}: use one of {', '.join(PUBLISHED)}."
        )
    read = _read_off(state, where)
    if hints.saved is not None:
        config = hints.saved.model_copy(update=read)
    elif hints.transformer is not None:
        told = _from_diffusers_config(hints.transformer, read, where)
        config = validate(Config, read | told, where)
    else:
        config = validate(Config, read | _geometry(read, positions, hints.variant, where), where)
    if hints.variant is not None:
        _check_variant(hints.variant, config, where)
    return config, _family(config, hints)


def _family(config: Config, hints: Hints) -> Family | None:
    if hints.variant is not None:
        return TOKENS[PUBLISHED[hints.variant].null_tokens]
    if hints.family is not None:
        return hints.family
    if config.null_tokens in TOKENS:
        return TOKENS[config.null_tokens]
    if config.micro_conditions:
        return "alpha"
    families = {TOKENS[size.null_tokens] for size in _at_the_place_of(config).values()}
    return families.pop() if len(families) == 1 else None


def _check_variant(variant: str, config: Config, where: str) -> None:
    """Refuse a variant that the file contradicts."""
    size, rows = PUBLISHED[variant], config.null_tokens
    alike = _at_the_place_of(config)
    if size.micro_conditions != config.micro_conditions:
        has = "has" if config.micro_conditions else "lacks"
        problem = f"it {has} the tensors of micro-conditions (csize_embedder, ar_embedder)"
    elif rows and rows != size.null_tokens:
        problem = f"its null caption {NULL} has {rows} rows, not {size.null_tokens}"
    elif alike and variant not in alike:
        scale = config.interpolation_scale
        problem = f"its position grid is {config.base_size} a side, scaled by {scale:g}"
    else:
        return
    raise GessoError(f"{where} is not the variant {variant}: {problem}.")


def need_family(family: Family | None, config: Config, where: str) -> Family:
    """The family, which settles how many tokens a prompt has.

    Raises:
        GessoError: unknown; names the flag that settles it.
    """
    if family is not None:
        return family
    raise _ask_for_variant(where, list(_at_the_place_of(config)) or ["xl-512", "sigma-512"])


def _read_off(state: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The options that the tensors' shapes tell."""

    def shape(key: str, dims: int) -> torch.Size:
        if key not in state:
            raise GessoError(f"{where} lacks the tensor {key}: it is no complete PixArt.")
        if state[key].dim() != dims:
            raise GessoError(f"{where}: {key} has shape {tuple(state[key].shape)}.")
        return state[key].shape

    dim, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    numbers = {int(m[1]) for k in state if (m := BLOCK.match(k))}
    compressed = sorted(
        int(k.split(".")[1]) for k in state if re.fullmatch(r"blocks\.\d+\.attn\.sr\.weight", k)
    )
    read: dict[str, Any] = {
        "depth": len(numbers),
        "hidden_size": dim,
        "patch_size": patch,
        "in_channels": channels,
        "text_dim": shape("y_embedder.y_proj.fc1.weight", 2)[1],
        "mlp_ratio": _ratio(shape("blocks.0.mlp.fc1.weight", 2)[0], dim),
        "learn_sigma": shape("final_layer.linear.weight", 2)[0] == 2 * channels * patch**2,
        "micro_conditions": any(k.startswith("csize_embedder.") for k in state),
        "null_tokens": shape(NULL, 2)[0] if NULL in state else 0,
    }
    if compressed:
        read["kv_compress"] = shape(f"blocks.{compressed[0]}.attn.sr.weight", 4)[-1]
        read["kv_blocks"] = compressed
    return read


def _ratio(hidden: int, dim: int) -> float:
    """The ratio of which int(dim ratio) is hidden, whatever the division's rounding."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else (hidden + 0.5) / dim


def _from_diffusers_config(
    values: Mapping[str, Any], read: dict[str, Any], where: str
) -> dict[str, Any]:
    """Heads and positions by diffusers' config, with the defaults of its model class."""
    heads, width = values.get("num_attention_heads", 16), values.get("attention_head_dim", 72)
    size = values.get("sample_size", 128)
    micro = values.get("use_additional_conditions")  # None: diffusers goes by the size
    asked = {
        "hidden_size": heads * width,
        "patch_size": values.get("patch_size", 2),
        "depth": values.get("num_layers", 28),
        "in_channels": values.get("in_channels", 4),
        "micro_conditions": read["micro_conditions"] if micro is None else micro,
    }
    for name, value in asked.items():
        if read[name] != value:
            raise GessoError(
                f"{where}: the tensors have {name} {read[name]}, but config.json says {value}:"
                " one of the two belongs to another model."
            )
    scale = values.get("interpolation_scale")
    return {
        "num_heads": heads,
        "base_size": size // read["patch_size"],
        "interpolation_scale": float(max(size // 64, 1) if scale is None else scale),
    }


def _geometry(
    read: dict[str, Any], positions: Tensor | None, variant: str | None, where: str
) -> dict[str, Any]:
    """Heads and positions of a file without a config."""
    dim, rows = read["hidden_size"], read["null_tokens"]
    if dim % HEAD_WIDTH:
        raise GessoError(
            f"{where} does not say how many heads it has, as its width {dim} is no multiple of"
            f" {HEAD_WIDTH}, the width of PixArt's heads: give a diffusers folder with config.json."
        )
    heads = {"num_heads": dim // HEAD_WIDTH}
    side = None if positions is None else round(positions.shape[-2] ** 0.5)
    fitting = {
        name: size
        for name, size in PUBLISHED.items()
        if size.micro_conditions == read["micro_conditions"]
        and bool(size.kv_blocks) == bool(read.get("kv_blocks"))
        and (rows not in TOKENS or size.null_tokens == rows)
        and (side is None or size.base_size == side)
    }
    if variant is not None:
        size = PUBLISHED[variant]
        if side is not None and size.base_size != side:
            raise GessoError(
                f"{where} is not the variant {variant}: its {POSITIONS} has {side * side}"
                f" positions, not {size.base_size**2}."
            )
        return heads | _place(size.base_size, size.interpolation_scale)
    places = {(s.base_size, s.interpolation_scale) for s in fitting.values()}
    if len(places) > 1 or not places:
        read_off = None if positions is None else _scale_of(positions)
        if side is None or read_off is None:
            raise _ask_for_variant(where, list(fitting or PUBLISHED))
        places = {(side, read_off)}
    return heads | _place(*places.pop())


def _place(base_size: int, interpolation_scale: float) -> dict[str, Any]:
    return {"base_size": base_size, "interpolation_scale": interpolation_scale}


def _at_the_place_of(config: Config) -> dict[str, Config]:
    """The published models with the same positions and micro-conditions."""
    return {
        name: size
        for name, size in PUBLISHED.items()
        if (size.base_size, size.interpolation_scale, size.micro_conditions)
        == (config.base_size, config.interpolation_scale, config.micro_conditions)
    }


def _scale_of(positions: Tensor) -> float | None:
    """The interpolation scale that a stored position table [1, N, D] was made with."""
    side, dim = round(positions.shape[-2] ** 0.5), positions.shape[-1]
    if positions.is_meta or side * side != positions.shape[-2]:
        return None
    for scale in sorted({s.interpolation_scale for s in SIZES.values()}):
        table = sincos_2d(side, side, dim, side, scale)
        if torch.allclose(positions[0].float(), table, atol=2e-2):  # of bfloat16 files, too
            return scale
    return None


def _ask_for_variant(where: str, names: list[str]) -> GessoError:
    return GessoError(
        f"{where} could be {' or '.join(names)}, which its tensors cannot tell apart:"
        " say which with --variant (variant=...)."
    )
