"""Training a LoRA: peft's layers around a backbone's linear layers, which alone learn.

    y = W x + (alpha / rank) B A x        A [rank, in] random, B [out, rank] zero at the start

(Hu et al. 2021, https://arxiv.org/abs/2106.09685, eq. 3.) Saved are the whole network, with the
change in its weights, and the change alone in peft's format, which `gesso paint --lora` adds to the
original: both come from the same sum (`gesso.nn.low_rank`), so they are the same weights.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import save_file
from torch import Tensor, nn

from gesso import config
from gesso.nn.low_rank import Layer
from gesso.nn.quantize import block_linears
from gesso.types import GessoError

STAYS = False
ADAPTER = "default"  # peft's name for the only one
FOLDER = "lora"  # of a checkpoint
FILE, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."  # peft's, before every key


class Config(config.Config):
    """Options of a LoRA.

    Attributes:
        rank: of the change of a weight.
        alpha: the change counts alpha / rank times; None: as the rank, so once.
        targets: globs on the names of linear layers, or on their ends, such as "attn.qkv" or
            "*.mlp.*". None: every one inside the blocks that is as wide as the rank.
    """

    rank: int = Field(default=16, ge=1)
    alpha: float | None = Field(default=None, gt=0)
    targets: list[str] | None = None


def attach(options: Config, backbone: nn.Module) -> None:
    """Put LoRA layers around linear layers, in place; everything else stops learning.

    Raises:
        GessoError: peft is not installed, a target matches no linear layer, or the rank is above
            the width of a targeted layer (of every layer, where no targets are given).
    """
    names = _targets(options, backbone)
    for logger in ("torchao", "torch.utils._pytree"):  # what peft imports talks of its kernels
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise GessoError("Training a LoRA needs peft: pip install 'gesso[lora]'.") from None
    alpha = options.rank if options.alpha is None else options.alpha
    layers = LoraConfig(
        r=options.rank,
        lora_alpha=alpha,  # type: ignore[arg-type]
        target_modules=names,
    )
    inject_adapter_in_model(layers, backbone, ADAPTER)


def merged(network: nn.Module) -> dict[str, Tensor]:
    """A network's state dict as if it had been trained whole: without LoRA layers, with their sum.

    That of a network without any is its own.
    """
    changes = {f"{layer.target}.base_layer.weight": layer for layer in _layers(network)}
    state = {}
    for key, value in network.state_dict().items():
        if ".lora_A." in key or ".lora_B." in key:
            continue
        if key in changes:
            change = changes[key].change(value)
            value = value.to(torch.float32, copy=True).add_(change, alpha=1.0).to(value.dtype)
        state[key.replace(".base_layer.", ".")] = value
    return state


def tensors(network: nn.Module | None) -> dict[str, Tensor]:
    """The LoRA of a network by the keys of peft's files; without any, nothing."""
    names = {"down": "lora_A", "up": "lora_B"}
    return {
        f"{PREFIX}{layer.target}.{names[factor]}.weight": value
        for layer in _layers(network)
        for factor, value in layer.factors.items()
    }


def save(network: Any, lora: Mapping[str, Tensor], folder: Path) -> None:
    """Write peft's `adapter_model.safetensors` and `adapter_config.json` into a new folder.

    Args:
        network: whose LoRA it is.
        lora: as `tensors` gave it.
        folder: is made.

    Raises:
        OSError: it cannot be written.
    """
    folder.mkdir(parents=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in lora.items()}, folder / FILE)
    described = network.peft_config[ADAPTER].to_dict()
    described |= {"inference_mode": True, "target_modules": sorted(described["target_modules"])}
    text = json.dumps(described, indent=2, sort_keys=True, default=str)
    (folder / CONFIG).write_text(text + "\n")


def _layers(network: nn.Module | None) -> list[Layer]:
    if network is None or not hasattr(network, "peft_config"):
        return []
    return [
        Layer(
            target=name,
            kind="lora",
            factors={
                "down": module.lora_A[ADAPTER].weight,
                "up": module.lora_B[ADAPTER].weight,
            },
            rank=module.r[ADAPTER],
            alpha=module.lora_alpha[ADAPTER],
        )
        for name, module in network.named_modules()
        if hasattr(module, "lora_A")
    ]


def _targets(options: Config, backbone: nn.Module) -> list[str]:
    """The names of the layers to adapt."""
    if options.targets is None:
        layers = block_linears(backbone)
        wide = [name for name, layer in layers.items() if options.rank <= _width(layer)]
        if not wide:
            most = max(map(_width, layers.values()), default=0)
            raise GessoError(
                f"adapter.rank {options.rank} is above the width {most} of the widest linear layer "
                "in the backbone's blocks: make it smaller."
            )
        return wide
    every = {name: m for name, m in backbone.named_modules() if isinstance(m, nn.Linear)}
    found: dict[str, nn.Linear] = {}
    for glob in options.targets:
        own = {n: m for n, m in every.items() if fnmatchcase(n, glob) or n.endswith(f".{glob}")}
        if not own:
            ends = sorted({".".join(n.split(".")[2:]) for n in block_linears(backbone)})
            raise GessoError(
                f"adapter.targets has {glob!r}, which no linear layer's name matches: in the "
                f"blocks there are {', '.join(ends)}."
            )
        found |= own
    for name, layer in found.items():
        if options.rank > _width(layer):
            raise GessoError(
                f"adapter.rank {options.rank} is above the width {_width(layer)} of {name}: make "
                "it smaller, or leave that layer out of adapter.targets."
            )
    return list(found)


def _width(layer: nn.Linear) -> int:
    return min(layer.in_features, layer.out_features)
