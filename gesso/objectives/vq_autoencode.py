"""Training of an image tokenizer: an autoencoder whose latents are entries of a codebook.

    L = vq + l2 |x - y|^2 + laplace NLL(x)
        + perceptual |phi(x) - phi(y)|^2 + adversarial softplus(-D(y))

Yu et al. 2022 (ViT-VQGAN), https://arxiv.org/abs/2110.04627, section 3.3. The discriminator D
learns softplus(-D(x)) + softplus(D(y)) + r1/2 |grad D(x)|^2 in a phase of its own. phi is a network
that the user names; without one there is no perceptual term.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from gesso import config
from gesso.draws import Draws
from gesso.nn.codebook import usage
from gesso.nn.discriminator import Discriminator, discriminator_loss
from gesso.nn.features import Features
from gesso.nn.frozen import frozen, refuse_frozen
from gesso.nn.likelihood import logit_laplace_nll
from gesso.nn.psnr import psnr
from gesso.types import Batch, GessoError, LossOut, Phase

if TYPE_CHECKING:
    from gesso.model import Model


class Config(config.Config):
    """Options of the tokenizer objective: the paper's weights.

    Attributes:
        l2, laplace, perceptual, adversarial: weights; 0 leaves a term and its network out. Squared
            errors are of pixels in [-1, 1]; the Laplace term needs an encoder's `logit_laplace`.
        r1: weight of the discriminator's gradient penalty.
        features: the perceptual network: a transformers vision model's hub id or folder.
        size: side of the pictures, for the discriminator.
        discriminator_width: its channels at full size.
    """

    l2: float = Field(default=1.0, ge=0)
    laplace: float = Field(default=0.1, ge=0)
    perceptual: float = Field(default=0.1, ge=0)
    adversarial: float = Field(default=0.1, ge=0)
    r1: float = Field(default=10.0, ge=0)
    features: str | None = None
    size: int = Field(default=64, ge=8)
    discriminator_width: int = Field(default=16, ge=1)


class VQAutoencode:
    """Roles `image_encoder` and, with an adversarial term, `discriminator`."""

    needs = "pixels"

    def __init__(self, options: Config, encoder: Any) -> None:
        self.options, self.encoder = options, encoder
        self.laplace = options.laplace > 0 and getattr(encoder, "logit_laplace", False)
        self.features = Features(options.features) if options.features else None
        self.roles: dict[str, nn.Module] = {"image_encoder": encoder}
        self.phases: tuple[Phase, ...] = (Phase("autoencode", ("image_encoder",)),)
        self.discriminator: Discriminator | None = None
        if options.adversarial:
            self.discriminator = Discriminator(options.size, options.discriminator_width)
            self.roles["discriminator"] = self.discriminator
            self.phases += (Phase("discriminate", ("discriminator",)),)

    def loss(self, phase: str, batch: Batch, generator: Draws) -> LossOut:
        """The loss of a batch with `pixels` [B, 3, H, W] in [-1, 1]; nothing is drawn.

        Args:
            phase: "autoencode" or "discriminate".

        Returns:
            The loss; the metrics are its terms, `psnr` (dB) and, of the batch's codes, `usage`
            (share of the codebook) and `perplexity`.
        """
        assert batch.pixels is not None
        if phase == "autoencode":
            return self._autoencode(batch.pixels)
        assert self.discriminator is not None
        with torch.no_grad():
            y = self.encoder.decode(self.encoder.sample(self.encoder.encode(batch.pixels))).float()
        loss, metrics = discriminator_loss(self.discriminator, batch.pixels, y, self.options.r1)
        return LossOut(loss, dict(metrics))

    def _autoencode(self, x: Tensor) -> LossOut:
        options = self.options
        found = self.encoder.quantise(self.encoder.encode(x))
        terms = {"vq": (1.0, found.loss)}
        if self.laplace:
            out = self.encoder.distribution(found.value)  # [B, 6, H, W]
            y = self.encoder.picture(out).float()  # [B, 3, H, W]
            terms["laplace"] = options.laplace, logit_laplace_nll(out, x)
        else:
            y = self.encoder.decode(found.value).float()
        terms["l2"] = options.l2, F.mse_loss(y, x)
        if self.features is not None:
            terms["perceptual"] = options.perceptual, self.features.to(x.device).distance(x, y)
        if self.discriminator is not None:
            with frozen(self.discriminator):
                fooled = F.softplus(-self.discriminator(y)).mean()
            terms["adversarial"] = options.adversarial, fooled
        loss = torch.stack([weight * value for weight, value in terms.values()]).sum()
        share, perplexity = usage(found.codes, self.encoder.vocabulary)
        metrics: dict[str, float | Tensor] = {k: v.detach() for k, (_, v) in terms.items()}
        metrics |= {"psnr": psnr(x, y).mean(), "usage": share, "perplexity": perplexity}
        return LossOut(loss, metrics)

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Mean squared error (`loss`), `psnr`, `usage` and `perplexity` over all pictures."""
        errors, decibel, codes = [], [], []
        for batch in batches:
            assert batch.pixels is not None
            found = self.encoder.quantise(self.encoder.encode(batch.pixels))
            y = self.encoder.decode(found.value).float()
            errors.append((y.clamp(-1, 1) - batch.pixels).square().flatten(1).mean(1))
            decibel.append(psnr(batch.pixels, y))
            codes.append(found.codes.flatten())
        if not errors:
            return {}
        share, perplexity = usage(torch.cat(codes), self.encoder.vocabulary)
        values = (*(torch.cat(v).mean() for v in (errors, decibel)), share, perplexity)
        names = ("loss", "psnr", "usage", "perplexity")
        return dict(zip(names, map(float, values), strict=True))


def build(options: Config, model: Model) -> VQAutoencode:
    """Build the objective.

    Raises:
        GessoError: the model's image encoder has no codebook or is frozen; see `Discriminator`.
    """
    encoder = model.image_encoder
    if not hasattr(encoder, "quantise"):
        raise GessoError(
            "Objective 'vq_autoencode' trains image encoders with a codebook: set image_encoder to"
            " {name: vit_vqgan} or {name: multiscale_vq}."
        )
    refuse_frozen(encoder)
    return VQAutoencode(options, encoder)
