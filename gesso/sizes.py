"""The sizes that a model can paint, and those that it was trained on."""

from __future__ import annotations

import math
import warnings

from gesso.config import SampleConfig, resolve
from gesso.data.buckets import Size, assign, published_table
from gesso.model import Model
from gesso.types import GessoError

FAR = 1.15  # a side so many times longer or shorter than its bucket's lies beyond the buckets


def painted_size(contract: SampleConfig) -> Size:
    """(H, W) that is painted: the contract's, or with binning the bucket nearest in aspect."""
    size = (contract.height, contract.width)
    if contract.use_resolution_binning and contract.bucket_size and min(size) > 0:
        return assign(*size, published_table(contract.bucket_size))
    return size


def fitting_size(model: Model, contract: SampleConfig, picture: Size) -> Size:
    """(H, W) to paint a picture at, where it was left open.

    Its bucket; without buckets, the picture's shape at the contract's area.
    """
    if contract.bucket_size:
        return assign(*picture, published_table(contract.bucket_size))
    multiple = patch_pixels(model)
    scale = math.sqrt(contract.height * contract.width / (picture[0] * picture[1]))
    height, width = (max(multiple, round(side * scale / multiple) * multiple) for side in picture)
    return height, width


def latent_shape(model: Model, contract: SampleConfig) -> tuple[int, int, int]:
    """(C, h, w) of the latents that are painted.

    Raises:
        GessoError: a side is no multiple of the model's patch.
    """
    encoder, multiple = model.image_encoder, patch_pixels(model)
    height, width = painted_size(contract)
    for name, value in (("height", height), ("width", width)):
        if value < multiple or value % multiple:
            near = max(multiple, round(value / multiple) * multiple)
            raise GessoError(
                f"The {name} {value} is no multiple of {multiple} pixels, "
                f"this model's patch: try {near}."
            )
    return encoder.channels, height // encoder.factor, width // encoder.factor


def patch_pixels(model: Model) -> int:
    """Pixels that a patch of the backbone covers along each side."""
    spec = model.description.backbone
    assert spec is not None  # a pipeline's model has one
    patch = getattr(resolve("backbones", spec)[1], "patch_size", 1)  # codes stand for one cell
    return int(model.image_encoder.factor * patch)


def warn_beyond_buckets(contract: SampleConfig) -> None:
    """Warn about a size far from all that the model was trained on, if it is known."""
    if contract.bucket_size is None:
        return
    size = painted_size(contract)
    near = assign(*size, published_table(contract.bucket_size))
    if any(max(a / b, b / a) > FAR for a, b in zip(size, near, strict=True)):
        warnings.warn(
            f"{size[0]}x{size[1]} is far from the sizes that this model was trained on, of "
            f"which {near[0]}x{near[1]} is the nearest: pictures may be poor.",
            stacklevel=4,
        )
