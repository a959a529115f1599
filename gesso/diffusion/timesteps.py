"""Where training puts its timesteps."""

from __future__ import annotations

import torch
from torch import Tensor

from gesso.config import DiffusionConfig
from gesso.diffusion.paths import DDPM, make_path
from gesso.draws import Draws


def draw(config: DiffusionConfig, n: int, generator: Draws) -> Tensor:
    """n timesteps in the path's units, independent of each other.

    `uniform` covers the path evenly; `logit_normal` is the logistic of a normal variable, which
    favours the middle (Esser et al. 2024, section 3.1). On the ddpm path a share u in (0, 1)
    becomes the whole step floor(1000 u); on the flow path it is shifted. `lognormal` draws the
    noise levels of the edm path (Karras et al. 2022, table 1).

    Returns:
        [n] float32 on the generator's device.
    """
    if config.timesteps == "lognormal":
        return (config.p_mean + config.p_std * generator.randn(n)).exp()
    if config.timesteps == "uniform":
        u = generator.rand(n)
    else:
        u = torch.sigmoid(config.logit_mean + config.logit_std * generator.randn(n))
    path = make_path(config)
    if isinstance(path, DDPM):
        return (u * path.steps).floor().clamp(max=path.t_max)
    return path.place(u)
