"""One evaluation: for networks distilled to it, such as PixArt-DMD and SIM.

Yin et al. 2023, https://arxiv.org/abs/2311.18828, equation 1 and section 3.1: unscaled noise, read
at t = 400. Luo et al. 2024, arXiv:2410.16794: noise of the level of t = 440.
"""

from __future__ import annotations

from torch import Tensor

from gesso.diffusion.noise import Generators
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
    """The estimate of x0 at the schedule's only time, (x - sigma noise) / alpha.

    Args:
        denoise: the generator as a denoiser.
        x: [B, C, h, w] noise as `sample.start_noise` scales it.
        schedule: of one step.
        generator: unused, nothing is drawn.
        callback: told step 0 and x0's estimate.

    Returns:
        [B, C, h, w] float32 latents.

    Raises:
        GessoError: a schedule of more than one step.
    """
    if len(schedule) != 1:
        raise GessoError(
            f"num_inference_steps is {len(schedule)}, but this model paints in one step: give 1."
        )
    x = x.float()
    x0 = denoise(x, x.new_full((len(x),), schedule.t[0].item())).x0
    if callback is not None:
        callback(0, x0)
    return x0
