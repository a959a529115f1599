"""Noise paths: x_t = alpha(t) x0 + sigma(t) noise.

A path knows its own units of t. What the network is told is `model_time(t)`: 0..1000, so that one
timestep embedding serves all, but on the edm path ln(sigma) / 4, as its published networks want it.
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
    noise_scale: float
    """What standard normal noise is multiplied with to be x at `t_max`."""
    sigma_data: float
    """Standard deviation of the clean latents, as far as the path goes by one."""

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Signal and noise level at `t`, both of its shape."""

    def model_time(self, t: Tensor) -> Tensor:
        """What the network gets for `t`."""

    def scale_input(self, x: Tensor, t: Tensor) -> Tensor:
        """What the network gets for x [B, C, h, w] at t [B]: of about unit variance."""

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
    noise_scale = sigma_data = 1.0

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

    def scale_input(self, x: Tensor, t: Tensor) -> Tensor:
        return x

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
    noise_scale = sigma_data = 1.0

    def __init__(self, shift: float = 1.0) -> None:
        if shift <= 0:
            raise GessoError(f"The flow path's shift is {shift}: give a positive number.")
        self.shift = shift

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.to(_real(t))
        return 1 - t, t

    def model_time(self, t: Tensor) -> Tensor:
        return 1000 * t.to(_real(t))

    def scale_input(self, x: Tensor, t: Tensor) -> Tensor:
        return x

    def place(self, u: Tensor) -> Tensor:
        return self.shift * u / (1 + (self.shift - 1) * u)


class EDM:
    """Variance-exploding diffusion: x_t = x0 + t noise, t the noise level itself in 0.002..80.

    Karras et al. 2022, https://arxiv.org/abs/2206.00364, table 1, last column.

    Args:
        sigma_data: standard deviation of the clean latents.
    """

    t_min = 0.002
    t_max = noise_scale = 80.0
    rho = 7.0

    def __init__(self, sigma_data: float) -> None:
        self.sigma_data = sigma_data

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        t = t.to(_real(t))
        return torch.ones_like(t), t.clone()

    def model_time(self, t: Tensor) -> Tensor:
        """c_noise: ln(sigma) / 4."""
        return t.to(_real(t)).log() / 4

    def scale_input(self, x: Tensor, t: Tensor) -> Tensor:
        """c_in x: x over the standard deviation of x_t."""
        variance = self.sigma_data**2 + t.to(x.dtype) ** 2
        return x * variance.rsqrt().view(-1, *[1] * (x.dim() - 1))

    def place(self, u: Tensor) -> Tensor:
        """Even steps in t^(1/7) (eq. 5)."""
        low, high = self.t_min ** (1 / self.rho), self.t_max ** (1 / self.rho)
        return (low + u * (high - low)) ** self.rho


def make_path(config: DiffusionConfig, pixels: int | None = None) -> DDPM | Flow | EDM:
    """The path that a recipe names.

    Args:
        config: names it.
        pixels: of the picture, for `shift_base`: m pixels are shifted by sqrt(m / n) times as much
            as the n of the base, as noise hides less of a larger picture (Esser et al. 2024, eq.
            23). None: those of the base.

    Raises:
        GessoError: a prediction that is undefined somewhere on the path, or options that belong to
            another path.
    """
    own = {"prediction": config.prediction == "edm", "timesteps": config.timesteps == "lognormal"}
    if config.path != "edm" and any(own.values()):
        key = "prediction edm" if own["prediction"] else "timesteps lognormal"
        raise GessoError(f"diffusion.{key} belongs to path: edm; change it, or the path.")
    for key in ("shift", "shift_base"):
        if config.path != "flow" and getattr(config, key) not in (1, None):
            raise GessoError(
                f"diffusion.{key} applies to path: flow; remove it or change the path."
            )
    if config.path == "edm":
        if not own["timesteps"]:
            raise GessoError(
                f"diffusion.timesteps {config.timesteps} says nothing on path: edm; use lognormal."
            )
        return EDM(config.sigma_data)
    if config.path == "ddpm":
        return DDPM()
    if config.prediction == "epsilon":
        raise GessoError(
            "diffusion.prediction epsilon says nothing at t = 1 of path: flow, where the input is"
            " pure noise; use flow, v or x0."
        )
    if config.shift_base is None or pixels is None:
        return Flow(config.shift)
    return Flow(config.shift * pixels**0.5 / config.shift_base)
