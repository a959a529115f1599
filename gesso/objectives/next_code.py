"""Generation of codes: cross-entropy of each code of a tokenizer given those before it.

    L = - mean over pictures and codes of log p(code | codes before it, caption)

What comes before is the backbone's: all scales below (STAR, https://arxiv.org/abs/2406.10797, on
VAR, https://arxiv.org/abs/2404.02905), all codes to the left and above (a raster model). All codes
weigh alike. With probability `caption_dropout` a picture is learnt without its caption.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from gesso import config
from gesso.conditions import Captions
from gesso.draws import Draws
from gesso.nn.dropout import dropping
from gesso.types import Batch, Cond, GessoError, LossOut, Phase

if TYPE_CHECKING:
    from gesso.model import Model


class Config(config.Config):
    """Options of the objective.

    Attributes:
        caption_dropout: share of the pictures that are learnt without their caption.
        null: what stands for no caption: the encoded empty prompt, or the backbone's own.
    """

    caption_dropout: float = Field(default=0.1, ge=0, le=1)
    null: Literal["empty", "learned"] = "empty"


class NextCode:
    """Learns the backbone, and the text encoder if it is trainable, in one phase."""

    needs = "codes"

    def __init__(self, options: Config, model: Model) -> None:
        self.options, self.backbone = options, model.backbone
        self.tokenizer = model.image_encoder
        self.captions = Captions(model.text_encoder, model.backbone, options.null)
        self.roles: dict[str, nn.Module] = dict(model.trained())
        self.phases = (Phase("generate", tuple(self.roles)),)

    def loss(self, phase: str, batch: Batch, generator: Draws) -> LossOut:
        """The loss of a batch with `codes` [B, T].

        Args:
            phase: "generate".
            batch: with `cond` as the text encoder prepares it.
            generator: draws which captions, and what a backbone with dropout, drop.

        Returns:
            The loss, with the metric `accuracy`: how many codes were the likeliest.
        """
        assert batch.codes is not None
        cond = self.captions.dropped(batch.cond, self.options.caption_dropout, generator)
        with dropping(self.backbone, generator):
            loss, right = self._errors(batch.codes, cond)
        return LossOut(loss.mean(), {"accuracy": right.mean().detach()})

    def _errors(self, codes: Tensor, cond: Cond) -> tuple[Tensor, Tensor]:
        """Cross-entropy [B, T] in nats, and whether the likeliest code was right [B, T]."""
        logits = self.backbone.teach(codes, cond, self.tokenizer).float()  # [B, T, V]
        right = (logits.argmax(-1) == codes).float()
        return F.cross_entropy(logits.transpose(1, 2), codes, reduction="none"), right

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """`loss` (nats a code) and `accuracy` over all pictures, with their captions."""
        losses, rights = [], []
        for batch in batches:
            assert batch.codes is not None
            loss, right = self._errors(batch.codes, self.captions.encode(batch.cond))
            losses.append(loss.mean(1))
            rights.append(right.mean(1))
        if not losses:
            return {}
        return {
            "loss": float(torch.cat(losses).mean()),
            "accuracy": float(torch.cat(rights).mean()),
        }


def build(options: Config, model: Model) -> NextCode:
    """Build the objective.

    Raises:
        GessoError: the model denoises.
    """
    if not model.coded:
        raise GessoError(
            "Objective 'next_code' trains backbones that generate codes, such as star: name one as"
            " the recipe's backbone and set diffusion to null."
        )
    return NextCode(options, model)
