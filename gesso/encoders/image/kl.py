"""Published KL autoencoders, through diffusers' `AutoencoderKL`: those of SD, SDXL, PixArt, FLUX.

Latents are normalised as their config says: (z - shift_factor) * scaling_factor, or per channel
where it has `latents_mean` and `latents_std`.

Dims: B pictures, H x W pixels, C latent channels, h, w latent size.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gesso import config
from gesso.draws import Draws
from gesso.encoders._weights import check_complete, fingerprint, loading, locate
from gesso.encoders.image import check_sides, draw


class Config(config.Config):
    """Options of a published KL autoencoder.

    Attributes:
        path: a diffusers folder, `package:NAME`, or a hub id ("stabilityai/sd-vae-ft-ema"); of a
            whole pipeline, its `vae` is taken where `path` is a folder.
        subfolder: of `path`; for a pipeline on the hub, "vae".
        dtype: of the weights.
    """

    path: str
    subfolder: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class KLAutoencoder(nn.Module):
    """A frozen `AutoencoderKL`; the contract is `gesso.encoders.image.ImageEncoder`.

    Args:
        vae: a diffusers `AutoencoderKL`.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vae: Any) -> None:
        super().__init__()
        c = vae.config
        self.vae = vae.requires_grad_(False).eval()
        self.channels = int(c.latent_channels)
        self.raw_channels = 2 * self.channels
        self.factor = 2 ** (len(c.block_out_channels) - 1)
        mean = c.get("latents_mean") or [c.get("shift_factor") or 0.0] * self.channels
        std = c.get("latents_std") or [1.0] * self.channels
        self.register_buffer("shift", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer(
            "scale", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1) / c.scaling_factor
        )

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, 2C, h, w] float32: mean and standard deviation, unscaled.

        Raises:
            GessoError: H or W is no multiple of `factor`.
        """
        check_sides(pixels, self.factor)
        posterior = self.vae.encode(pixels.to(self.vae.dtype)).latent_dist
        return torch.cat([posterior.mean, posterior.std], dim=1).float()

    def sample(self, raw: Tensor, generator: Draws | None = None) -> Tensor:
        """[B, 2C, h, w] -> normalised latents [B, C, h, w]; the mean without a generator."""
        return (draw(raw, generator) - self.shift) / self.scale

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, C, h, w] -> [B, 3, H, W], about [-1, 1]."""
        raw = latents.float() * self.scale + self.shift
        return self.vae.decode(raw.to(self.vae.dtype)).sample.float()

    def fingerprint(self) -> str:
        """16 hex digits over the weights and the normalisation."""
        return fingerprint("kl", self.state_dict())


def build(options: Config) -> KLAutoencoder:
    """Load the autoencoder, frozen.

    Raises:
        GessoError: files are missing, truncated or no `AutoencoderKL`.
    """
    from diffusers import AutoencoderKL

    folder = locate(options.path)
    subfolder = options.subfolder
    if subfolder is None and (Path(folder) / "vae" / "config.json").is_file():
        subfolder = "vae"
    with loading("KL autoencoder", options.path):
        vae, info = AutoencoderKL.from_pretrained(
            folder,
            subfolder=subfolder,
            torch_dtype=getattr(torch, options.dtype),
            low_cpu_mem_usage=False,  # or missing tensors would stay without storage
            output_loading_info=True,
        )
        check_complete(info["missing_keys"])
    return KLAutoencoder(vae)
