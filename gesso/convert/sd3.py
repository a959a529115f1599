"""Stable Diffusion 3's and 3.5's tensors: their names in every format, and what they tell.

Formats, each of them a flat table of tensors:
    original    the authors' names, which are gesso's own, plus the position table `pos_embed`
    diffusers   `SD3Transformer2DModel`: projections split, and (scale, shift) instead of
                (shift, scale) where it uses AdaLayerNormContinuous: in the final layer and in the
                text's part of the last block
    comfyui     the original's names behind `model.diffusion_model.`, as the authors' own files

Dims: D width, N positions of the large table.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from gesso.backbones.mmdit import Config
from gesso.config import validate
from gesso.nn.position import sincos_2d_centred
from gesso.types import GessoError

MARKERS = ("joint_blocks.0.x_block.attn.qkv.weight", "transformer_blocks.0.attn.add_k_proj.weight")
POSITIONS = {"original": "pos_embed", "diffusers": "pos_embed.pos_embed"}
HEAD_WIDTH = 64  # of every published one
BLOCK = re.compile(r"(?:joint|transformer)_blocks\.(\d+)\.(.+)")

# Original module -> diffusers' modules. Several mean row slices of equal size, in this order.
MODULES: dict[str, tuple[str, ...]] = {
    "x_embedder.proj": ("pos_embed.proj",),
    "t_embedder.mlp.0": ("time_text_embed.timestep_embedder.linear_1",),
    "t_embedder.mlp.2": ("time_text_embed.timestep_embedder.linear_2",),
    "y_embedder.mlp.0": ("time_text_embed.text_embedder.linear_1",),
    "y_embedder.mlp.2": ("time_text_embed.text_embedder.linear_2",),
    "context_embedder": ("context_embedder",),
    "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}
BLOCK_MODULES: dict[str, tuple[str, ...]] = {
    "x_block.adaLN_modulation.1": ("norm1.linear",),
    "x_block.attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "x_block.attn.ln_q": ("attn.norm_q",),
    "x_block.attn.ln_k": ("attn.norm_k",),
    "x_block.attn.proj": ("attn.to_out.0",),
    "x_block.attn2.qkv": ("attn2.to_q", "attn2.to_k", "attn2.to_v"),
    "x_block.attn2.ln_q": ("attn2.norm_q",),
    "x_block.attn2.ln_k": ("attn2.norm_k",),
    "x_block.attn2.proj": ("attn2.to_out.0",),
    "x_block.mlp.fc1": ("ff.net.0.proj",),
    "x_block.mlp.fc2": ("ff.net.2",),
    "context_block.adaLN_modulation.1": ("norm1_context.linear",),
    "context_block.attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "context_block.attn.ln_q": ("attn.norm_added_q",),
    "context_block.attn.ln_k": ("attn.norm_added_k",),
    "context_block.attn.proj": ("attn.to_add_out",),
    "context_block.mlp.fc1": ("ff_context.net.0.proj",),
    "context_block.mlp.fc2": ("ff_context.net.2",),
}


def _inverse(table: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, int, int]]:
    return {
        theirs: (ours, i, len(names))
        for ours, names in table.items()
        for i, theirs in enumerate(names)
    }


_INVERSE, _BLOCK_INVERSE = _inverse(MODULES), _inverse(BLOCK_MODULES)


def format_of(keys: Mapping[str, Tensor]) -> Literal["original", "diffusers"] | None:
    """The format of a table of tensors without prefixes; None if it is no SD3's."""
    if MARKERS[0] in keys:
        return "original"
    return "diffusers" if MARKERS[1] in keys else None


