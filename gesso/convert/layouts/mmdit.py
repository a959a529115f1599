"""Stable Diffusion 3 and 3.5, see `gesso.convert.sd3`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gesso.backbones.mmdit import Config
from gesso.config import validate
from gesso.convert import sd3
from gesso.convert.network import Network
from gesso.convert.sd3_network import read_network, saved_options
from gesso.model import Description
from gesso.types import Cond

MAY_LACK: frozenset[str] = frozenset()
saved = saved_options
diffusers_config = sd3.diffusers_config


def notes(network: Network, to: str) -> list[str]:
    """Nothing is lost."""
    return []


def tensors(network: Network, to: str) -> dict[str, Tensor]:
    """The tensors of a format, "original" or "diffusers"."""
    convert = sd3.to_diffusers if to == "diffusers" else sd3.to_original
    return convert(network.state, network.config)


def read(files: list[Path], where: str, transformer: Mapping[str, Any] | None) -> Network:
    """The network in files."""
    return read_network(files, transformer, where=where)


def of_gesso(state: dict[str, Tensor], described: Description, where: str) -> Network:
    """The network in a gesso model."""
    spec = {k: v for k, v in (described.backbone or {}).items() if k != "name"}
    config = validate(Config, spec, where)
    return Network(state, config, None, "original", where, backbone="mmdit")


def inputs(config: Config) -> tuple[Tensor, Tensor, Cond]:
    """x [2, C, h, w], t [2] and a condition, the same in every call."""
    g, p = torch.Generator().manual_seed(0), config.patch_size
    side = min(4, config.table_size)
    x = torch.randn(2, config.in_channels, side * p, side * p, generator=g)
    tokens = torch.randn(2, 7, config.text_dim, generator=g)
    pooled = torch.randn(2, config.pooled_dim, generator=g)
    return x, torch.tensor([3.0, 742.0]), Cond(tokens=tokens, pooled=pooled)


@torch.no_grad()
def run_diffusers(
    config: Config, tensors: Mapping[str, Tensor], options: Mapping[str, Any] | None
) -> Tensor:
    """diffusers' class with a file's tensors and its `config.json`, if it has one."""
    from diffusers import SD3Transformer2DModel

    model = SD3Transformer2DModel.from_config(dict(options or diffusers_config(config)))
    model.load_state_dict({k: v.float() for k, v in tensors.items()}, assign=True)
    x, t, cond = inputs(config)
    result: Tensor = model.eval()(x, cond.tokens, cond.pooled, t).sample
    return result
