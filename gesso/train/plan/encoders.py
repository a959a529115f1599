"""What a plan has to know of a recipe's encoders, without loading their weights.

Shapes come from the encoder's configuration where its files are at hand, else from the published
one of its name.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from gesso.config import Spec, build, resolve
from gesso.encoders._frozen_text import weights_at
from gesso.encoders._weights import locate
from gesso.types import Cond, GessoError

T5: dict[str, dict[str, Any]] = {
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "large": {"d_model": 1024, "d_kv": 64, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    "xl": {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32},
    "xxl": {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64},
}
"""T5 version 1.1 and Flan-T5 by size (their published config.json)."""

CLIP: dict[str, dict[str, Any]] = {
    "L": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "bigG": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 20},
}
"""CLIP's text towers by size; the projection is as wide, the MLP four times."""


NAMES = 1000  # words or classes of a text encoder whose source is not at hand


class Text(nn.Module):
    """Stands in for a frozen text encoder: features of the right shape, no weights.

    Args:
        dim: width of a token.
        length: tokens of every prompt but the empty one.
        pooled_dim: width of the pooled text, None without it.
        fixed: whether the empty prompt is as long.
    """

    trainable = False

    def __init__(
        self, dim: int, length: int, pooled_dim: int | None = None, fixed: bool = False
    ) -> None:
        super().__init__()
        self.dim = self.width = dim
        self.max_tokens, self.pooled_dim, self.fixed = length, pooled_dim, fixed

    def prepare(self, prompts: list[str]) -> Cond:
        """tokens [B, L, D] and mask [B, L], pooled [B, P] where there is some."""
        n, length = len(prompts), self.max_tokens if any(prompts) or self.fixed else 1
        mask = torch.ones(n, length, dtype=torch.bool)
        pooled = None if self.pooled_dim is None else torch.zeros(n, self.pooled_dim)
        return Cond(tokens=torch.zeros(n, length, self.dim), mask=mask, pooled=pooled)

    def forward(self, cond: Cond) -> Cond:
        return cond


class Image(nn.Module):
    """Stands in for a frozen image encoder."""

    def __init__(self, factor: int, channels: int, raw_channels: int) -> None:
        super().__init__()
        self.factor, self.channels, self.raw_channels = factor, channels, raw_channels


@dataclass
class Encoders:
    """A recipe's encoders as a plan sees them.

    Attributes:
        image: with `factor`, `channels` and `raw_channels`; the encoder itself where it trains.
        text: with `dim` and `max_tokens`; the encoder itself where it trains; None: none.
        image_parameters, text_parameters: of the frozen ones, whose features are cached.
        image_network: an encode function on the meta device, to count; None: unknown.
        text_network: the same, of ids [1, L].
        notes: what was assumed.
    """

    image: Any
    text: Any
    image_parameters: int = 0
    text_parameters: int = 0
    image_network: Any = None
    text_network: Any = None
    notes: list[str] = field(default_factory=list)

    def image_flops(self, height: int, width: int) -> int:
        """Of encoding one picture."""
        if self.image_network is None:
            return 0
        return _count(self.image_network, torch.empty(1, 3, height, width, device="meta"))

    def text_flops(self, length: int) -> int:
        """Of encoding one prompt."""
        if self.text_network is None:
            return 0
        return _count(self.text_network, torch.ones(1, length, dtype=torch.long, device="meta"))


def look_at(image: Spec, text: Spec | None) -> Encoders:
    """Find out about a recipe's encoders.

    Args:
        image, text: as in the recipe.

    Raises:
        GessoError: an unknown encoder or option, or neither its files nor its name tell its shape.
    """
    found = Encoders(None, None)
    _image(image, found)
    if text is not None:
        _text(text, found)
    return found


def _image(spec: Spec, found: Encoders) -> None:
    _, options = resolve("encoders.image", spec)
    if spec["name"] == "tiny":
        from gesso.encoders.image.tiny import TinyAutoencoder

        if options.weights is None:
            found.image = build("encoders.image", spec)
            return
        with torch.device("meta"):
            network: Any = TinyAutoencoder(options)
        found.image, encoder = network, network.encoder
        found.image_network = lambda pixels: encoder(network.fold(pixels))
    elif spec["name"] == "taesd":
        from diffusers import AutoencoderTiny

        from gesso.encoders.image.taesd import NAMES as VARIANTS

        channels = VARIANTS[options.variant][1]
        with torch.device("meta"):
            network = AutoencoderTiny(latent_channels=channels)
        found.image = Image(8, channels, channels)
        found.image_network = encoder = network.encoder
    elif spec["name"] == "kl":
        network = _kl(options, found)
        blocks, channels = network.config.block_out_channels, network.config.latent_channels
        found.image = Image(2 ** (len(blocks) - 1), channels, 2 * channels)
        found.image_network = encoder = network.encoder
    else:
        found.image = network = build("encoders.image", spec)
        if any(p.requires_grad for p in network.parameters()):
            return
        encoder = network
    found.image_parameters = sum(p.numel() for p in encoder.parameters())


