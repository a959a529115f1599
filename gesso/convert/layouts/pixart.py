"""PixArt, see `gesso.convert.pixart`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gesso.backbones.pixart import Config
from gesso.config import validate
from gesso.convert import controlnet, pixart, variants
from gesso.convert.network import Network, network_of, read_pixart, saved_options
from gesso.model import Description
from gesso.types import Cond

MAY_LACK = frozenset({pixart.NULL})
saved = saved_options


def notes(network: Network, to: str) -> list[str]:
    """What the result is without."""
    if to != "original" or pixart.NULL in network.state:
        return []
    return [
        f"The source has no null caption, so {pixart.NULL} is not in the result: the authors'"
        " code leaves it random; guide with the empty prompt instead."
    ]


def tensors(network: Network, to: str) -> dict[str, Tensor]:
    """The tensors of a format, "original" or "diffusers"."""
    if to == "diffusers":
        return pixart.to_diffusers(network.state)
    base, branch = controlnet.split(network.state)
    original = pixart.to_original(base, network.config)
    if branch:
        original = {controlnet.BASE + key: value for key, value in original.items()}
    return original | branch


def read(files: list[Path], where: str, transformer: Mapping[str, Any] | None) -> Network:
    """The network in files."""
    return network_of(read_pixart(files, where), variants.Hints(transformer=transformer))


def of_gesso(state: dict[str, Tensor], described: Description, where: str) -> Network:
    """The network in a gesso model."""
    spec = {k: v for k, v in (described.backbone or {}).items() if k != "name"}
    tokens = (described.text_encoder or {}).get("max_tokens", 0)
    config = validate(Config, spec, where)
    family = variants.TOKENS.get(tokens)
    return Network(state, config, family, "original", where, adapter=described.adapter)


def diffusers_config(config: Config) -> dict[str, Any]:
    """`config.json` of diffusers' PixArtTransformer2DModel for gesso's options."""
    return {
        "_class_name": "PixArtTransformer2DModel",
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.hidden_size // config.num_heads,
        "num_layers": config.depth,
        "in_channels": config.in_channels,
        "out_channels": config.in_channels * (2 if config.learn_sigma else 1),
        "cross_attention_dim": config.hidden_size,
        "caption_channels": config.text_dim,
        "patch_size": config.patch_size,
        "sample_size": config.base_size * config.patch_size,
        "interpolation_scale": config.interpolation_scale,
        "use_additional_conditions": config.micro_conditions,
    }


def inputs(config: Config) -> tuple[Tensor, Tensor, Cond]:
    """x [2, C, h, w], t [2] and a condition, the same in every call."""
    g, p = torch.Generator().manual_seed(0), config.patch_size
    x = torch.randn(2, config.in_channels, 4 * p, 6 * p, generator=g)
    tokens = torch.randn(2, 7, config.text_dim, generator=g)
    mask = torch.tensor([[True] * 4 + [False] * 3, [True] * 7])
    size = torch.tensor([[512.0, 768.0], [1024.0, 640.0]])
    cond = Cond(tokens=tokens, mask=mask, size=size, aspect=size[:, :1] / size[:, 1:])
    return x, torch.tensor([3.0, 742.0]), cond


@torch.no_grad()
def run_diffusers(
    config: Config, tensors: Mapping[str, Tensor], options: Mapping[str, Any] | None
) -> Tensor:
    """diffusers' class with a file's tensors and its `config.json`, if it has one."""
    from diffusers import PixArtTransformer2DModel

    model = PixArtTransformer2DModel.from_config(dict(options or diffusers_config(config)))
    buffers = {"caption_projection.y_embedding", "pos_embed.pos_embed"}
    state = {k: v.float() for k, v in tensors.items() if k not in buffers}
    model.load_state_dict(state, assign=True)
    x, t, cond = inputs(config)
    added = {"resolution": cond.size, "aspect_ratio": cond.aspect}
    result: Tensor = model.eval()(
        x,
        encoder_hidden_states=cond.tokens,
        timestep=t,
        added_cond_kwargs=added if config.micro_conditions else dict.fromkeys(added),
        encoder_attention_mask=cond.mask,
    ).sample
    return result
