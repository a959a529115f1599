"""Noise paths: x_t = alpha(t) x0 + sigma(t) noise.

A path knows its own units of t. What the network is told is `model_time(t)`, in 0..1000 on every
path, so that one timestep embedding serves all.
"""

from __future__ import annotations

from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from gesso.config import DiffusionConfig
from gesso.types import GessoError


class Path(Protocol):
    """What samplers, objectives and schedules need of a path."""

    t_min: float
    """The cleanest t that the network is evaluated at or trained on."""
    t_max: float
    """The noisiest t."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise level at `t`, both of its shape."""

    def model_time(self, t: Tensor) -> Tensor:
        """What the network gets for `t`: 0..1000."""

    def place(self, u: Tensor) -> Tensor:
        """t for shares u of the path: u = 0 is clean, u = 1 is `t_max`."""


def _real(t: Tensor) -> torch.dtype:
    return t.dtype if t.is_floating_point() else torch.float32


class DDPM:
    """Variance-preserving diffusion in 1000 steps, linear betas (Ho et al. 2020, section 4).

    t runs over 0..999; between whole steps log(alpha-bar) is interpolated, as DPM-Solver does.
    """

    steps = 1000
    t_min = 0.0
    t_max = 999.0

    @cached_property
    def betas(self) -> Tensor:
        """[1000] float64."""
        return torch.linspace(1e-4, 0.02, self.steps, dtype=torch.float64)

    @cached_property
    def log_alpha_bar(self) -> Tensor:
        """[1000] float64, log of the cumulative product of 1 - beta."""
        return torch.log1p(-self.betas).cumsum(0)

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        table = self.log_alpha_bar.to(t.device)
        position = t.double().clamp(self.t_min, self.t_max)
        low = position.floor().long().clamp(max=self.steps - 2)
        log_alpha_bar = torch.lerp(table[low], table[low + 1], position - low)
        alpha = (log_alpha_bar / 2).exp()
        sigma = (-torch.expm1(log_alpha_bar)).sqrt()
        return alpha.to(_real(t)), sigma.to(_real(t))

    def model_time(self, t: Tensor) -> Tensor:
        return t.to(_real(t))

    def place(self, u: Tensor) -> Tensor:
        return u * self.t_max


class Flow:
    """Rectified flow: x_t = (1 - t) x0 + t noise, t in 0..1 (Liu et al. 2022; Esser et al. 2024).

    Args:
        shift: moves training and sampling towards noise, t -> shift t / (1 + (shift - 1) t);
            larger latents need more (Esser et al. 2024, eq. 23).
    """

    t_min = 0.0
    t_max = 1.0

    def __init__(self, shift: float = 1.0) -> None:
        if shift <= 0:
            raise GessoError(f"The flow path's shift is {shift}: give a positive number.")
        self.shift = shift

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.to(_real(t))
        return 1 - t, t

    def model_time(self, t: Tensor) -> Tensor:
        return 1000 * t.to(_real(t))

    def place(self, u: Tensor) -> Tensor:
        return self.shift * u / (1 + (self.shift - 1) * u)


def make_path(config: DiffusionConfig) -> DDPM | Flow:
    """The path that a recipe names.

    Raises:
        GessoError: a prediction that is undefined somewhere on the path, or an unused shift.
    """
    if config.path == "ddpm":
        if config.shift != 1:
            raise GessoError("diffusion.shift applies to path: flow; remove it or change the path.")
        return DDPM()
    if config.prediction == "epsilon":
        raise GessoError(
            "diffusion.prediction epsilon says nothing at t = 1 of path: flow, where the input is"
            " pure noise; use flow, v or x0."
        )
    return Flow(config.shift)
