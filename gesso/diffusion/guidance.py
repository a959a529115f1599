"""Classifier-free and skip-layer guidance: a denoiser and two conditions to one denoiser."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from gesso.diffusion.denoiser import Denoiser
from gesso.diffusion.schedules import Schedule
from gesso.nn.hooks import skipped
from gesso.types import Cond, Denoise, Denoised, GessoError


def guide(
    denoiser: Denoiser,
    cond: Cond,
    null: Cond,
    *,
    guidance_scale: float,
    schedule: Schedule,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0.0, 1.0),
    skip_layers: Sequence[int] = (),
    skip_layer_scale: float = 2.5,
    skip_layer_interval: tuple[float, float] = (0.01, 0.2),
) -> Denoise:
    """Predict null + guidance_scale (cond - null), see `Denoiser.guided`.

    With skip-layer guidance (Stable Diffusion 3.5 medium, as in diffusers' pipeline)
    skip_layer_scale (cond - skipped) is added, where `skipped` is cond without some blocks: one
    more evaluation of B rows a step. As there, it is off where guidance is off.

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
        skip_layers: numbers of the blocks that skip-layer guidance leaves out; none: it is off.
        skip_layer_scale: its strength.
        skip_layer_interval: it acts on steps whose share i/N lies in (start, end).

    Raises:
        GessoError: a block to skip that the backbone has not.
    """
    skips = _blocks(denoiser.backbone, skip_layers)
    times = schedule.t[:-1]
    if guidance_scale == 1:
        return denoiser.bind(cond, times)
    both = denoiser.prepare(Cond.cat([cond, null]), times)
    n = len(schedule)
    latest, earliest = _times(schedule, *(round(share * n) for share in interval))
    everywhere = latest == math.inf and earliest == -math.inf
    conditional = None if everywhere else denoiser.bind(cond, times)
    after, before = skip_layer_interval
    skip_latest, skip_earliest = _times(schedule, math.floor(after * n) + 1, math.ceil(before * n))
    alone = denoiser.prepare(cond, times) if skips else None

    def guided(x: Tensor, t: Tensor) -> Denoised:
        # A picture's t are all alike in a sampler; reading one is spared where it decides nothing.
        if conditional is not None and not earliest < t[0].item() < latest:
            return conditional(x, t)
        worse = None
        if skips and skip_earliest < t[0].item() < skip_latest:
            with skipped(skips):
                worse = denoiser.predict(x, t, alone).value
        return denoiser.guided(
            x, t, both, guidance_scale, rescale, worse=worse, worse_scale=skip_layer_scale
        )

    return guided


def _blocks(backbone: object, numbers: Sequence[int]) -> list[nn.Module]:
    """The blocks to skip."""
    trunk: Sequence[nn.Module] = getattr(backbone, "trunk", ())
    unknown = [i for i in numbers if not 0 <= i < len(trunk)]
    if unknown:
        raise GessoError(
            f"skip_guidance_layers names the blocks {unknown}, but this backbone has {len(trunk)}:"
            " change it, or leave it empty."
        )
    return [trunk[i] for i in numbers]


def _times(schedule: Schedule, start: int, end: int) -> tuple[float, float]:
    """Bounds on t around the steps start <= i < end, halfway to the next ones outside."""
    times, n = schedule.t.tolist(), len(schedule)
    if start >= min(end, n):
        return -math.inf, math.inf
    latest = math.inf if start <= 0 else (times[start - 1] + times[start]) / 2
    earliest = -math.inf if end >= n else (times[max(end, 1) - 1] + times[end]) / 2
    return latest, earliest
