"""A tiny PixArt in diffusers and in gesso with the same weights, and peft's adapters on it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from gesso.backbones.pixart import Config, PixArt
from gesso.convert.pixart import to_diffusers
from gesso.types import Cond

SMALL = {"depth": 2, "hidden_size": 48, "num_heads": 4, "text_dim": 20, "base_size": 4}

# What PixArt's own LoRA trainer targets, by the end of a layer's name.
TRAINER_TARGETS = [
    "to_k",
    "to_q",
    "to_v",
    "to_out.0",
    "proj_out",
    "ff.net.0.proj",
    "ff.net.2",
    "proj",
    "linear",
    "linear_1",
    "linear_2",
]


def backbone(seed: int = 0, **options: object) -> PixArt:
    torch.manual_seed(seed)
    model = PixArt(Config(**{**SMALL, **options}))  # type: ignore[arg-type]
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.15)
    return model.eval()


def peer(model: PixArt) -> nn.Module:
    """diffusers' transformer with the weights of a gesso backbone."""
    from diffusers import PixArtTransformer2DModel

    c = model.config
    other = PixArtTransformer2DModel(
        num_attention_heads=c.num_heads,
        attention_head_dim=c.hidden_size // c.num_heads,
        in_channels=4,
        out_channels=8,
        num_layers=c.depth,
        cross_attention_dim=c.hidden_size,
        caption_channels=c.text_dim,
        sample_size=8,
        interpolation_scale=c.interpolation_scale,
        use_additional_conditions=c.micro_conditions,
    ).eval()
    other.load_state_dict(to_diffusers(model.state_dict()), strict=True)
    return other


def inputs() -> tuple[Tensor, Tensor, Cond]:
    g = torch.Generator().manual_seed(1)
    size = 512 * torch.rand(2, 2, generator=g) + 256
    cond = Cond(
        tokens=torch.randn(2, 7, 20, generator=g),
        mask=torch.arange(7)[None] < torch.tensor([[4], [7]]),
        size=size,
        aspect=size[:, :1] / size[:, 1:],
    )
    return torch.randn(2, 4, 8, 8, generator=g), torch.tensor([3.25, 998.0]), cond


@torch.no_grad()
def ours(model: PixArt) -> Tensor:
    """[2, 8, 8, 8]: value and variance."""
    out = model(*inputs())
    return torch.cat([out.value, out.aux["variance"]], dim=1)


@torch.no_grad()
def theirs(model: nn.Module, micro: bool) -> Tensor:
    x, t, cond = inputs()
    micro_conditions = {"resolution": cond.size, "aspect_ratio": cond.aspect}
    out: Tensor = model(
        x,
        encoder_hidden_states=cond.tokens,
        timestep=t,
        added_cond_kwargs=micro_conditions if micro else dict.fromkeys(micro_conditions),
        encoder_attention_mask=cond.mask,
    ).sample
    return out


def peft_adapter(
    model: PixArt, config: object, folder: Path, seed: int = 0
) -> tuple[nn.Module, Path]:
    """diffusers' transformer with an adapter of random weights, and the folder peft saved it in."""
    from peft import get_peft_model

    adapted = get_peft_model(peer(model), config)  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "magnitude" in name:
                p.mul_(0.5 + torch.rand(p.shape, generator=g))
            elif any(part in name for part in ("lora_", "hada_", "lokr_")):
                p.copy_(0.3 * torch.randn(p.shape, generator=g))
    adapted.save_pretrained(folder)
    return adapted.eval(), folder
