"""What consistency models are distilled on and sampled with: a grid of times, and a boundary.

f(x, t) = c_skip x + c_out x0, with f(x, 0) = x. Luo et al. 2023, https://arxiv.org/abs/2310.04378,
sections 4.1 and 4.3.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

from gesso.diffusion.paths import DDPM, EDM, Path
from gesso.types import GessoError

SIGMA_DATA = 0.5
TIME_SCALE = 10.0  # of t in 0..1000

Number = TypeVar("Number", float, Tensor)


def boundary(time: Number) -> tuple[Number, Number]:
    """(c_skip, c_out) = (s^2 / ((10 t)^2 + s^2), 10 t / sqrt((10 t)^2 + s^2)) with s = 0.5.

    Args:
        time: t as the network is told it, 0..1000: a number, or a tensor of any shape.
    """
    power = (TIME_SCALE * time) ** 2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / power, TIME_SCALE * time / power**0.5


def grid(path: Path, steps: int) -> Tensor:
    """The times that a consistency model is distilled on, from clean to noisy.

    On the ddpm path every (1000 / steps)-th whole step: 0, 19, 39, ... 999 for 50. On the flow path
    equal shares of it, shifted as it says.

    Returns:
        [steps + 1] float64; the first is the clean end.

    Raises:
        GessoError: the edm path, or more steps than the ddpm path has.
    """
    if isinstance(path, EDM):
        raise GessoError("Consistency models go by the paths ddpm and flow, not by edm.")
    index = torch.arange(steps + 1, dtype=torch.float64)
    if not isinstance(path, DDPM):
        return path.place(index / steps)
    if steps > path.steps:
        raise GessoError(f"A grid of {steps} steps is finer than the path's {path.steps}.")
    return (path.steps // steps * index - 1).clamp(min=path.t_min)