def from_original(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """gesso's tensors: the original's without its position table, which gesso computes."""
    return {k: v for k, v in tensors.items() if k != POSITIONS["original"]}


def to_original(state: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """The original's tensors: gesso's and the position table [1, N, D]."""
    return {**state, POSITIONS["original"]: positions(config, state["x_embedder.proj.weight"])}


def from_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """gesso's tensors, with split projections joined. What has no counterpart stays as it is.

    Raises:
        GessoError: one of the slices of a joined projection is missing.
    """
    state: dict[str, Tensor] = {}
    slices: dict[str, dict[int, tuple[str, Tensor]]] = {}
    last = _last(tensors)
    for key, value in tensors.items():
        if key == POSITIONS["diffusers"]:
            continue
        module, _, leaf = key.rpartition(".")
        block = BLOCK.fullmatch(module)
        found = _BLOCK_INVERSE.get(block[2]) if block else _INVERSE.get(module)
        if found is None:
            state[key] = value
            continue
        ours = f"joint_blocks.{block[1]}.{found[0]}" if block else found[0]
        slices.setdefault(f"{ours}.{leaf}", {})[found[1]] = (key, _turned(ours, last, value))
    for key, parts in slices.items():
        module = key.rpartition(".")[0]
        block = BLOCK.fullmatch(module)
        count = len(BLOCK_MODULES[block[2]] if block else MODULES[module])
        if len(parts) < count:
            here = ", ".join(sorted(name for name, _ in parts.values()))
            raise GessoError(f"The weights have {here} without the parts beside: save them again.")
        values = [parts[i][1] for i in range(count)]
        state[key] = values[0] if count == 1 else torch.cat(values)
    return state


def to_diffusers(state: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    """diffusers' tensors, its position table [1, N, D] included.

    Raises:
        GessoError: tensors that diffusers' model has no place for.
    """
    some = state["x_embedder.proj.weight"]
    tensors: dict[str, Tensor] = {POSITIONS["diffusers"]: positions(config, some)}
    last = _last(state)
    for key, value in state.items():
        module, _, leaf = key.rpartition(".")
        block = BLOCK.fullmatch(module)
        names = BLOCK_MODULES.get(block[2]) if block else MODULES.get(module)
        if names is None:
            raise GessoError(f"diffusers' SD3 has no place for {key}: convert to another format.")
        turned = _turned(module, last, value)
        for name, part in zip(names, turned.chunk(len(names)), strict=True):
            theirs = f"transformer_blocks.{block[1]}.{name}" if block else name
            tensors[f"{theirs}.{leaf}"] = part.contiguous()
    return tensors


def _turned(module: str, last: int, value: Tensor) -> Tensor:
    """(shift, scale) rows as (scale, shift), or back, where the two formats differ."""
    swapped = ("final_layer.adaLN_modulation.1", f"joint_blocks.{last}.context_block.adaLN_mod")
    return torch.cat(value.chunk(2)[::-1]) if module.startswith(swapped) else value


def _last(tensors: Mapping[str, Tensor]) -> int:
    return max((int(m[1]) for k in tensors if (m := BLOCK.match(k))), default=-1)


def positions(config: Config, like: Tensor) -> Tensor:
    """The large position table [1, N, D], in the dtype and on the device of a tensor."""
    side = config.table_size
    dim, base = config.hidden_size, config.base_size
    return sincos_2d_centred(side, side, dim, base, side, like.device)[None].to(like.dtype)


def identify(
    state: Mapping[str, Tensor],
    table: Tensor | None,
    transformer: Mapping[str, Any] | None,
    where: str,
) -> Config:
    """The options of the network that these tensors belong to.

    Args:
        state: tensors in gesso's names.
        table: the file's position table [1, N, D], None without one.
        transformer: diffusers' `config.json` of the transformer, None without one.
        where: the file, for messages.

    Raises:
        GessoError: the tensors fit no MMDiT, contradict the config, or do not suffice.
    """

    def shape(key: str, dims: int = 2) -> torch.Size:
        if key not in state or state[key].dim() != dims:
            raise GessoError(f"{where} lacks the tensor {key}, or has another under its name.")
        return state[key].shape

    dim, channels, patch, _ = shape("x_embedder.proj.weight", 4)
    depth = _last(state) + 1
    dual = {int(m[1]) for k in state if (m := BLOCK.match(k)) and ".attn2.qkv.weight" in k}
    if dual != set(range(len(dual))):
        raise GessoError(f"{where}: the blocks {sorted(dual)} attend twice, not the first ones.")
    norm = "joint_blocks.0.x_block.attn.ln_q.weight"
    if norm not in state and transformer is None and dim % HEAD_WIDTH:
        raise GessoError(
            f"{where} does not say how many heads it has, as its width {dim} is no multiple of"
            f" {HEAD_WIDTH}, that of Stable Diffusion 3's heads: give a diffusers folder."
        )
    read: dict[str, Any] = {
        "depth": depth,
        "hidden_size": dim,
        "num_heads": dim // (shape(norm, 1)[0] if norm in state else HEAD_WIDTH),
        "patch_size": patch,
        "in_channels": channels,
        "text_dim": shape("context_embedder.weight")[1],
        "pooled_dim": shape("y_embedder.mlp.0.weight")[1],
        "mlp_ratio": shape("joint_blocks.0.x_block.mlp.fc1.weight")[0] / dim,
        "qk_norm": norm in state,
        "dual_blocks": len(dual),
    }
    if transformer is not None:
        read |= _told(transformer, read, where)
    elif table is None or table.is_meta:
        raise GessoError(
            f"{where} has no position table {POSITIONS['original']}, which alone tells the grid it "
            "was trained on: give a diffusers folder with config.json."
        )
    else:
        side = math.isqrt(table.shape[-2])
        # Next to the corner the first sine is that of one step: base_size / table_size.
        step = math.asin(float(table.flatten(0, -2)[1, 0]))
        read |= {"table_size": side, "base_size": round(step * side)}
    config: Config = validate(Config, read, where)
    if table is not None and not table.is_meta and not _same(table, config):
        raise GessoError(f"{where} has positions of its own, which gesso's MMDiT has not.")
    return config


def _same(table: Tensor, config: Config) -> bool:
    """Whether a table [1, N, D] is gesso's, by the 4 x 4 places in its middle."""
    side, dim, some = config.table_size, config.hidden_size, min(4, config.table_size)
    if table.shape[-2:] != (side * side, dim):
        return False
    place = slice((side - some) // 2, (side - some) // 2 + some)
    found = table.view(side, side, dim)[place, place].flatten(0, 1).float()
    own = sincos_2d_centred(some, some, dim, config.base_size, side)
    return torch.allclose(found, own, atol=2e-2)  # of bfloat16 files, too


def _told(values: Mapping[str, Any], read: dict[str, Any], where: str) -> dict[str, Any]:
    """Heads and positions by diffusers' config, with the defaults of its class."""
    heads, width = values.get("num_attention_heads", 18), values.get("attention_head_dim", 64)
    asked = {
        "hidden_size": heads * width,
        "depth": values.get("num_layers", 18),
        "in_channels": values.get("in_channels", 16),
        "patch_size": values.get("patch_size", 2),
        "text_dim": values.get("joint_attention_dim", 4096),
        "pooled_dim": values.get("pooled_projection_dim", 2048),
        "dual_blocks": len(values.get("dual_attention_layers", ())),
        "qk_norm": values.get("qk_norm") is not None,
    }
    for name, value in asked.items():
        if read[name] != value:
            raise GessoError(
                f"{where}: the tensors have {name} {read[name]}, but config.json says {value}:"
                " one of the two belongs to another model."
            )
    return {
        "num_heads": heads,
        "base_size": values.get("sample_size", 128) // read["patch_size"],
        "table_size": values.get("pos_embed_max_size", 96),
    }


def diffusers_config(config: Config) -> dict[str, Any]:
    """`config.json` of diffusers' SD3Transformer2DModel for gesso's options."""
    return {
        "_class_name": "SD3Transformer2DModel",
        "sample_size": config.base_size * config.patch_size,
        "patch_size": config.patch_size,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels,
        "num_layers": config.depth,
        "attention_head_dim": config.hidden_size // config.num_heads,
        "num_attention_heads": config.num_heads,
        "joint_attention_dim": config.text_dim,
        "caption_projection_dim": config.hidden_size,
        "pooled_projection_dim": config.pooled_dim,
        "pos_embed_max_size": config.table_size,
        "dual_attention_layers": list(range(config.dual_blocks)),
        "qk_norm": "rms_norm" if config.qk_norm else None,
    }
