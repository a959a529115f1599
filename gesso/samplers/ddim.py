"""DDIM, from deterministic to ancestral. Song et al. 2020, https://arxiv.org/abs/2010.02502."""

from __future__ import annotations

import math

from torch import Tensor

from gesso.diffusion.noise import Generators, draw_noise
from gesso.diffusion.schedules import Callback, Schedule
from gesso.types import Denoise, GessoError


def sample(
    denoise: Denoise,
    x: Tensor,
    schedule: Schedule,
    *,
    generator: Generators | None = None,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """Step to x' = alpha' x0 + sqrt(sigma'^2 - s^2) noise + s z (eq. 12, 16).

    Args:
        denoise: the (guided) denoiser.
        x: [B, C, h, w] noise times sigma of the schedule's first time.
        schedule: of N steps.
        generator: one for each picture, for the fresh noise z; needed if eta > 0.
        callback: told the step and x0's estimate.
        eta: 0 is deterministic, 1 is ancestral sampling of the ddpm path.

    Returns:
        [B, C, h, w] float32 latents.

    Raises:
        GessoError: eta > 0 without as many generators as pictures.
    """
    if eta and (generator is None or len(generator) != len(x)):
        raise GessoError(f"ddim with eta > 0 needs one generator for each of {len(x)} pictures.")
    x = x.float()
    for i, (t, alpha, sigma, next_alpha, next_sigma) in enumerate(schedule.pairs()):
        out = denoise(x, x.new_full((len(x),), t))
        # The deviation of q(x' | x, x0), which for a variance-preserving path is eq. 16.
        ratio = alpha * next_sigma / (sigma * next_alpha)
        fresh = eta * next_sigma * math.sqrt(max(0.0, 1 - ratio**2))
        kept = math.sqrt(max(0.0, next_sigma**2 - fresh**2))
        x = next_alpha * out.x0 + kept * out.noise
        if fresh and generator is not None:
            x = x + fresh * draw_noise(x.shape[1:], generator, x.device)
        if callback is not None:
            callback(i, out.x0)
    return x
