"""Heun's method on the probability-flow ODE dx = x0 dalpha + noise dsigma.

The trapezoid rule in alpha and sigma: on the flow path the usual Heun step along the velocity
noise - x0; the same order as algorithm 1 of Karras et al. 2022 on the ddpm path.
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
    """Second order, two evaluations a step, one in a last step that ends at sigma = 0.

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
    times = schedule.t.tolist()
    for i, (t, alpha, sigma, next_alpha, next_sigma) in enumerate(schedule.pairs()):
        out = denoise(x, x.new_full((len(x),), t))
        d_alpha, d_sigma = next_alpha - alpha, next_sigma - sigma
        x = x + d_alpha * out.x0 + d_sigma * out.noise
        if next_sigma > 0:  # at sigma = 0 there is no noise left to estimate
            ahead = denoise(x, x.new_full((len(x),), times[i + 1]))
            x = x + d_alpha / 2 * (ahead.x0 - out.x0) + d_sigma / 2 * (ahead.noise - out.noise)
        if callback is not None:
            callback(i, out.x0)
    return x
