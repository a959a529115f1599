"""Which times a sampler visits, and the coefficients of the path there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gesso.diffusion.paths import DDPM, Path
from gesso.types import GessoError

Callback = Callable[[int, Tensor], None]
"""(step 0..N-1, estimate of x0 [B, C, h, w]), called after every step of a sampler."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """N steps through N + 1 times, from noise to clean.

    Attributes:
        t, alpha, sigma: [N + 1] float64 on the CPU. The network is never evaluated at the last.
    """

    t: Tensor
    alpha: Tensor
    sigma: Tensor

    def __len__(self) -> int:
        """N, the number of steps."""
        return len(self.t) - 1

    def pairs(self) -> Iterator[tuple[float, float, float, float, float]]:
        """(t, alpha, sigma, next alpha, next sigma) of every step, as Python floats."""
        t, alpha, sigma = self.t.tolist(), self.alpha.tolist(), self.sigma.tolist()
        return zip(t, alpha, sigma, alpha[1:], sigma[1:], strict=False)


def make_schedule(
    path: Path,
    num_inference_steps: int,
    spacing: Literal["linspace", "trailing"] = "linspace",
    final: Literal["zero", "sigma_min"] = "zero",
) -> Schedule:
    """Times from the noisiest to the cleanest.

    Args:
        path: on the ddpm path times are rounded to the whole steps that it was trained on.
        num_inference_steps: N >= 1.
        spacing: "linspace" spreads N + 1 points evenly over the path, ends included. "trailing"
            takes every (1000/N)-th step from the end, the convention of few-step models
            (Lin et al. 2023, table 2); on the flow path the two are the same.
        final: "zero" ends at the clean latent, "sigma_min" at `path.t_min`, where the ddpm path
            keeps a trace of noise (sigma = 0.01).

    Raises:
        GessoError: fewer than one step, or more steps than the path has.
    """
    n = num_inference_steps
    if n < 1:
        raise GessoError(f"num_inference_steps is {n}: give at least 1.")
    u = torch.linspace(1, 0, n + 1, dtype=torch.float64)
    t = path.place(u)
    if isinstance(path, DDPM):
        if n >= path.steps:
            raise GessoError(f"num_inference_steps is {n}: the ddpm path allows {path.steps - 1}.")
        if spacing == "trailing":
            t = ((u * path.steps).round() - 1).clamp(min=path.t_min)
        t = t.round()
    alpha, sigma = path.alpha_sigma(t)
    if final == "zero":
        alpha[-1], sigma[-1] = 1.0, 0.0
    return Schedule(t, alpha, sigma)
