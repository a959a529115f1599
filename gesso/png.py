"""What a painted PNG carries besides its pixels: JSON in the text chunk "gesso"."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gesso.types import GessoError

if TYPE_CHECKING:
    from PIL.Image import Image

NEEDED = {"prompt", "seed", "model", "fingerprint", "contract"}


def save_png(image: Image, file: Path, metadata: dict[str, Any]) -> None:
    """Write a PNG with its metadata, a dictionary that JSON can hold."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("gesso", json.dumps(metadata))
    image.save(file, pnginfo=info)


def read_png(file: Path) -> dict[str, Any]:
    """The metadata of a picture that gesso painted: at least the keys `NEEDED`.

    Raises:
        GessoError: no such file, no picture, or a picture without gesso's metadata.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            text = getattr(image, "text", {}).get("gesso")
    except FileNotFoundError:
        raise GessoError(f"There is no picture {file}: give one that gesso painted.") from None
    except (UnidentifiedImageError, OSError) as e:
        raise GessoError(f"{file} cannot be read as a picture: {e}.") from None
    try:
        values = json.loads(text or "null")
    except ValueError:
        values = None
    if not isinstance(values, dict) or not values.keys() >= NEEDED:
        raise GessoError(f"{file} carries no gesso prompt and seed: it cannot be repainted.")
    return values
