"""Latent consistency distillation: a student that jumps to the end of the teacher's trajectory.

    L = huber(f(x_t, t, c), f-(x_s, s, c)),   f(x, t) = c_skip(t) x + c_out(t) x0(x, t)

x_s is one DDIM step of the guided teacher from x_t to the next time s of a grid of N; f- is the
student's moving average. Luo et al. 2023, https://arxiv.org/abs/2310.04378, algorithm 1; as
PixArt-δ has it, arXiv:2401.05252, with a fixed guidance scale that the student is not told.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from gesso import config
from gesso.conditions import Captions
from gesso.diffusion.consistency import boundary, grid
from gesso.diffusion.denoiser import Denoiser
from gesso.diffusion.paths import make_path
from gesso.diffusion.predictions import like
from gesso.draws import Draws
from gesso.types import Batch, Cond, GessoError, LossOut, Phase

if TYPE_CHECKING:
    from gesso.model import Model


TEACHER = ("ddpm", "flow")  # paths of the models that can be distilled


class Config(config.Config):
    """Options of latent consistency distillation: PixArt-δ's.

    Attributes:
        steps: N, of the grid.
        guidance_scale: of the teacher, 1 is none. PixArt-δ's w = 4.5 is 5.5 here.
        ema: of the target.
        huber: c of sqrt(d^2 + c^2) - c.
        null: the teacher's unconditional branch, see `gesso.config.Null`.
    """

    steps: int = Field(default=50, ge=2)
    guidance_scale: float = Field(default=5.5, ge=0)
    ema: float = Field(default=0.95, ge=0, lt=1)
    huber: float = Field(default=1e-3, gt=0)
    null: config.Null = "empty"


class LCM:
    """Roles: `backbone` (the student), `target` and `teacher`, all from the recipe's `init`."""

    needs = "latents"
    phases = (Phase("distill", ("backbone",)),)

    def __init__(self, options: Config, model: Model) -> None:
        self.options = options
        self.student = model.denoiser()
        self.path = self.student.path
        self.diffusion, self.factor = model.diffusion, model.image_encoder.factor
        grid(self.path, options.steps)  # refuses what cannot be distilled
        self.target, target = self.student.copied(learns=False)
        self.teacher, teacher = self.student.copied(learns=False)
        self.captions = Captions(model.text_encoder, teacher, options.null)
        model.text_encoder.requires_grad_(False)
        self.roles: dict[str, nn.Module] = {
            "backbone": model.backbone,
            "target": target,
            "teacher": teacher,
            "text_encoder": model.text_encoder,
        }

    def loss(self, phase: str, batch: Batch, generator: Draws) -> LossOut:
        """The loss of a batch with `latents` [B, C, h, w].

        Args:
            phase: "distill".
            batch: with `cond` as the text encoder prepares it.
            generator: draws grid points and noise.

        Returns:
            The loss, and the metric `gap`: the root of the mean squared difference.
        """
        assert batch.latents is not None
        x0, options = batch.latents.float(), self.options
        index = generator.randint(options.steps, len(x0)).to(x0.device)  # [B], from the clean end
        path = make_path(self.diffusion, x0[0, 0].numel() * self.factor**2)
        times = grid(path, options.steps).float().to(x0.device)  # [N + 1]
        t, s = times[index + 1], times[index]  # [B] each
        noise = generator.randn(*x0.shape).to(x0.device)
        x = self.student.noised(x0, noise, t)
        with torch.no_grad():
            both = self.captions.both(batch.cond)  # 2B rows
            cond = both[: len(x0)]
            if options.guidance_scale == 1:
                end = self.teacher.bind(cond)(x, t)
            else:
                end = self.teacher.guided(x, t, both, options.guidance_scale)
            earlier = self.student.noised(end.x0, end.noise, s)  # a DDIM step
            goal = self.consistent(self.target, earlier, s, cond)
        error = self.consistent(self.student, x, t, cond) - goal
        c = options.huber
        loss = ((error.square() + c**2).sqrt() - c).mean()
        return LossOut(loss, {"gap": error.detach().square().mean().sqrt()})

    def consistent(self, denoiser: Denoiser, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
        """f(x, t, c) [B, C, h, w]."""
        c_skip, c_out = boundary(self.path.model_time(t))
        x0 = denoiser.views(denoiser.predict(x, t, cond).value, x, t).x0
        return like(c_skip, x) * x + like(c_out, x) * x0

    @torch.no_grad()
    def updated(self, phase: str) -> None:
        """After the student's step: the target follows."""
        mine, theirs = self.roles["backbone"].parameters(), self.roles["target"].parameters()
        for p, average in zip(mine, theirs, strict=True):
            average.lerp_(p, 1 - self.options.ema)


def build(options: Config, model: Model) -> LCM:
    """Build the objective.

    Raises:
        GessoError: the model paints no captions, lies on the edm path, or is to be sampled at other
            times than it learns.
    """
    if model.backbone is None or model.text_encoder is None:
        raise GessoError("Objective 'lcm' distils a text-to-image model: name one as `init`.")
    known = model.sample.original_inference_steps
    if model.sample.sampler == "lcm" and known != options.steps:
        raise GessoError(
            f"objective.steps is {options.steps} and sample.original_inference_steps {known}, but "
            "the sampler visits the times that are learnt: make them equal."
        )
    return LCM(options, model)
