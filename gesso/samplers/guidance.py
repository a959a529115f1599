"""Classifier-free guidance: a denoiser and two conditions to one denoiser."""

from __future__ import annotations

import math

from torch import Tensor

from gesso.diffusion.denoiser import Denoiser
from gesso.diffusion.schedules import Schedule
from gesso.types import Cond, Denoise, Denoised


def guide(
    denoiser: Denoiser,
    cond: Cond,
    null: Cond,
    *,
    guidance_scale: float,
    schedule: Schedule,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Denoise:
    """Predict null + guidance_scale (cond - null), see `Denoiser.guided`.

    Every latent channel is guided. Both branches run as one batch of 2B rows; where guidance is
    off, and everywhere for guidance_scale 1, only the B conditional rows run. What depends on the
    conditions alone is computed here, so call it under the autocast that the steps will run under.

    Args:
        denoiser: the backbone on its path.
        cond: B rows.
        null: B rows, the unconditional or negative branch.
        guidance_scale: 1 is conditional only, 0 is null only, 4.5 is PixArt's.
        schedule: the N steps that will be taken, which `interval` refers to.
        rescale: phi of Lin et al. 2023 in 0..1.
        interval: guide only steps whose share i/N lies in [start, end) (Kynkaanniemi et al. 2024).
    """
    times = schedule.t[:-1]
    if guidance_scale == 1:
        return denoiser.bind(cond, times)
    both = denoiser.prepare(Cond.cat([cond, null]), times)
    latest, earliest = _guided_times(schedule, interval)
    everywhere = latest == math.inf and earliest == -math.inf
    conditional = None if everywhere else denoiser.bind(cond, times)

    def guided(x: Tensor, t: Tensor) -> Denoised:
        # A picture's t are all alike in a sampler; reading one is spared where it decides nothing.
        if conditional is not None and not earliest < t[0].item() < latest:
            return conditional(x, t)
        return denoiser.guided(x, t, both, guidance_scale, rescale)

    return guided


def _guided_times(schedule: Schedule, interval: tuple[float, float]) -> tuple[float, float]:
    """Bounds on t, halfway between the last step outside the interval and the first one inside."""
    times, n = schedule.t.tolist(), len(schedule)
    start, end = (round(share * n) for share in interval)
    latest = math.inf if start <= 0 else (times[start - 1] + times[start]) / 2
    earliest = -math.inf if end >= n else (times[max(end, 1) - 1] + times[end]) / 2
    return latest, earliest
