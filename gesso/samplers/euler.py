"""Euler's method on the probability-flow ODE dx = x0 dalpha + noise dsigma.

The form holds on every path and is singular at neither end. A step lands on
alpha' x0 + sigma' noise: on the flow path the usual Euler step along the velocity noise - x0, on
the ddpm path a deterministic DDIM step.
"""

from __future__ import annotations

from torch import Tensor

from gesso.diffusion.noise import Generators
from gesso.diffusion.schedules import Callback, Schedule
from gesso.types import Denoise


def sample(
    denoise: Denoise,
    x: Tensor,
    schedule: Schedule,
    *,
    generator: Generators | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """First order, one evaluation a step.

    Args:
        denoise: the (guided) denoiser.
        x: [B, C, h, w] noise times sigma of the schedule's first time.
        schedule: of N steps.
        generator: unused, the method is deterministic.
        callback: told the step and x0's estimate.

    Returns:
        [B, C, h, w] float32 latents.
    """
    x = x.float()
    for i, (t, alpha, sigma, next_alpha, next_sigma) in enumerate(schedule.pairs()):
        out = denoise(x, x.new_full((len(x),), t))
        x = x + (next_alpha - alpha) * out.x0 + (next_sigma - sigma) * out.noise
        if callback is not None:
            callback(i, out.x0)
    return x
