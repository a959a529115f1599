"""Distillation of two steps of a guided model into one pass with inner loop feedback.

    L = mean over steps of | land(f(x_t, t, c); s) - two(x_t) |^2 / (da^2 + ds^2)

land(x0, noise; s) = alpha_s x0 + sigma_s noise is where a DDIM or Euler step from t to s arrives,
and two(x_t) where the teacher does in two, by way of the time between them that twice as many steps
visit. The teacher is the same backbone without feedback; both are guided as in `sample`. da and ds
are the differences of alpha and sigma between t and s, so on the flow path L is an error of the
velocity.

The x_t are those that the student visits on its way from noise: of the data only captions are used.
On noised pictures, or on the teacher's way, the loss fell as well and pictures got worse: the
student left that way and was not taught how to come back (docs/log.md).

Gwilliam et al. 2025, https://arxiv.org/abs/2501.13107, regress the backbone's noise estimate at a
time nearer to the clean end instead; their rule for it is not published.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from gesso import config
from gesso.adapters.inner_loop import InnerLoop
from gesso.conditions import Captions
from gesso.diffusion.predictions import like
from gesso.diffusion.schedules import Schedule, make_schedule
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
            generator: draws the noise that the student starts from.

        Returns:
            The loss, and the metric `scale`: the largest |s|.
        """
        assert batch.latents is not None
        noise = generator.randn(*batch.latents.shape).to(batch.latents.device)
        with torch.no_grad():
            both = self.captions.both(batch.cond)  # 2B rows
        points = _points(self.schedule, len(noise), noise.device)
        x, losses = self.path.noise_scale * noise, []
        for now, middle, then in zip(points[:-1:2], points[1::2], points[2::2], strict=True):
            with torch.no_grad(), self.loop.off():
                half = _land(self._guided(x, now.t, both), middle)
                goal = _land(self._guided(half, middle.t, both), then)
            landed = _land(self._guided(x, now.t, both), then)
            weight = 1 / ((now.alpha - then.alpha) ** 2 + (now.sigma - then.sigma) ** 2)  # [B]
            losses.append((like(weight, x) * (landed - goal).square()).mean())
            x = landed.detach()
        loss = torch.stack(losses).mean()
        return LossOut(loss, {"scale": self.loop.scales.detach().abs().max()})

    def _guided(self, x: Tensor, t: Tensor, both: Cond) -> Denoised:
        if self.guidance_scale <= 1:
            return self.denoiser.bind(both[: len(x)])(x, t)
        return self.denoiser.guided(x, t, both, self.guidance_scale)


class _Point(NamedTuple):
    """A time with the path's alpha and sigma there, [B] each."""

    t: Tensor
    alpha: Tensor
    sigma: Tensor


def _points(schedule: Schedule, rows: int, device: torch.device) -> list[_Point]:
    found = torch.stack([schedule.t, schedule.alpha, schedule.sigma], dim=1).float().to(device)
    return [_Point(*point.expand(rows, -1).unbind(1)) for point in found]


def _land(out: Denoised, at: _Point) -> Tensor:
    """Where a deterministic step arrives, [B, C, h, w]."""
    return like(at.alpha, out.x0) * out.x0 + like(at.sigma, out.noise) * out.noise


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