def _kl(options: Any, found: Encoders) -> Any:
    from diffusers import AutoencoderKL

    try:
        folder = locate(options.path)
        with warnings.catch_warnings(action="ignore"):  # diffusers' own, about the hub
            config = AutoencoderKL.load_config(
                folder, subfolder=options.subfolder, local_files_only=True
            )
    except (OSError, ValueError, GessoError):
        known, channels = ("SD3", 16) if "stable-diffusion-3" in options.path else ("SD", 4)
        found.notes.append(
            f"the autoencoder {options.path} is not at hand: {known}'s shape is assumed"
        )
        config = {
            "block_out_channels": (128, 256, 512, 512),
            "layers_per_block": 2,
            "latent_channels": channels,
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
        }
    with torch.device("meta"):
        return AutoencoderKL.from_config(config)


def _text(spec: Spec, found: Encoders) -> None:
    _, options = resolve("encoders.text", spec)
    key = {"learned": "words", "classes": "classes"}.get(spec["name"])
    if key is not None and not getattr(options, key):
        found.notes.append(f"{NAMES} {key} are assumed")
        spec = {**spec, key: [f"w{i}" for i in range(NAMES)]}
    if spec["name"] == "joined" and all(_frozen(s) for group in options.encoders for s in group):
        _joined(options, found)
        return
    if not _frozen(spec):
        found.text = build("encoders.text", spec)
        return
    config = _text_config(options, found)
    from transformers import AutoModel, CLIPTextModelWithProjection, T5EncoderModel

    is_t5, is_clip = getattr(config, "model_type", "") in ("t5", "umt5"), spec["name"] == "clip"
    with torch.device("meta"):
        if is_clip:
            network: Any = CLIPTextModelWithProjection(config)
        else:
            network = T5EncoderModel(config) if is_t5 else AutoModel.from_config(config)
    network.eval()
    read = is_clip or getattr(options, "padding", "longest") == "max"
    pooled = int(config.projection_dim) if is_clip else None
    found.text = Text(int(config.hidden_size), options.max_tokens, pooled, read)
    found.text_network = network
    found.text_parameters = sum(p.numel() for p in network.parameters())


def _frozen(spec: Spec) -> bool:
    """Whether a text encoder comes from files."""
    return spec["name"] in ("t5", "hf", "clip")


def _joined(options: Any, found: Encoders) -> None:
    """Several frozen ones; each reads its own prompt, however long the joined features are."""
    parts = [[look_at_text(spec, found) for spec in group] for group in options.encoders]
    flat = [part for group in parts for part in group]
    pooled = sum(part.text.pooled_dim or 0 for part in flat) or None
    width = max(sum(part.text.dim for part in group) for group in parts)
    length = sum(group[0].text.max_tokens for group in parts)
    found.text = Text(width, length, pooled, fixed=True)
    found.text_parameters = sum(part.text_parameters for part in flat)

    def network(ids: Tensor) -> None:
        for part in flat:
            part.text_network(ids.new_ones(len(ids), part.text.max_tokens))

    found.text_network = network


def look_at_text(spec: Spec, beside: Encoders) -> Encoders:
    """One of several text encoders; what is assumed of it is noted in `beside`."""
    found = Encoders(None, None, notes=beside.notes)
    _text(spec, found)
    return found


def _text_config(options: Any, found: Encoders) -> Any:
    from transformers import AutoConfig, CLIPTextConfig, T5Config

    try:
        folder, subfolder = weights_at(options.path, options.subfolder)
        config = AutoConfig.from_pretrained(folder, subfolder=subfolder, local_files_only=True)
        return getattr(config, "text_config", config)
    except (OSError, ValueError, GessoError):
        pass
    clip = re.search(r"clip-vit-(l)arge|clip-vit-(bigg)", options.path.lower())
    if clip is not None:
        size = "L" if clip[1] else "bigG"
        found.notes.append(f"the text encoder {options.path} is not at hand: CLIP-{size}'s shape")
        width = CLIP[size]["hidden_size"]
        return CLIPTextConfig(**CLIP[size], intermediate_size=4 * width, projection_dim=width)
    name = re.search(r"t5.*?-(xxl|xl|large|base|small)", f"{options.path}".lower())
    if name is None and "pixart" in options.path.lower():  # whose text encoder is T5-XXL
        name = re.search(r"(xxl)", "xxl")
    if name is None:
        raise GessoError(
            f"The text encoder {options.path!r} is not at hand, and its name does not tell its "
            "shape: give a local folder that holds its config.json."
        )
    found.notes.append(f"the text encoder {options.path} is not at hand: T5-{name[1]}'s shape")
    return T5Config(**T5[name[1]], feed_forward_proj="gated-gelu", vocab_size=32128)


def _count(network: Any, x: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(x)
    return int(counter.get_total_flops())
