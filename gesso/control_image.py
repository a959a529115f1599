"""Control pictures of a call: checked, cut to what is painted, and encoded.

Dims: N pictures to paint, H x W pixels, C latent channels, h, w latent size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from gesso.config import SampleConfig, resolve
from gesso.data.images import cover, to_tensor
from gesso.model import Model
from gesso.repaint import one_each, several
from gesso.sizes import painted_size
from gesso.types import Cond, GessoError

if TYPE_CHECKING:
    from gesso.repaint import Picture


def control_cond(
    pictures: Picture | Sequence[Picture],
    scale: float | None,
    model: Model,
    contract: SampleConfig,
    encode: Callable[[Tensor], Tensor],
    n: int,
    per_prompt: int,
) -> Cond:
    """Control pictures as the fields `control` and `control_scale` of a condition of N rows.

    Args:
        pictures: one for all, or one a prompt; PIL, or [H, W, 3] or [H, W] uint8, of the size that
            the contract paints.
        scale: strength of the control branch; None: 1, as it was trained.
        encode: [k, 3, H, W] in [-1, 1] -> normalised latents [k, C, h, w].
        n: paintings in all.
        per_prompt: paintings a prompt.

    Raises:
        GessoError: the model takes none, or a picture of another size or mode, another number of
            them than prompts, or a scale that is no number from 0 on.
    """
    if not takes_control(model):
        raise GessoError(
            f"{model.name} has no control branch: leave out the control picture, or train one with "
            "`gesso train pixart-delta-control`."
        )
    if scale is not None and not (math.isfinite(scale) and scale >= 0):
        raise GessoError(f"The control scale {scale} is no number from 0 on: 1 is as trained.")
    size = (contract.height, contract.width)
    found = [_rgb(picture) for picture in several(pictures)]
    for picture in found:
        if picture.shape[:2] != size:
            raise GessoError(
                f"The control picture has {picture.shape[0]}x{picture.shape[1]} pixels where "
                f"{size[0]}x{size[1]} are painted: resize it, or paint in its size."
            )
    pixels = to_tensor(np.stack([cover(p, painted_size(contract)) for p in found]))
    control = one_each(encode(pixels), n, per_prompt, "control pictures")
    scales = None if scale is None else torch.full((n, 1), scale, device=control.device)
    return Cond(control=control, control_scale=scales)


def takes_control(model: Model) -> bool:
    """Whether a model has been given a control branch."""
    adapter = model.description.adapter
    return adapter is not None and hasattr(resolve("adapters", adapter)[1], "condition")


def _rgb(picture: Any) -> np.ndarray:
    """[H, W, 3] uint8."""
    if hasattr(picture, "convert"):
        picture = np.asarray(picture.convert("RGB"))
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8:
        if picture.ndim == 2:
            return np.repeat(picture[..., None], 3, axis=2)
        if picture.ndim == 3 and picture.shape[2] == 3:
            return picture
    raise GessoError(
        "A control picture is a PIL image, or an array [H, W, 3] or [H, W] of uint8: convert it."
    )
