"""PixArt's tensors: their names in every format, and what they say about the model.

Formats, each of them a flat table of tensors:
    original    the authors' names, which are gesso's own, plus the position table `pos_embed`
    diffusers   `PixArtTransformer2DModel`: projections split, no buffers
    comfyui     the original's names behind `model.diffusion_model.`

Dims: D width, T width of the text encoder's tokens, N positions of the training grid.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from gesso.backbones.pixart import SIZES, Config
from gesso.nn.position import sincos_2d
from gesso.types import GessoError

Format = Literal["original", "diffusers", "comfyui"]
Family = Literal["alpha", "sigma"]

COMFYUI = "model.diffusion_model."
NULL = "y_embedder.y_embedding"
POSITIONS = "pos_embed"
HEAD_WIDTH = 72  # of every published PixArt
TOKENS: dict[int, Family] = {120: "alpha", 300: "sigma"}  # rows of the null caption

# Original module -> diffusers modules. Several mean row slices of equal size, in this order.
MODULES: dict[str, tuple[str, ...]] = {
    "x_embedder.proj": ("pos_embed.proj",),
    "y_embedder.y_proj.fc1": ("caption_projection.linear_1",),
    "y_embedder.y_proj.fc2": ("caption_projection.linear_2",),
    "y_embedder": ("caption_projection",),  # y_embedding, in early exports
    "t_embedder.mlp.0": ("adaln_single.emb.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("adaln_single.emb.timestep_embedder.linear_2",),
    "csize_embedder.mlp.0": ("adaln_single.emb.resolution_embedder.linear_1",),
    "csize_embedder.mlp.2": ("adaln_single.emb.resolution_embedder.linear_2",),
    "ar_embedder.mlp.0": ("adaln_single.emb.aspect_ratio_embedder.linear_1",),
    "ar_embedder.mlp.2": ("adaln_single.emb.aspect_ratio_embedder.linear_2",),
    "t_block.1": ("adaln_single.linear",),
    "final_layer.linear": ("proj_out",),
    "final_layer": ("",),  # scale_shift_table
}
BLOCK_MODULES: dict[str, tuple[str, ...]] = {  # of blocks.i -> of transformer_blocks.i
    "": ("",),  # scale_shift_table
    "attn.qkv": ("attn1.to_q", "attn1.to_k", "attn1.to_v"),
    "attn.proj": ("attn1.to_out.0",),
    "cross_attn.q_linear": ("attn2.to_q",),
    "cross_attn.kv_linear": ("attn2.to_k", "attn2.to_v"),
    "cross_attn.proj": ("attn2.to_out.0",),
    "mlp.fc1": ("ff.net.0.proj",),
    "mlp.fc2": ("ff.net.2",),
}

_BLOCK = re.compile(r"(?:transformer_)?blocks\.(\d+)(?:\.(.+))?")


def _inverse(table: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, int, int]]:
    return {
        theirs: (ours, i, len(names))
        for ours, names in table.items()
        for i, theirs in enumerate(names)
    }


_INVERSE, _BLOCK_INVERSE = _inverse(MODULES), _inverse(BLOCK_MODULES)


def diffusers_modules(module: str) -> tuple[str, ...] | None:
    """diffusers' modules for a module by its original name; None if diffusers has none.

    Several are row slices of the original's weight, of equal size and in this order.
    """
    block = _BLOCK.fullmatch(module)
    if block is None:
        return MODULES.get(module)
    names = BLOCK_MODULES.get(block[2] or "")
    return names and tuple(_join(f"transformer_blocks.{block[1]}", n) for n in names)


def original_module(module: str) -> tuple[str, int, int] | None:
    """The original's module for one of diffusers'; None if it has none.

    Returns:
        (module, i, n): diffusers' module is the i-th of n row slices of it.
    """
    block = _BLOCK.fullmatch(module)
    if block is None:
        return _INVERSE.get(module)
    found = _BLOCK_INVERSE.get(block[2] or "")
    return found and (_join(f"blocks.{block[1]}", found[0]), *found[1:])


def format_of(keys: Iterable[str]) -> Format | None:
    """The format of a table of tensors without prefixes; None if it is no PixArt's."""
    keys = set(keys)
    if "t_block.1.weight" in keys:
        return "original"
    # LTX has the same adaLN but another patch embedding.
    if {"adaln_single.linear.weight", "pos_embed.proj.bias"} <= keys:
        return "diffusers"
    return None


