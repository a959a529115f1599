"""Pictures to paint over: their size, their latents, and which parts of them stay.

Dims: N pictures, H x W pixels, C latent channels, h, w latent size, f pixels per latent cell.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gesso.data.buckets import Size
from gesso.data.images import cover, to_tensor
from gesso.diffusion.paths import Path
from gesso.diffusion.predictions import like
from gesso.types import Denoise, Denoised, GessoError

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = Image | np.ndarray  # [H, W, 3] uint8


@dataclass
class Canvas:
    """Pictures to start from, one a painting.

    Attributes:
        pixels: [N, 3, H, W] in [-1, 1].
        latents: [N, C, h, w], normalised: the mean of the encoder's posterior.
        mask: [N, 1, H, W], 1 where to paint and 0 where the picture stays; None: paint everywhere.
    """

    pixels: Tensor
    latents: Tensor
    mask: Tensor | None = None

    def __getitem__(self, rows: slice) -> Canvas:
        mask = None if self.mask is None else self.mask[rows]
        return Canvas(self.pixels[rows], self.latents[rows], mask)

    @property
    def latent_mask(self) -> Tensor | None:
        """[N, 1, h, w]: a cell is painted if any of its pixels is."""
        if self.mask is None:
            return None
        factor = self.pixels.shape[2] // self.latents.shape[2]
        return F.max_pool2d(self.mask, factor).to(self.latents.device)

    def composite(self, painted: Tensor) -> Tensor:
        """[N, 3, H, W] in [0, 1], with the pixels that stay as they were."""
        if self.mask is None:
            return painted
        return torch.where(self.mask.bool(), painted, (self.pixels + 1) / 2)


def make_canvas(
    image: Picture | Sequence[Picture],
    mask: Picture | Sequence[Picture] | None,
    size: Callable[[Size], Size],
    encode: Callable[[Tensor], Tensor],
    n: int,
    per_prompt: int,
) -> Canvas:
    """Pictures, and masks, cut to the size that will be painted.

    Args:
        image: one picture for all, or one a prompt; PIL, or [H, W, 3] uint8.
        mask: likewise, of the pictures' sizes; white (128 and above) is painted over. PIL of any
            mode, or [H, W] uint8 or bool.
        size: from the first picture's (H, W) to the (H, W) to be painted.
        encode: [k, 3, H, W] in [-1, 1] -> normalised latents [k, C, h, w].
        n: paintings in all.
        per_prompt: paintings a prompt.

    Raises:
        GessoError: another number of pictures than prompts, or a mask of another size.
    """
    pictures = [_rgb(p) for p in several(image)]
    masks = None if mask is None else [_grey(m) for m in several(mask)]
    if masks is not None:
        for picture, painted in zip(pictures * len(masks), masks * len(pictures), strict=True):
            if picture.shape[:2] != painted.shape:
                raise GessoError(
                    f"The mask has {_shown(painted)} pixels where the picture has "
                    f"{_shown(picture)}: give a mask of the picture's size."
                )
    wanted = size(picture_size(pictures[0]))
    pixels = to_tensor(np.stack([cover(p, wanted) for p in pictures]))
    white = None
    if masks is not None:
        cut = [cover(np.repeat(m[..., None], 3, 2), wanted)[..., :1] for m in masks]
        white = (to_tensor(np.stack(cut)) >= 0).float()  # [k, 1, H, W]
    return Canvas(
        one_each(pixels, n, per_prompt, "pictures"),
        one_each(encode(pixels), n, per_prompt, "pictures"),
        None if white is None else one_each(white, n, per_prompt, "masks"),
    )


def picture_size(picture: np.ndarray) -> Size:
    """(H, W)."""
    return picture.shape[0], picture.shape[1]


def resize_and_crop(pixels: Tensor, size: Size) -> Tensor:
    """[N, 3, H, W] -> [N, 3, *size]: bilinear until the size is covered, then its centre.

    What diffusers' PixArt pipelines do after painting in a bucket.
    """
    height, width = pixels.shape[2:]
    if (height, width) == size:
        return pixels
    scale = max(size[0] / height, size[1] / width)
    scaled = (int(height * scale), int(width * scale))
    pixels = F.interpolate(pixels, size=scaled, mode="bilinear", align_corners=False)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    return pixels[:, :, top : top + size[0], left : left + size[1]]


def keep_unmasked(
    denoise: Denoise, path: Path, latents: Tensor, noise: Tensor, mask: Tensor
) -> Denoise:
    """A denoiser that paints under a mask only and knows the rest.

    Outside the mask the network sees the picture at the noise level of each step, and the answer
    is the picture itself, whatever the network says (Lugmayr et al. 2022, equation 8). A
    deterministic sampler that starts from alpha latents + sigma noise stays on that line, so
    nothing has to be replaced between its steps.

    Args:
        denoise: the (guided) denoiser.
        path: its noise path.
        latents: [B, C, h, w] of the picture.
        noise: [B, C, h, w], the starting noise.
        mask: [B, 1, h, w], 1 where to paint.
    """
    paint = mask.bool()

    def masked(x: Tensor, t: Tensor) -> Denoised:
        alpha, sigma = (like(v, x) for v in path.alpha_sigma(t))
        out = denoise(torch.where(paint, x, alpha * latents + sigma * noise), t)
        x0, rest = torch.where(paint, out.x0, latents), torch.where(paint, out.noise, noise)
        return Denoised(x0, rest, out.variance)

    return masked


def several(value: Any) -> list[Any]:
    """A picture, or a list of them, as a list.

    Raises:
        GessoError: it is empty.
    """
    several = list(value) if isinstance(value, list | tuple) else [value]
    if not several:
        raise GessoError("The list of pictures is empty: give one picture, or one for each prompt.")
    return several


def _rgb(picture: Any) -> np.ndarray:
    if hasattr(picture, "convert"):
        picture = np.asarray(picture.convert("RGB"))
    fits = isinstance(picture, np.ndarray) and picture.dtype == np.uint8
    if not (fits and picture.ndim == 3 and picture.shape[2] == 3):
        raise GessoError("A picture to paint over is a PIL image or an [H, W, 3] uint8 array.")
    return picture


def _grey(mask: Any) -> np.ndarray:
    """[H, W] uint8."""
    if hasattr(mask, "convert"):
        return np.asarray(mask.convert("L"))
    if isinstance(mask, np.ndarray) and mask.ndim == 2 and mask.dtype in (np.uint8, np.bool_):
        return mask if mask.dtype == np.uint8 else np.uint8(255) * mask
    raise GessoError("A mask is a PIL image or an [H, W] array of uint8 or bool.")


def _shown(picture: np.ndarray) -> str:
    return f"{picture.shape[0]}x{picture.shape[1]}"


def one_each(rows: Tensor, n: int, per_prompt: int, what: str) -> Tensor:
    """k rows -> n: one for all, or one a prompt.

    Raises:
        GessoError: `what` are neither one nor as many as prompts.
    """
    if len(rows) == 1:
        return rows.expand(n, *rows.shape[1:])
    if len(rows) * per_prompt != n:
        raise GessoError(
            f"There are {len(rows)} {what} for {n // per_prompt} prompts: give one, or as many."
        )
    return rows.repeat_interleave(per_prompt, 0)
