"""Any picture file -> RGB uint8, and from there to the size and range that encoders take.

Dims: H, W a size in pixels.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

from gesso.types import GessoError

MIN_SIDE = 8
MAX_PIXELS = 100_000_000
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".ppm"}
)
# Only these decoders may see a file: others (EPS, WMF, ...) start programs or are rarely tested.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "TIFF", "AVIF", "PPM")


def load_rgb(file: Path | str | bytes, background: str = "white") -> np.ndarray:
    """Decode a picture as it is meant to be seen: upright, first frame, without transparency.

    Args:
        file: a path, or the bytes of a picture file.
        background: the colour behind transparent pixels: a name or "#rrggbb".

    Returns:
        [H, W, 3] uint8, RGB.

    Raises:
        GessoError: unreadable, truncated, not a picture, smaller than 8 pixels on a side, larger
            than 100 megapixels, or an unknown background.
    """
    colour = background_rgb(background)
    try:
        source = io.BytesIO(file) if isinstance(file, bytes) else file
        with Image.open(source, formats=_formats()) as image:
            _check_size(image)  # known from the header, before pixels are decoded
            return np.asarray(_flatten(_upright(image), colour))
    except GessoError:
        raise
    except FileNotFoundError:
        raise GessoError("The picture file does not exist.") from None
    except Image.UnidentifiedImageError:
        raise GessoError("The file is not a picture, or its format is not supported.") from None
    except Exception as e:  # a broken file can make a decoder raise nearly anything
        raise GessoError(f"The picture cannot be decoded: {str(e) or type(e).__name__}.") from None


def background_rgb(background: str) -> tuple[int, int, int]:
    """A colour name or "#rrggbb" as (red, green, blue) in 0..255.

    Raises:
        GessoError: unknown colour.
    """
    try:
        return ImageColor.getrgb(background)[:3]
    except ValueError:
        raise GessoError(
            f"The background {background!r} is not a colour: give a name like 'white' or '#rrggbb'."
        ) from None


def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


def _check_size(image: Image.Image) -> None:
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise GessoError(
            f"The picture is too small: {width}x{height}, at least 8 a side is needed."
        )
    if width * height > MAX_PIXELS:
        raise GessoError(f"The picture is too large: {width}x{height} is over 100 megapixels.")


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a broken EXIF block does not make the pixels unusable
        return image


def _flatten(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Any PIL mode -> RGB on the background colour."""
    if image.mode == "F":
        raise GessoError("The picture has floating-point pixels: save it with 8 or 16 bits.")
    if image.mode.startswith("I"):  # 16 bits of grey; PIL's own conversion would clip at 255
        grey = np.asarray(image).astype(np.float64)
        image = Image.fromarray((grey / 257 + 0.5).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        canvas = Image.new("RGB", image.size, colour)
        canvas.paste(image, mask=image)
        return canvas
    return image if image.mode == "RGB" else image.convert("RGB")


def cover(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize until the size is covered, then cut out its centre; antialiased (Lanczos).

    Args:
        image: [h, w, 3] uint8.
        size: (H, W) of the result.

    Returns:
        [H, W, 3] uint8.
    """
    h, w = image.shape[:2]
    height, width = size
    if (h, w) == (height, width):
        return image
    scale = min(h / height, w / width)  # source pixels per target pixel
    top, left = (h - height * scale) / 2, (w - width * scale) / 2
    box = (max(left, 0.0), max(top, 0.0), min(w - left, w), min(h - top, h))
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS, box=box)
    return np.asarray(resized)


def to_tensor(images: np.ndarray | Tensor) -> Tensor:
    """uint8 [..., H, W, 3] in 0..255 -> float32 [..., 3, H, W] in [-1, 1]."""
    pixels = torch.as_tensor(np.array(images) if isinstance(images, np.ndarray) else images)
    return pixels.movedim(-1, -3).float().div_(127.5).sub_(1)