def format_of_file(keys: Iterable[str], prefix: str) -> Format | None:
    """`format_of` for a file whose names had a prefix, which tells ComfyUI's from the original."""
    found = format_of(keys)
    comfyui = found == "original" and prefix.endswith(COMFYUI.removeprefix("model."))
    return "comfyui" if comfyui else found


def from_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """gesso's tensors: the original's without its position table, which gesso computes."""
    return {k: v for k, v in tensors.items() if k != POSITIONS}


def to_original(state: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The original's tensors: gesso's and the position table [1, N, D]."""
    side, some = config.base_size, state["x_embedder.proj.weight"]
    table = sincos_2d(side, side, config.hidden_size, side, config.interpolation_scale)
    return {**state, POSITIONS: table[None].to(some.dtype).to(some.device)}


def from_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """gesso's tensors, with the split projections joined. What has no counterpart stays as it is.

    Raises:
        GessoError: one of the slices of a joined projection is missing.
    """
    state: dict[str, Tensor] = {}
    slices: dict[str, dict[int, Tensor]] = {}
    for key, value in tensors.items():
        if key == "pos_embed.pos_embed":  # a buffer that gesso computes
            continue
        module, _, leaf = key.rpartition(".")
        found = original_module(module)
        if found is None:
            state[key] = value
        elif found[2] == 1:
            state[_join(found[0], leaf)] = value
        else:
            slices.setdefault(_join(found[0], leaf), {})[found[1]] = value
    for key, parts in slices.items():
        module, _, leaf = key.rpartition(".")
        names = diffusers_modules(module) or ()
        lacking = [_join(n, leaf) for i, n in enumerate(names) if i not in parts]
        if lacking:
            raise GessoError(f"The weights lack the tensors {first(lacking)}: save them again.")
        state[key] = torch.cat([parts[i] for i in range(len(parts))])
    return state


def to_diffusers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """diffusers' tensors. The null caption is dropped: its pipelines use the empty prompt.

    Raises:
        GessoError: tensors that diffusers' model has no place for (compressed keys and values).
    """
    tensors: dict[str, Tensor] = {}
    homeless = []
    for key, value in state.items():
        if key == NULL:
            continue
        module, _, leaf = key.rpartition(".")
        names = diffusers_modules(module)
        if names is None:
            homeless.append(key)
            continue
        for name, part in zip(names, value.chunk(len(names)), strict=True):
            tensors[_join(name, leaf)] = part.contiguous()
    if homeless:
        raise GessoError(
            f"diffusers' PixArt has no place for {first(homeless)}: convert to original or gesso."
        )
    return tensors


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

    Widths, depth, micro-conditions and compression are read from the tensors. Heads and positions
    leave no trace in them: these come from a config, from `variant`, or from the position table
    and the rows of the null caption where only one published model has both.

    Args:
        state: tensors in gesso's names.
        positions: the original's position table [1, N, D], if the file has one.
        where: the file, for messages.

    Returns:
        options, and "alpha" or "sigma", None where nothing tells (see `need_family`).

    Raises:
        GessoError: the tensors fit no PixArt, contradict a hint, or do not suffice.
    """
    if hints.variant is not None and hints.variant not in SIZES:
        known = ", ".join(n for n in SIZES if n != "demo")
        raise GessoError(f"There is no variant {hints.variant!r}: use one of {known}.")
    read = _read_off(state, where)
    if hints.saved is not None:
        config = hints.saved.model_copy(update=read)
        geometry: dict[str, Any] = {}
    elif hints.transformer is not None:
        geometry = _from_diffusers_config(hints.transformer, read, where)
    else:
        geometry = _geometry(read, positions, hints, where)
    if hints.saved is None:
        config = Config(**read, **geometry)
    chosen = [SIZES[hints.variant]] if hints.variant else []
    published = [c for n, c in SIZES.items() if n != "demo" and _same_place(c, config)]
    for size in chosen:  # a variant that the file contradicts
        rows = config.null_tokens
        if size.micro_conditions != config.micro_conditions:
            has = "has" if config.micro_conditions else "lacks"
            raise GessoError(
                f"{where} is not the variant {hints.variant}: it {has} the tensors of"
                " micro-conditions (csize_embedder, ar_embedder)."
            )
        if rows and rows != size.null_tokens:
            raise GessoError(
                f"{where} is not the variant {hints.variant}: its null caption {NULL} has {rows}"
                f" rows, not {size.null_tokens}."
            )
        if published and not any(_same_place(size, c) for c in published):
            raise GessoError(
                f"{where} is not the variant {hints.variant}: its position grid is"
                f" {config.base_size} a side, scaled by {config.interpolation_scale:g}."
            )
    families: set[Family] = {TOKENS[c.null_tokens] for c in published}
    if chosen:
        return config, TOKENS[chosen[0].null_tokens]
    if hints.family is not None:
        return config, hints.family
    if config.null_tokens in TOKENS:
        return config, TOKENS[config.null_tokens]
    if config.micro_conditions:
        return config, "alpha"
    return config, families.pop() if len(families) == 1 else None


def need_family(family: Family | None, config: Config, where: str) -> Family:
    """The family, which settles how many tokens a prompt has.

    Raises:
        GessoError: unknown; names the flag that settles it.
    """
    if family is not None:
        return family
    fitting = [n for n, c in SIZES.items() if n != "demo" and _same_place(c, config)]
    raise _ask_for_variant(where, fitting or ["xl-512", "sigma-512"])


def _read_off(state: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The options that the tensors' shapes tell."""

    def shape(key: str, dims: int) -> torch.Size:
        if key not in state:
            raise GessoError(f"{where} lacks the tensor {key}: it is no complete PixArt.")
        if state[key].dim() != dims:
            raise GessoError(f"{where}: {key} has shape {tuple(state[key].shape)}.")
        return state[key].shape

    dim, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    numbers = {int(m[1]) for k in state if (m := _BLOCK.match(k))}
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
    read: dict[str, Any], positions: Tensor | None, hints: Hints, where: str
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
        for name, size in SIZES.items()
        if name != "demo"
        and size.micro_conditions == read["micro_conditions"]
        and bool(size.kv_blocks) == bool(read.get("kv_blocks"))
        and (rows not in TOKENS or size.null_tokens == rows)
        and (side is None or size.base_size == side)
    }
    if hints.variant is not None:
        size = SIZES[hints.variant]
        if side is not None and size.base_size != side:
            raise GessoError(
                f"{where} is not the variant {hints.variant}: its {POSITIONS} has {side * side}"
                f" positions, not {size.base_size**2}."
            )
        return heads | _place(size.base_size, size.interpolation_scale)
    places = {(s.base_size, s.interpolation_scale) for s in fitting.values()}
    if len(places) > 1 or not places:
        read_off = None if positions is None else _scale_of(positions)
        if side is None or read_off is None:
            raise _ask_for_variant(where, list(fitting) or [n for n in SIZES if n != "demo"])
        places = {(side, read_off)}
    return heads | _place(*places.pop())


def _place(base_size: int, interpolation_scale: float) -> dict[str, Any]:
    return {"base_size": base_size, "interpolation_scale": interpolation_scale}


def _same_place(a: Config, b: Config) -> bool:
    """Whether two models have the same positions and the same micro-conditions."""
    place = (a.base_size, a.interpolation_scale, a.micro_conditions)
    return place == (b.base_size, b.interpolation_scale, b.micro_conditions)


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


def first(keys: Iterable[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    keys = sorted(keys)
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def _join(module: str, leaf: str) -> str:
    return ".".join(part for part in (module, leaf) if part)
