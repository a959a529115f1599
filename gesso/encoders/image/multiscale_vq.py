"""A tokenizer of pictures by scales, for scale-wise generation: few convolutions and one codebook.

The quantisation is VAR's (https://arxiv.org/abs/2404.02905, section 3.2), see
`gesso.nn.multiscale`; encoder and decoder are small, for small pictures on a CPU: they start by
folding each 4 x 4 square of pixels into 48 channels, as the tiny autoencoder does.

Dims: B pictures, H x W pixels, S = H/8 side of the full grid, C code width, K hidden width, T codes
over all scales.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field
from torch import Tensor, nn

from gesso import config
from gesso.encoders._weights import fingerprint, load_weights
from gesso.encoders.image import check_sides
from gesso.nn.codebook import Quantised
from gesso.nn.multiscale import MultiScaleCodebook
from gesso.nn.residual import Residual
from gesso.types import GessoError

if TYPE_CHECKING:
    from gesso.draws import Draws

FOLD = 4


class Config(config.Config):
    """Options of the tokenizer.

    Attributes:
        width: K.
        depth: residual blocks at each of the two sizes of the decoder; the encoder has one.
        codes: entries of the codebook.
        code_dim: C.
        scales: codes a side, ascending; the last is the picture's side over 8.
        weights: a safetensors file or checkpoint folder; None for random weights that are trained.
    """

    width: int = Field(default=64, ge=1)
    depth: int = Field(default=2, ge=1)
    codes: int = Field(default=512, ge=2)
    code_dim: int = Field(default=8, ge=1)
    scales: list[int] = Field(default=[1, 2, 3, 4, 6, 8])
    weights: str | None = None


class MultiScaleVQ(nn.Module):
    """The autoencoder; the contracts are `ImageEncoder` and `Tokenizer` of `encoders.image`.

    Raw latents are the encoder's vectors, normalised latents the sums of codes that stand for them.
    """

    factor = 2 * FOLD

    def __init__(self, options: Config) -> None:
        super().__init__()
        scales, width, pixels = options.scales, options.width, 3 * FOLD**2
        if not scales or scales != sorted(set(scales)) or scales[0] < 1:
            raise GessoError(f"multiscale_vq: scales {scales} do not ascend: change them.")
        self.config = options
        self.channels = self.raw_channels = options.code_dim
        self.vocabulary = options.codes
        self.scales = tuple(scales)
        self.encoder = nn.Sequential(
            nn.PixelUnshuffle(FOLD),  # [B, 48, H/4, W/4]
            nn.Conv2d(pixels, width, 3, padding=1),
            Residual(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 4, stride=2, padding=1),  # [B, K, S, S]
            Residual(width),
            nn.SiLU(),
            nn.Conv2d(width, options.code_dim, 1),
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(options.code_dim, width, 3, padding=1),
            *(Residual(width) for _ in range(options.depth)),
            nn.Conv2d(width, 4 * width, 1),
            nn.PixelShuffle(2),  # [B, K, H/4, W/4]
            *(Residual(width) for _ in range(options.depth)),
            nn.SiLU(),
            nn.Conv2d(width, pixels, 3, padding=1),
            nn.PixelShuffle(FOLD),  # [B, 3, H, W]
        )
        self.quantizer = MultiScaleCodebook(options.codes, options.code_dim, scales)

    def encode(self, pixels: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] in [-1, 1] to vectors [B, C, S, S] before quantisation.

        Raises:
            GessoError: H and W are not 8 times the last scale.
        """
        check_sides(pixels, self.factor)
        side = self.factor * self.scales[-1]
        if tuple(pixels.shape[-2:]) != (side, side):
            raise GessoError(
                f"This tokenizer takes pictures of {side}x{side} pixels, not "
                f"{pixels.shape[-1]}x{pixels.shape[-2]}: resize them or change its scales."
            )
        z: Tensor = self.encoder(pixels)
        return z.float()

    def quantise(self, raw: Tensor) -> Quantised:
        """Vectors [B, C, S, S] to latents [B, C, S, S], codes [B, T] and the loss."""
        found: Quantised = self.quantizer(raw)
        return found

    def sample(self, raw: Tensor, generator: Draws | None = None) -> Tensor:
        """The latents [B, C, S, S] that the codes stand for; nothing is drawn."""
        return self.quantise(raw).value

    def codes(self, raw: Tensor) -> Tensor:
        """Vectors [B, C, S, S] to codes [B, T], scale after scale, each row by row."""
        return self.quantizer.codes(raw)

    def from_codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes [B, T] to latents [B, C, S, S]; the grid is (S, S)."""
        return self.quantizer.look_up(codes)

    def entries(self, codes: Tensor) -> Tensor:
        """Codes [B, n] to the codebook's entries [B, n, C]."""
        return self.quantizer.codebook.look_up(codes)

    def inputs(self, codes: Tensor) -> Tensor:
        """Codes of the first k scales to what predicts the next; see `MultiScaleCodebook`."""
        return self.quantizer.inputs(codes)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [B, C, S, S] to pictures [B, 3, H, W], about [-1, 1], not clamped."""
        return self.decoder(latents)

    def fingerprint(self) -> str:
        """16 hex digits over the options that shape the model and its weights."""
        shape = self.config.model_dump(exclude={"weights"})
        return fingerprint(f"multiscale_vq {shape}", self.state_dict())


def build(options: Config) -> MultiScaleVQ:
    """Build the tokenizer: frozen if weights are named, trainable if not.

    Raises:
        GessoError: the weight file is missing, broken or of another shape.
    """
    model = MultiScaleVQ(options)
    if options.weights is not None:
        load_weights(model, Path(options.weights), "a multi-scale tokenizer of this shape")
    return model
