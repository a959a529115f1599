"""One-step distillation from captions alone, by matching scores.

A generator x0 = g(z) and a "fake" network that learns to denoise what g makes, both from the
teacher's weights. With the denoised estimates D_q of the teacher and D_f of the fake at
x_t = alpha x0 + sigma noise, and u = D_q - D_f:

    score  L = w u / sqrt(|u|^2 + c^2) . (D_f - x0)    SIM, Luo et al. 2024, arXiv:2410.16794, with
           the pseudo-Huber distance; without the root, the squared one. The gradient passes
           through x_t inside both networks, u included: less of it is another, wrong one.
    kl     L = w sg(D_f - D_q) . x0    Diff-Instruct, Luo et al. 2023, arXiv:2305.18455; with
           w = 1 / mean |x0 - D_q| DMD's first term, Yin et al. 2023, arXiv:2311.18828.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from gesso import config
from gesso.conditions import Captions
from gesso.diffusion import timesteps
from gesso.diffusion.noise import start_scale
from gesso.diffusion.predictions import like
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
        weight: w: 1, or "residual", 1 / mean |x0 - D_q| of each picture.
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
        self.start = start_of(model.sample)
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
            generator: draws the generator's noise, times and the noise on what it makes.

        Returns:
            The loss; for "generate" with the metric `gap`, the root mean square of D_q - D_f. Its
            value is w times the distance of the scores (for kl, |u|^2 / 2): L is signed and tells
            nothing.
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
            u = real - fake  # [B, C, h, w]
        square = u.detach().square().flatten(1).sum(1)  # [B]
        if options.divergence == "kl":
            way, value = -u * x0, square / 2
        elif options.huber is None:
            way, value = u * (fake - x0), square
        else:
            c = options.huber * u[0].numel() ** 0.5
            root = (u.square().flatten(1).sum(1) + c**2).sqrt()
            way, value = u * (fake - x0) / like(root, u), root.detach() - c
        loss = way.flatten(1).sum(1)
        loss = loss - loss.detach() + value  # its gradient, and the distance to look at
        if options.weight == "residual":
            loss = loss / (x0 - real).detach().abs().flatten(1).mean(1).clamp_min(1e-6)
        return LossOut(loss.mean(), {"gap": u.detach().square().mean().sqrt()})


def start_of(contract: config.SampleConfig) -> float:
    """The time at which the generator takes its noise.

    Raises:
        GessoError: the contract is none of one step at a given time, without guidance.
    """
    times = contract.timesteps or ()
    if contract.sampler != "one_step" or len(times) != 1 or contract.guidance_scale > 1:
        raise GessoError(
            "Objective 'sim' trains a generator of one step: set sample.sampler=one_step,"
            " sample.guidance_scale=1 and one time in sample.timesteps, such as [440]."
        )
    return times[0]


def build(options: Config, model: Model) -> SIM:
    """Build the objective.

    Raises:
        GessoError: the model paints no captions, the times are in a wrong order, or the recipe
            does not sample in one step.
    """
    if model.backbone is None or model.text_encoder is None:
        raise GessoError("Objective 'sim' distils a text-to-image model: name one as `init`.")
    if options.earliest >= options.latest:
        raise GessoError(
            f"objective.earliest {options.earliest} is not below objective.latest"
            f" {options.latest}: change one of them."
        )
    return SIM(options, model)
