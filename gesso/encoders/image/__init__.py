"""Image encoders: pixels -> raw latents -> normalised latents, and back. One file each.

An image encoder module has `Config`, and `build(options)` returning an `ImageEncoder`.

Dims: B pictures, H x W pixels, C latent channels, R raw channels, h, w latent size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from gesso.types import GessoError

if TYPE_CHECKING:
    from torch import Tensor

    from gesso.draws import Draws


class ImageEncoder(Protocol):
    """What every image encoder offers; it is also an `nn.Module`.

    Attributes:
        factor: pixels per latent cell, along each side.
        channels: C.
        raw_channels: R; 2C for the mean and standard deviation of a KL posterior, C if
            encoding is deterministic.
    """

    factor: int
    channels: int
    raw_channels: int

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> raw latents [B, R, h, w] float32: what is cached."""
        ...

    def sample(self, raw: Tensor, generator: Draws | None = None) -> Tensor:
        """Raw -> normalised latents [B, C, h, w]; without a generator the posterior's mean."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents -> [B, 3, H, W], about [-1, 1], not clamped."""
        ...

    def fingerprint(self) -> str:
        """16 hex digits over what decides the latents; equal in every process."""
        ...


class Tokenizer(ImageEncoder, Protocol):
    """An image encoder whose latents are entries of a codebook.

    Attributes:
        vocabulary: K, codes that there are.
    """

    vocabulary: int

    def codes(self, raw: Tensor) -> Tensor:
        """Raw latents [B, R, h, w] -> codes [B, T] int64 in the order in which they are learnt."""
        ...

    def from_codes(self, codes: Tensor, grid: tuple[int, int]) -> Tensor:
        """Codes [B, T] of latents of size (h, w) -> normalised latents [B, C, h, w]."""
        ...


def check_sides(pixels: Tensor, factor: int) -> None:
    """Refuse pictures that do not divide into latent cells.

    Args:
        pixels: [B, 3, H, W].
        factor: pixels per cell.

    Raises:
        GessoError: H or W is no multiple of `factor`.
    """
    height, width = pixels.shape[-2:]
    if height % factor or width % factor:
        raise GessoError(
            f"A picture of {width}x{height} pixels cannot be encoded: "
            f"crop or resize it so that both sides are multiples of {factor}."
        )


def draw(raw: Tensor, generator: Draws | None) -> Tensor:
    """A sample of a posterior given as mean and standard deviation; its mean without a generator.

    Args:
        raw: [B, 2C, h, w].
        generator: on the device of `raw`.

    Returns:
        [B, C, h, w].
    """
    mean, std = raw.chunk(2, dim=1)
    if generator is None:
        return mean
    return mean + std * generator.randn(*mean.shape).to(raw.dtype)
