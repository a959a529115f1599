"""PixArt's tensors: their names in every format.

Formats, each of them a flat table of tensors:
    original    the authors' names, which are gesso's own, plus the position table `pos_embed`
    diffusers   `PixArtTransformer2DModel`: projections split, no buffers
    comfyui     the original's names behind `model.diffusion_model.`

Dims: D width, N positions of the training grid.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor

from gesso.backbones.pixart import Config
from gesso.nn.position import sincos_2d
from gesso.types import GessoError

Format = Literal["original", "diffusers", "comfyui"]
Family = Literal["alpha", "sigma"]

COMFYUI = "model.diffusion_model."
NULL = "y_embedder.y_embedding"
POSITIONS = "pos_embed"

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

BLOCK = re.compile(r"(?:transformer_)?blocks\.(\d+)(?:\.(.+))?")


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
    block = BLOCK.fullmatch(module)
    if block is None:
        return MODULES.get(module)
    names = BLOCK_MODULES.get(block[2] or "")
    return names and tuple(_join(f"transformer_blocks.{block[1]}", n) for n in names)


def original_module(module: str) -> tuple[str, int, int] | None:
    """The original's module for one of diffusers'; None if it has none.

    Returns:
        (module, i, n): diffusers' module is the i-th of n row slices of it.
    """
    block = BLOCK.fullmatch(module)
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


def first(keys: Iterable[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    keys = sorted(keys)
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more


def _join(module: str, leaf: str) -> str:
    return ".".join(part for part in (module, leaf) if part)
