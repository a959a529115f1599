"""Denoising: the mean-squared error of the prediction, and the bound that trains the variance.

    L = || f(x_t, t, c) - target ||^2 + vlb_weight * L_vlb        (Nichol & Dhariwal 2021, eq. 16)

x_t = alpha x0 + sigma noise; the target is what `diffusion.prediction` names. With probability
`caption_dropout` c is the unconditional condition. `mask_ratio` hides patches, see its adapter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from gesso import config
from gesso.adapters import deferred_mask
from gesso.conditions import Captions
from gesso.diffusion import timesteps
from gesso.diffusion.denoiser import Denoiser
from gesso.diffusion.grid import fixed_grid
from gesso.diffusion.paths import DDPM
from gesso.diffusion.predictions import picture_mean
from gesso.diffusion.vlb import vlb_bits
from gesso.draws import Draws
from gesso.types import Batch, Cond, GessoError, LossOut, Phase, Prediction

if TYPE_CHECKING:
    from gesso.model import Model


class Config(config.Config):
    """Options of the denoising objective.

    Attributes:
        caption_dropout: share of the pictures that are learnt without their caption; of several
            text encoders, each is without it in such a share, independently.
        null: what stands for no caption, see `gesso.config.Null`.
        vlb_weight: of the variational bound in bits per dimension, where the backbone learns its
            variance on the ddpm path.
        mask_ratio: share of the patches that `gesso.adapters.deferred_mask` drops.
    """

    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    null: config.Null = "empty"
    vlb_weight: float = Field(default=1.0, ge=0)
    mask_ratio: float = Field(default=0.0, ge=0, lt=1)


class DenoiseObjective:
    """Learns the backbone, and the text encoder if it is trainable, in one phase."""

    needs = "latents"

    def __init__(self, options: Config, model: Model) -> None:
        self.options = options
        self.diffusion = model.diffusion
        self.denoiser = model.denoiser()
        self.path = self.denoiser.path
        self.backbone = model.backbone
        self.factor = model.image_encoder.factor
        self.captions = Captions(model.text_encoder, model.backbone, options.null)
        self.roles: dict[str, nn.Module] = dict(model.trained())
        self.phases = (Phase("denoise", tuple(self.roles)),)

    def loss(self, phase: str, batch: Batch, generator: Draws) -> LossOut:
        """The loss of a batch with `latents` [B, C, h, w].

        Args:
            phase: "denoise".
            batch: with `cond` as the text encoder prepares it.
            generator: draws timesteps, noise, and which captions and patches are dropped.

        Returns:
            The loss, with the metrics `mse` and `vlb` (bits per dimension).
        """
        assert batch.latents is not None
        x0 = batch.latents.float()
        pixels = x0[0, 0].numel() * self.factor**2
        t = timesteps.draw(self.diffusion, len(x0), generator, pixels).to(x0.device)  # [B]
        noise = generator.randn(*x0.shape).to(x0.device)
        cond = self.captions.dropped(batch.cond, self.options.caption_dropout, generator)

        denoiser = self.denoiser
        if self.options.mask_ratio and self.backbone.training:
            masked = deferred_mask.masked(self.backbone, x0, self.options.mask_ratio, generator)
            denoiser = replace(denoiser, backbone=masked)
        x, out, error = self._predict(denoiser, x0, t, noise, cond)
        mse = error.mean()
        loss, metrics = mse, {"mse": mse.detach()}
        raw = out.aux.get("variance")
        if raw is not None and isinstance(self.path, DDPM) and self.options.vlb_weight > 0:
            predicted = self.denoiser.views(out.value, x, t).x0
            vlb = vlb_bits(raw, predicted, x0, x, self.path, t, out.aux.get("kept")).mean()
            loss = loss + self.options.vlb_weight * vlb
            metrics["vlb"] = vlb.detach()
        return LossOut(loss, dict(metrics))

    def _predict(
        self, denoiser: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, cond: Cond
    ) -> tuple[Tensor, Prediction, Tensor]:
        """x_t [B, C, h, w], the prediction there and its squared error [B] where it was made."""
        x = denoiser.noised(x0, noise, t)
        out = denoiser.predict(x, t, cond)
        error = (out.value - denoiser.target(x0, noise, t)).square()  # [B, C, h, w]
        return x, out, picture_mean(error, out.aux.get("kept"))

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The mean-squared error on a fixed grid of noise levels, with fixed noise.

        Returns:
            loss: the mean over pictures and levels.
        """
        errors: list[float] = []
        for batch in batches:
            assert batch.latents is not None
            x0 = batch.latents.float()
            cond = self.captions.encode(batch.cond)
            for t, noise in fixed_grid(self.path, batch.keys, x0):
                errors += self._predict(self.denoiser, x0, t, noise, cond)[2].tolist()
        return {"loss": math.fsum(errors) / len(errors)} if errors else {}


def build(options: Config, model: Model) -> DenoiseObjective:
    """Build the objective.

    Raises:
        GessoError: the recipe has no backbone or text encoder, or the learned null is asked of a
            backbone without one.
    """
    if model.backbone is None or model.text_encoder is None:
        raise GessoError(
            "Objective 'denoise' trains a backbone on captions: give the recipe `backbone` and "
            "`text_encoder`."
        )
    if options.mask_ratio:
        deferred_mask.check(model.backbone)
    return DenoiseObjective(options, model)
