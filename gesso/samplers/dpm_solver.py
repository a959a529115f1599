"""DPM-Solver++(2M): two evaluations' memory, one evaluation a step.

Lu et al. 2022, https://arxiv.org/abs/2211.01095, algorithm 2, midpoint, data prediction.
"""

from __future__ import annotations

import math

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
    """Solve the probability-flow ODE from noise to latents.

    With lambda = log(alpha / sigma), h the step in lambda and D the estimate of x0, a step is
    x' = sigma'/sigma x + alpha' (1 - e^-h) D, where D is extrapolated to the middle of the step
    from the last two estimates. The first step is first-order, and so is the last one if it ends
    at sigma = 0 or the steps are few (`Schedule.first_order_end`).

    Args:
        denoise: the (guided) denoiser.
        x: [B, C, h, w] noise times sigma of the schedule's first time.
        schedule: of N steps.
        generator: unused, the solver is deterministic.
        callback: told the step and x0's estimate.

    Returns:
        [B, C, h, w] float32 latents.
    """
    x = x.float()
    previous: Tensor | None = None  # x0's estimate one step back
    previous_h = 0.0
    for i, (t, alpha, sigma, next_alpha, next_sigma) in enumerate(schedule.pairs()):
        x0 = denoise(x, x.new_full((len(x),), t)).x0
        h = _log_ratio(next_alpha, next_sigma) - _log_ratio(alpha, sigma)
        last = i == len(schedule) - 1 and schedule.first_order_end
        data = x0
        if previous is not None and not last:
            # 1/(2 r) with r = previous_h / h. A path that starts at alpha = 0 has an infinite
            # first step, after which the extrapolation rightly vanishes.
            data = x0 + (h / previous_h / 2) * (x0 - previous)
        # sigma'/sigma x + (alpha' - alpha sigma'/sigma) D: no exponential to overflow at the ends
        decay = next_sigma / sigma
        x = decay * x + (next_alpha - alpha * decay) * data
        previous, previous_h = x0, h
        if callback is not None:
            callback(i, x0)
    return x


def _log_ratio(alpha: float, sigma: float) -> float:
    """log(alpha / sigma), infinite at either end of a path."""
    if alpha == 0:
        return -math.inf
    return math.inf if sigma == 0 else math.log(alpha / sigma)
