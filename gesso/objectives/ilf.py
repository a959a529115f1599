"""Distillation of two steps of a guided model into one pass with inner loop feedback.

    L = mean over steps of | land(f(x_t, t, c); s) - x_s |^2 / (da^2 + ds^2)

land(x0, noise; s) = alpha_s x0 + sigma_s noise is where a DDIM or Euler step arrives. The teacher
is the same backbone without feedback, guided as in `sample`, in twice as many steps: from noise it
visits x_t, x_r, x_s, ..., and a step of the student goes from x_t to x_s at once. da and ds are the
differences of alpha and sigma between t and s, so on the flow path L is an error of the velocity.
Of the data only captions are used: on noised pictures in place of the teacher's x_t the loss fell
as well, and what was painted got worse (docs/log.md).

Gwilliam et al. 2025, https://arxiv.org/abs/2501.13107, regress the backbone's noise estimate at a
time nearer to the clean end instead; their rule for it is not published.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gesso import config
from gesso.adapters.inner_loop import InnerLoop
from gesso.conditions import Captions
from gesso.diffusion.predictions import like
from gesso.diffusion.schedules import make_schedule
from gesso.draws import Draws
from gesso.types import Batch, Cond, Denoised, GessoError, LossOut, Phase

if TYPE_CHECKING:
    from gesso.model import Model

TEACHER = ("ddpm", "flow")
FIRST_ORDER = ("euler", "ddim")


class Config(config.Config):
    """No options: times, guidance and the unconditional branch are those of `sample`."""


class ILF:
    """Role `backbone`, of which the inner loop alone learns; and `text_encoder`, at rest."""

    needs = "latents"
    phases = (Phase("feedback", ("backbone",)),)

    def __init__(self, loop: InnerLoop, model: Model) -> None:
        contract = model.sample
        self.loop, self.denoiser = loop, model.denoiser()
        self.path = self.denoiser.path
        self.guidance_scale = contract.guidance_scale
        steps, spacing = contract.num_inference_steps, contract.spacing
        fine = make_schedule(self.path, 2 * steps, spacing, contract.final)
        if not torch.equal(fine.t[::2], make_schedule(self.path, steps, spacing, contract.final).t):
            raise GessoError(
                f"The times of {steps} {spacing} steps are not among those of {2 * steps}: set "
                "sample.spacing to linspace."
            )
        self.schedule = fine  # of the teacher, 2 N steps
        self.captions = Captions(model.text_encoder, model.backbone, contract.null)
        self.roles: dict[str, nn.Module] = {
            "backbone": model.backbone,
            "text_encoder": model.text_encoder,
        }

    def loss(self, phase: str, batch: Batch, generator: Draws) -> LossOut:
        """The loss of a batch: its captions, and of its latents the shape alone.

        Args:
            phase: "feedback".
            batch: with `cond` as the text encoder prepares it.
            generator: draws the noise that the teacher starts from.

        Returns:
            The loss, and the metric `scale`: the largest |s|.
        """
        assert batch.latents is not None
        n, rows = len(self.schedule) // 2, len(batch.latents)  # steps of the student, B
        noise = generator.randn(*batch.latents.shape).to(batch.latents.device)
        grid = torch.stack([self.schedule.t, self.schedule.alpha, self.schedule.sigma])
        points = grid.float().to(noise.device)[..., None].expand(-1, -1, rows)  # [3, 2 n + 1, B]
        with torch.no_grad(), self.loop.off():
            both = self.captions.both(batch.cond)  # 2B rows
            x = [self.path.noise_scale * noise]
            for now, then in pairwise(points.unbind(1)):
                x.append(_land(self._guided(x[-1], now[0], both), *then[1:]))
        t, alpha, sigma = points[:, :-1:2].flatten(1)  # [n B] each
        _, end, rest = points[:, 2::2].flatten(1)
        every = torch.arange(rows, device=noise.device).repeat(n)
        both = both[torch.cat([every, every + rows])]  # 2 n B rows
        out = self._guided(torch.cat(x[:-1:2]), t, both)
        error = _land(out, end, rest) - torch.cat(x[2::2])  # [n B, C, h, w]
        weight = 1 / ((alpha - end) ** 2 + (sigma - rest) ** 2)  # [n B]
        loss = (like(weight, error) * error.square()).mean()
        return LossOut(loss, {"scale": self.loop.scales.detach().abs().max()})

    def _guided(self, x: Tensor, t: Tensor, both: Cond) -> Denoised:
        if self.guidance_scale <= 1:
            return self.denoiser.bind(both[: len(x)])(x, t)
        return self.denoiser.guided(x, t, both, self.guidance_scale)


def _land(out: Denoised, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Where a deterministic step arrives, [B, C, h, w]; alpha and sigma [B] are those there."""
    return like(alpha, out.x0) * out.x0 + like(sigma, out.noise) * out.noise


def build(options: Config, model: Model) -> ILF:
    """Build the objective.

    Raises:
        GessoError: the model has no inner loop, paints no captions, or its sampler remembers
            earlier predictions.
    """
    loop = getattr(model.backbone, "inner_loop", None)
    if model.text_encoder is None or not isinstance(loop, InnerLoop):
        raise GessoError("Objective 'ilf' trains an inner loop: set adapter to inner_loop.")
    if model.sample.sampler not in FIRST_ORDER:
        raise GessoError(
            f"Objective 'ilf' distils single steps, which the sampler {model.sample.sampler} does "
            f"not take: set sample.sampler to {' or '.join(FIRST_ORDER)}."
        )
    return ILF(loop, model)
