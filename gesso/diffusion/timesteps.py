"""Where training puts its timesteps."""

from __future__ import annotations

import torch
from torch import Tensor

from gesso.config import DiffusionConfig
from gesso.diffusion.paths import DDPM, make_path


def draw(config: DiffusionConfig, n: int, generator: torch.Generator | None = None) -> Tensor:
    """n timesteps in the path's units, independent of each other.

    `uniform` covers the path evenly; `logit_normal` is the logistic of a normal variable, which
    favours the middle (Esser et al. 2024, section 3.1). On the ddpm path a share u in (0, 1)
    becomes the whole step floor(1000 u); on the flow path it is shifted.

    Returns:
        [n] float32 on the generator's device (CPU without one).
    """
    device = generator.device if generator is not None else None
    if config.timesteps == "uniform":
        u = torch.rand(n, generator=generator, device=device)
    else:
        normal = torch.randn(n, generator=generator, device=device)
        u = torch.sigmoid(config.logit_mean + config.logit_std * normal)
    path = make_path(config)
    if isinstance(path, DDPM):
        return (u * path.steps).floor().clamp(max=path.t_max)
    return path.place(u)
