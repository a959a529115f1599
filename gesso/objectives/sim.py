"""One-step distillation from captions alone, by matching scores.

A generator x0 = g(z) learns by how the teacher and a "fake" network, which learns to denoise what g
makes, differ there (`gesso.diffusion.divergences`). All three have the teacher's weights at first.

    score  SIM, Luo et al. 2024, arXiv:2410.16794
    kl     Diff-Instruct, Luo et al. 2023, arXiv:2305.18455; with the weight "residual" the first
           term of DMD, Yin et al. 2023, arXiv:2311.18828
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gesso import config
from gesso.conditions import Captions
from gesso.diffusion import divergences, timesteps
from gesso.diffusion.noise import only_time, start_scale
from gesso.draws import Draws
from gesso.nn.frozen import frozen
from gesso.types import Batch, Cond, GessoError, LossOut, Phase

if TYPE_CHECKING:
    from gesso.model import Model

TEACHER = ("ddpm", "flow", "edm")
"""It distils the model that a recipe starts from, on these paths."""


class Config(config.Config):
    """Options of score implicit matching and of its relatives by the KL divergence.

    When the generator takes its noise, and how much, says the recipe's `sample`: one of `timesteps`
    and `start_noise`. So it is trained for what it paints with.

    Attributes:
        divergence: "score" or "kl".
        weight: 1, or "residual": 1 / mean |x0 - teacher's estimate| of each picture.
        guidance_scale: of the teacher, 1 is none; generator and fake are never guided.
        latest, earliest: shares of the path between which scores are compared.
        huber: c relative to the root of the number of latent values; None: the squared distance.
        fake_steps: of the fake for each of the generator.
        null: the teacher's unconditional branch.
    """

    divergence: Literal["score", "kl"] = "score"
    weight: Literal["one", "residual"] = "one"
    guidance_scale: float = Field(default=4.5, ge=0)
    latest: float = Field(default=0.98, gt=0, le=1)
    earliest: float = Field(default=0.02, ge=0, lt=1)
    huber: float | None = Field(default=1e-3, gt=0)
    fake_steps: int = Field(default=1, ge=1)
    null: Literal["empty", "learned"] = "empty"


class SIM:
    """Roles `backbone` (the generator), `fake` and `teacher`; the first two learn in turn."""

    needs = "latents"

    def __init__(self, options: Config, model: Model) -> None:
        self.phases = (
            Phase("generate", ("backbone",), every=options.fake_steps),
            Phase("fake", ("fake",)),
        )
        self.options, self.diffusion = options, model.diffusion
        self.generator = model.denoiser()
        self.path = self.generator.path
        self.start = only_time(model.sample)
        self.scale = start_scale(self.path, model.sample.start_noise, self.start)
        self.fake, fake = self.generator.copied(learns=True)
        self.teacher, teacher = self.generator.copied(learns=False)
        model.text_encoder.requires_grad_(False)
        self.captions = Captions(model.text_encoder, teacher, options.null)
        self.roles: dict[str, nn.Module] = {
            "backbone": model.backbone,
            "fake": fake,
            "teacher": teacher,
            "text_encoder": model.text_encoder,
        }

    def loss(self, phase: str, batch: Batch, generator: Draws) -> LossOut:
        """The loss of a batch: its captions, and of its latents the shape alone.

        Args:
            phase: "generate" or "fake".
            batch: with `cond` as the text encoder prepares it.
            generator: draws noises and times.

        Returns:
            The loss, signed for "generate", and there also the `distance`, unweighted.
        """
        assert batch.latents is not None
        shape = batch.latents.shape
        with torch.no_grad():
            both = self.captions.both(batch.cond)  # 2B rows
        cond = both[: len(batch.latents)]
        z = generator.randn(*shape).to(batch.latents.device)
        noise = generator.randn(*shape).to(batch.latents.device)
        if phase == "fake":
            t = timesteps.draw(self.diffusion, len(z), generator).to(z.device)  # [B]
            with torch.no_grad():
                x0 = self.make(z, cond)
            value = self.fake.predict(self.fake.noised(x0, noise, t), t, cond).value
            return LossOut((value - self.fake.target(x0, noise, t)).square().mean())
        share = generator.rand(len(z)).to(z.device)
        low, high = self.options.earliest, self.options.latest
        t = self.path.place(low + (high - low) * share)  # [B]
        return self._generate(z, noise, t, cond, both)

    def make(self, z: Tensor, cond: Cond) -> Tensor:
        """Standard normal noise [B, C, h, w] to clean latents, in one evaluation."""
        return self.generator.bind(cond)(self.scale * z, z.new_full((len(z),), self.start)).x0

    def _generate(self, z: Tensor, noise: Tensor, t: Tensor, cond: Cond, both: Cond) -> LossOut:
        options = self.options
        x0 = self.make(z, cond)
        with torch.set_grad_enabled(options.divergence == "score"), frozen(self.roles["fake"]):
            x = self.teacher.noised(x0, noise, t)
            if options.guidance_scale == 1:
                real = self.teacher.bind(cond)(x, t).x0
            else:
                real = self.teacher.guided(x, t, both, options.guidance_scale).x0
            fake = self.fake.bind(cond)(x, t).x0
        if options.divergence == "score":
            loss, distance = divergences.score(real, fake, x0, options.huber)  # [B] each
        else:
            loss, distance = divergences.kl(real, fake, x0)
        if options.weight == "residual":
            loss = loss / (x0 - real).detach().abs().flatten(1).mean(1).clamp_min(1e-6)
        return LossOut(loss.mean(), {"distance": distance.mean()})


def build(options: Config, model: Model) -> SIM:
    """Build the objective.

    Raises:
        GessoError: no captions, times in a wrong order, or not one step of sampling.
    """
    if model.backbone is None or model.text_encoder is None:
        raise GessoError("Objective 'sim' distils a text-to-image model: name one as `init`.")
    if options.earliest >= options.latest:
        times = f"objective.earliest {options.earliest}", f"objective.latest {options.latest}"
        raise GessoError(f"{times[0]} is not below {times[1]}: change one of them.")
    return SIM(options, model)
