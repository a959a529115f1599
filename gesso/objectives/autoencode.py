"""Training of a KL image autoencoder from pictures alone.

    loss = L1(x, y) + edges * E(x, y) + kl * KL(q(z | x) || N(0, 1))

y is the decoded sample of the posterior. E compares differences between neighbouring pixels, at
full, half and quarter size: it keeps small shapes and letters crisp where L1 alone is content with
blur. Gaussian noise on the latents teaches the decoder to bear a diffusion model's small errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from gesso import config
from gesso.draws import Draws
from gesso.nn.frozen import refuse_frozen
from gesso.types import Batch, GessoError, LossOut, Phase

if TYPE_CHECKING:
    from gesso.model import Model


class Config(config.Config):
    """Options of the autoencoder objective.

    Attributes:
        kl: weight of the KL term, in nats per latent value.
        edges: weight of the edge term.
        noise: largest standard deviation of the noise on normalised latents; each picture draws
            its own between 0 and this.
        track: rate at which the encoder's latent shift and scale follow the batches.
    """

    kl: float = Field(default=1e-5, ge=0)
    edges: float = Field(default=1.0, ge=0)
    noise: float = Field(default=0.1, ge=0)
    track: float = Field(default=0.02, gt=0, le=1)


class Autoencode:
    """One role, `image_encoder`, in one phase; needs `batch.pixels`."""

    needs = "pixels"
    phases = (Phase("autoencode", ("image_encoder",)),)

    def __init__(self, options: Config, model: Model) -> None:
        encoder = model.image_encoder
        if encoder.raw_channels != 2 * encoder.channels or not hasattr(encoder, "track"):
            raise GessoError(
                "Objective 'autoencode' trains KL autoencoders that track their latent statistics: "
                "set image_encoder to {name: tiny, weights: null}."
            )
        refuse_frozen(encoder)
        self.options = options
        self.encoder = encoder
        self.roles: dict[str, nn.Module] = {"image_encoder": encoder}

    def loss(self, phase: str, batch: Batch, generator: Draws) -> LossOut:
        """The loss of one batch.

        Args:
            phase: "autoencode".
            batch: with `pixels` [B, 3, H, W] in [-1, 1].
            generator: on the batch's device; draws the posterior sample and the latent noise.

        Returns:
            The loss, and the metrics `l1`, `edges`, `kl` and `psnr` (dB).
        """
        assert batch.pixels is not None
        pixels, options = batch.pixels, self.options
        raw = self.encoder.encode(pixels)  # [B, 2C, h, w]
        if torch.is_grad_enabled():
            self.encoder.track(raw, options.track)
        latents = self.encoder.sample(raw, generator)  # [B, C, h, w]
        strength = generator.rand(len(latents), 1, 1, 1)
        noise = generator.randn(*latents.shape)
        decoded = self.encoder.decode(latents + options.noise * strength * noise).float()

        l1 = F.l1_loss(decoded, pixels)
        edges = edge_loss(decoded, pixels)
        kl = kl_divergence(raw)
        loss = l1 + options.edges * edges + options.kl * kl
        error = F.mse_loss(decoded.detach().clamp(-1, 1), pixels)
        psnr = 10 * torch.log10(4 / error.clamp_min(1e-10))  # the range [-1, 1] has peak 2
        metrics = {"l1": l1.detach(), "edges": edges.detach(), "kl": kl.detach(), "psnr": psnr}
        return LossOut(loss, dict(metrics))


def kl_divergence(raw: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) in nats, averaged over values (Kingma & Welling 2014, app. B).

    Args:
        raw: [B, 2C, h, w], mean and standard deviation.
    """
    mean, std = raw.chunk(2, dim=1)
    return (0.5 * (mean.square() + std.square() - 1) - std.log()).mean()


def edge_loss(a: Tensor, b: Tensor, scales: int = 3) -> Tensor:
    """Mean absolute error of neighbouring pixels' differences, summed over an image pyramid.

    Args:
        a, b: [B, 3, H, W].
        scales: levels; each halves the picture.
    """
    error = a - b  # differences are linear: those of the error are the errors of those
    total = error.new_zeros(())
    for scale in range(scales):
        if scale:
            error = F.avg_pool2d(error, 2)  # [B, 3, H/2, W/2]
        total = total + error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return total


def build(options: Config, model: Model) -> Autoencode:
    """Build the objective.

    Raises:
        GessoError: the model's image encoder is frozen or no KL autoencoder of ours.
    """
    return Autoencode(options, model)
