"""A small KL autoencoder for small pictures: factor 4, 4 latent channels, 0.36 M parameters.

All convolutions work at the latent's resolution, which is what makes it cheap on a CPU: the encoder
starts by folding each 4 x 4 square of pixels into 48 channels and the decoder ends by unfolding.
The weights "scenes" ship with the package; `gesso train tiny-autoencoder` makes them.

Dims: B pictures, H x W pixels, h = H/4, w = W/4, K hidden width.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from gesso import config
from gesso.draws import Draws
from gesso.encoders._weights import fingerprint, load_weights
from gesso.encoders.image import check_sides, draw
from gesso.nn.residual import Residual

FACTOR = 4
CHANNELS = 4
ASSETS = Path(__file__).parents[2] / "assets"
SHIPPED = {"scenes": ASSETS / "tiny.safetensors"}


class Config(config.Config):
    """Options of the tiny autoencoder.

    Attributes:
        width: K, channels of every hidden layer.
        depth: residual blocks of the decoder; the encoder always has one.
        weights: "scenes" (shipped with the package), a safetensors file, a folder with
            `model.safetensors` (a checkpoint of `gesso train tiny-autoencoder`), or None for
            random weights that are trained.
    """

    width: int = 64
    depth: int = 3
    weights: str | None = "scenes"


class TinyAutoencoder(nn.Module):
    """The autoencoder; the contract is `gesso.encoders.image.ImageEncoder`.

    Latents are normalised by the buffers `shift` and `scale` [C], the mean and standard deviation
    of each channel over the training pictures, which `track` follows during training.
    """

    factor = FACTOR
    channels = CHANNELS
    raw_channels = 2 * CHANNELS
    shift: Tensor
    scale: Tensor

    def __init__(self, options: Config) -> None:
        super().__init__()
        self.config = options
        width, pixels = options.width, 3 * FACTOR**2
        # [B, 3, H, W] <-> [B, 48, h, w], channels in the order (colour, row, column).
        self.fold, self.unfold = nn.PixelUnshuffle(FACTOR), nn.PixelShuffle(FACTOR)
        self.encoder = nn.Sequential(
            nn.Conv2d(pixels, width, 3, padding=1),
            Residual(width),
            nn.SiLU(),
            nn.Conv2d(width, self.raw_channels, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, width, 3, padding=1),
            *(Residual(width) for _ in range(options.depth)),
            nn.SiLU(),
            nn.Conv2d(width, pixels, 3, padding=1),
        )
        self.encoder_skip = nn.Conv2d(pixels, self.raw_channels, 1)
        self.decoder_skip = nn.Conv2d(CHANNELS, pixels, 1)
        self._start_from_mean_colours()
        self.register_buffer("shift", torch.zeros(CHANNELS))
        self.register_buffer("scale", torch.ones(CHANNELS))
        # Twice as fast as the default layout for convolutions of this size on a CPU.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.no_grad()
    def _start_from_mean_colours(self) -> None:
        """Let the skips carry each cell's mean colour, so that training starts from a mosaic."""
        for p in (*self.encoder_skip.parameters(), *self.decoder_skip.parameters()):
            p.zero_()
        for colour in range(3):
            cell = slice(colour * FACTOR**2, (colour + 1) * FACTOR**2)
            self.encoder_skip.weight[colour, cell] = 1 / FACTOR**2
            self.decoder_skip.weight[cell, colour] = 1
        assert self.encoder_skip.bias is not None
        self.encoder_skip.bias[CHANNELS:] = -4  # log std: a posterior that does not drown them

    def encode(self, pixels: Tensor) -> Tensor:
        """Pictures to raw latents.

        Args:
            pixels: [B, 3, H, W] in [-1, 1]; H and W multiples of 4.

        Returns:
            [B, 2C, h, w]: mean and standard deviation of the posterior, not normalised.

        Raises:
            GessoError: H or W is not a multiple of 4.
        """
        check_sides(pixels, FACTOR)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        folded = self.fold(pixels)  # [B, 48, h, w]
        raw = (self.encoder(folded) + self.encoder_skip(folded)).float()
        mean, log_std = raw.chunk(2, dim=1)  # each [B, C, h, w]
        return torch.cat([mean, log_std.clamp(-10, 3).exp()], dim=1)

    def sample(self, raw: Tensor, generator: Draws | None = None) -> Tensor:
        """Draw normalised latents from the posterior; its mean without a generator.

        Args:
            raw: [B, 2C, h, w] from `encode`.
            generator: on the device of `raw`.

        Returns:
            [B, C, h, w], about zero mean and unit variance over the training pictures.
        """
        return (draw(raw, generator) - self.shift.view(-1, 1, 1)) / self.scale.view(-1, 1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents [B, C, h, w] to pictures [B, 3, H, W], about [-1, 1], not clamped."""
        raw = latents * self.scale.view(-1, 1, 1) + self.shift.view(-1, 1, 1)
        raw = raw.contiguous(memory_format=torch.channels_last)
        return self.unfold(self.decoder(raw) + self.decoder_skip(raw)).contiguous()

    @torch.no_grad()
    def track(self, raw: Tensor, rate: float) -> None:
        """Move `shift` and `scale` towards the statistics of a batch of raw latents.

        Args:
            raw: [B, 2C, h, w] from `encode`.
            rate: weight of this batch, 0 to 1.
        """
        mean, std = raw.detach().chunk(2, dim=1)
        spread = mean.var(dim=(0, 2, 3), correction=0) + std.square().mean(dim=(0, 2, 3))
        self.shift.lerp_(mean.mean(dim=(0, 2, 3)), rate)
        self.scale.lerp_(spread.sqrt(), rate)

    def fingerprint(self) -> str:
        """16 hex digits over the options that shape the model and its weights."""
        return fingerprint(f"tiny {self.config.width} {self.config.depth}", self.state_dict())


def build(options: Config) -> TinyAutoencoder:
    """Build the autoencoder: frozen if weights are named, trainable if not.

    Raises:
        GessoError: the weight file is missing, broken or of another width or depth.
    """
    model = TinyAutoencoder(options)
    if options.weights is not None:
        file = SHIPPED.get(options.weights, Path(options.weights))
        load_weights(
            model, file, f"a tiny autoencoder of width {options.width} and depth {options.depth}"
        )
    return model
