"""Where training puts its timesteps."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gesso.config import DiffusionConfig
from gesso.diffusion.paths import DDPM, make_path
from gesso.draws import Draws


def draw(config: DiffusionConfig, n: int, generator: Draws, pixels: int | None = None) -> Tensor:
    """n timesteps in the path's units, independent of each other.

    A share u in (0, 1) of the path follows a law of Esser et al. 2024 (arXiv 2403.03206), section
    3.1; on the ddpm path it becomes the whole step floor(1000 u), on the flow path it is shifted.
    Both ends are u = 0, clean, and u = 1, noise.

        uniform       covers the path evenly
        logit_normal  sigmoid of a normal variable: the middle is favoured (eq. 19)
        mode          see `mode`: the middle is favoured, and the ends keep some density (eq. 20)
        cosmap        see `cosmap`: the signal-to-noise ratios of the cosine schedule (eq. 21)

    `lognormal` draws the noise levels of the edm path (Karras et al. 2022, table 1).

    Args:
        config: names the law and its constants.
        n: how many.
        generator: where they come from.
        pixels: of each picture, for `shift_base`; None: those at which `shift` holds.

    Returns:
        [n] float32 on the generator's device.
    """
    if config.timesteps == "lognormal":
        return (config.p_mean + config.p_std * generator.randn(n)).exp()
    if config.timesteps == "logit_normal":
        u = torch.sigmoid(config.logit_mean + config.logit_std * generator.randn(n))
    else:
        u = generator.rand(n)
    if config.timesteps == "mode":
        u = mode(u, config.mode_scale)
    elif config.timesteps == "cosmap":
        u = cosmap(u)
    path = make_path(config, pixels)
    if isinstance(path, DDPM):
        return (u * path.steps).floor().clamp(max=path.t_max)
    return path.place(u)


def mode(u: Tensor, scale: float) -> Tensor:
    """1 - u - s (cos^2(pi u / 2) - 1 + u), of uniform u: [n] -> [n] (eq. 20).

    It falls from 1 to 0 for every s in [-1, 2 / (pi - 2)]; s = 0 is uniform.
    """
    return 1 - u - scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)


def cosmap(u: Tensor) -> Tensor:
    """1 - 1 / (tan(pi u / 2) + 1), of uniform u: [n] -> [n].

    Its density is 2 / (pi - 2 pi t + 2 pi t^2) (eq. 21).
    """
    return 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)
