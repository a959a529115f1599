"""TAESD and its kin: tiny stand-ins for the autoencoders of SD1, SDXL, SD3 and FLUX.

Made by Ollin Boer Bohan (https://github.com/madebyollin/taesd, MIT). They encode without a
posterior, straight into the *normalised* latents of the model that they stand in for, so raw and
normalised latents are one. PixArt-alpha lives in the space "sd1", PixArt-Sigma in "sdxl".

Dims: B pictures, H x W pixels, C latent channels (4; 16 for sd3 and flux), h = H/8, w = W/8.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from gesso import config
from gesso.draws import Draws
from gesso.encoders._weights import check_complete, fingerprint, loading, locate, read_safetensors
from gesso.encoders.image import check_sides
from gesso.types import GessoError

Variant = Literal["sd1", "sdxl", "sd3", "flux"]

NAMES: dict[Variant, tuple[str, int]] = {
    "sd1": ("taesd", 4),
    "sdxl": ("taesdxl", 4),
    "sd3": ("taesd3", 16),
    "flux": ("taef1", 16),
}
"""By variant: the name in file names and on the hub, and the latent channels."""


class Config(config.Config):
    """Options of TAESD.

    Attributes:
        variant: whose latent space.
        path: a folder with `taesd_encoder.safetensors` and `taesd_decoder.safetensors` (or the
            variant's names), a diffusers folder, `package:NAME`, or a hub id; None: the variant's
            id on the hub, "madebyollin/taesd".
    """

    variant: Variant = "sd1"
    path: str | None = None


class TAESD(nn.Module):
    """A frozen `AutoencoderTiny`; the contract is `gesso.encoders.image.ImageEncoder`.

    Args:
        vae: a diffusers `AutoencoderTiny`.
    """

    factor = 8

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae.requires_grad_(False).eval()
        self.channels = self.raw_channels = int(vae.config.latent_channels)

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, C, h, w].

        Raises:
            GessoError: H or W is no multiple of 8.
        """
        check_sides(pixels, self.factor)
        return self.vae.encode(pixels).latents

    def sample(self, raw: Tensor, generator: Draws | None = None) -> Tensor:
        """The raw latents themselves: there is no posterior to draw from."""
        return raw

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, h, w] -> [B, 3, H, W], about [-1, 1]."""
        return self.vae.decode(latents).sample

    def fingerprint(self) -> str:
        """16 hex digits over the weights."""
        return fingerprint("taesd", self.state_dict())


def build(options: Config) -> TAESD:
    """Load a TAESD, frozen.

    Raises:
        GessoError: files are missing, truncated or of another variant.
    """
    from diffusers import AutoencoderTiny

    name, channels = NAMES[options.variant]
    path = options.path or f"madebyollin/{name}"
    if (Path(path) / f"{name}_encoder.safetensors").is_file():
        vae = AutoencoderTiny(latent_channels=channels)
        _load_raw(vae, Path(path), name)
        return TAESD(vae)
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise GessoError(
            f"The folder {path!r} holds neither {name}_encoder.safetensors nor a diffusers "
            f"autoencoder: copy the files of {name} into it."
        )
    with loading("TAESD", path):
        vae, info = AutoencoderTiny.from_pretrained(
            locate(path), low_cpu_mem_usage=False, output_loading_info=True
        )
        check_complete(info["missing_keys"])
    found = vae.config.latent_channels
    if found != channels:
        raise GessoError(
            f"The autoencoder {path!r} has {found} latent channels where variant "
            f"{options.variant!r} has {channels}: name the variant that it is."
        )
    return TAESD(vae)


def _load_raw(vae: Any, folder: Path, name: str) -> None:
    """Load the author's own files, whose keys are `<layer>.<parameter>`.

    The author's decoder counts a clamp as its layer 0, which in diffusers has no number.
    """
    state = {}
    for part, skipped in (("encoder", 0), ("decoder", 1)):
        file = folder / f"{name}_{part}.safetensors"
        for key, value in read_safetensors(file).items():
            layer, _, rest = key.partition(".")
            if not layer.isdecimal():
                raise GessoError(f"{str(file)!r} has the unknown tensor {key!r}: it is no {name}.")
            state[f"{part}.layers.{int(layer) - skipped}.{rest}"] = value.float()
    own = {k: v.shape for k, v in vae.state_dict().items()}
    if {k: v.shape for k, v in state.items()} != own:
        raise GessoError(
            f"The files of {name} in {str(folder)!r} have other tensors than expected: "
            "copy them again."
        )
    vae.load_state_dict(state)
