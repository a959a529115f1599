"""Painting with models of codes: what the pipeline does for them where others denoise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from gesso.config import SampleConfig, module
from gesso.diffusion.noise import Generators
from gesso.model import Model
from gesso.sizes import latent_shape
from gesso.types import Cond, GessoError


def refuse(model: Model, given: Mapping[str, Any]) -> None:
    """Refuse what only denoising can do.

    Args:
        model: of codes.
        given: options of the call by name; None where one was left out.

    Raises:
        GessoError: names the first that was given.
    """
    for name, value in given.items():
        if value is not None:
            raise GessoError(
                f"{model.name} generates a picture's codes from the prompt alone, without noise or"
                f" steps to choose: leave out {name}."
            )


def steps(model: Model, contract: SampleConfig) -> int:
    """How many times the backbone runs for a picture.

    Raises:
        GessoError: a size that the model cannot paint.
    """
    _, h, w = latent_shape(model, contract)
    return int(module("samplers", contract.sampler).steps(model.backbone, (h, w)))


def paint(
    model: Model,
    contract: SampleConfig,
    cond: Cond,
    null: Cond,
    generators: Generators,
    step_done: Callable[[], None],
) -> Tensor:
    """B conditions, and what stands for none, to normalised latents [B, C, h, w]."""
    _, h, w = latent_shape(model, contract)
    codes = module("samplers", contract.sampler).generate(
        model.backbone,
        model.image_encoder,
        cond,
        null,
        contract,
        (h, w),
        generator=generators,
        callback=lambda _: step_done(),
    )
    latents: Tensor = model.image_encoder.from_codes(codes, (h, w))
    return latents.float()
