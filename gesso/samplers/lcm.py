"""Sampling of latent consistency models in 1 to 8 steps.

Luo et al. 2023, https://arxiv.org/abs/2310.04378, algorithm 3; PixArt-delta, arXiv:2401.05252.
"""

from __future__ import annotations

from torch import Tensor

from gesso.diffusion.consistency import boundary
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
) -> Tensor:
    """Jump to the clean latent, put fresh noise on it, and jump again from the next time.

    Args:
        denoise: a consistency model; guidance is distilled into it and stays off.
        x: [B, C, h, w] noise times sigma of the schedule's first time.
        schedule: of N steps.
        generator: one for each picture, for the fresh noise; needed if N > 1.
        callback: told the step and x0's estimate.

    Returns:
        [B, C, h, w] float32 latents: the last jump, without noise.

    Raises:
        GessoError: N > 1 without as many generators as pictures.
    """
    x = x.float()
    final = len(schedule) - 1
    if final and (generator is None or len(generator) != len(x)):
        raise GessoError(f"lcm needs one generator for each of {len(x)} pictures.")
    for i, (t, _, _, next_alpha, next_sigma) in enumerate(schedule.pairs()):
        c_skip, c_out = boundary(schedule.time[i].item())
        clean = c_skip * x + c_out * denoise(x, x.new_full((len(x),), t)).x0
        x = clean
        if i < final and generator is not None:
            x = next_alpha * clean + next_sigma * draw_noise(x.shape[1:], generator, x.device)
        if callback is not None:
            callback(i, clean)
    return x
