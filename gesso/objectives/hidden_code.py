"""Training of a stable sampler: some of a scale's codes are hidden, and told from the others.

    L = - mean over hidden codes of log p(code | base's features, codes that are shown, caption)

A code is shown with probability arccos(u) / (pi/2), u uniform on [0, 1) for each picture. Ma et al.
2024 (STAR), https://arxiv.org/abs/2406.10797, section 3.4, and its code. The base is not trained.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from gesso import config
from gesso.adapters.stable_sampler import StableSampler
from gesso.conditions import Captions
from gesso.draws import Draws
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


class HiddenCode:
    """Learns what `adapters.stable_sampler` has attached to the backbone."""

    needs = "codes"

    def __init__(self, options: Config, model: Model) -> None:
        self.options, self.backbone = options, model.backbone
        self.tokenizer = model.image_encoder
        self.captions = Captions(model.text_encoder, model.backbone, options.null)
        self.roles: dict[str, nn.Module] = {"backbone": model.backbone}
        self.phases = (Phase("settle", ("backbone",)),)

    def loss(self, phase: str, batch: Batch, generator: Draws) -> LossOut:
        """The loss of a batch with `codes` [B, T].

        Args:
            phase: "settle".
            batch: with `cond` as the text encoder prepares it.
            generator: draws which captions are dropped and which codes are shown.

        Returns:
            The loss, with the metric `accuracy` of the hidden codes.
        """
        cond = self.captions.dropped(batch.cond, self.options.caption_dropout, generator)
        loss, right, hidden = self._errors(batch, cond, generator)
        n = hidden.sum().clamp(min=1)
        return LossOut((loss * hidden).sum() / n, {"accuracy": (right * hidden).sum() / n})

    def _errors(self, batch: Batch, cond: Cond, generator: Draws) -> tuple[Tensor, Tensor, Tensor]:
        """Of the last scales' codes: cross-entropy, whether the likeliest was right, and whether
        it was hidden, each [B, n]."""
        codes, some = batch.codes, self.backbone.sampler.drawn
        assert codes is not None and cond.pooled is not None
        n = sum(self.backbone.config.scales[k] ** 2 for k in some)
        with torch.no_grad():
            features = self.backbone.features(self.tokenizer.inputs(codes), cond)[:, -n:]
            codes = codes[:, -n:]
            share = generator.rand(len(codes)).acos() / (math.pi / 2)
            hidden = (generator.rand(*codes.shape) >= share[:, None]).to(codes.device)  # [B, n]
            entries = self.tokenizer.entries(codes) * ~hidden[..., None]
        logits = self.backbone.sampler(features, entries, cond.pooled, some).float()  # [B, n, V]
        loss = F.cross_entropy(logits.transpose(1, 2), codes, reduction="none")
        return loss, (logits.argmax(-1) == codes).float(), hidden.float()

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """`loss` (nats a hidden code) and `accuracy`; always the same codes are hidden."""
        sums = torch.zeros(3, dtype=torch.float64)
        for number, batch in enumerate(batches):
            cond = self.captions.encode(batch.cond)
            loss, right, hidden = self._errors(batch, cond, Draws("cpu", 0, number))
            sums += torch.stack([(loss * hidden).sum(), (right * hidden).sum(), hidden.sum()]).cpu()
        if not sums[2]:
            return {}
        return {"loss": float(sums[0] / sums[2]), "accuracy": float(sums[1] / sums[2])}


def build(options: Config, model: Model) -> HiddenCode:
    """Build the objective.

    Raises:
        GessoError: the backbone has no stable sampler.
    """
    if not isinstance(getattr(model.backbone, "sampler", None), StableSampler):
        raise GessoError(
            "Objective 'hidden_code' trains a stable sampler: set adapter to {name: stable_sampler}"
            " and start from a model with the backbone star."
        )
    return HiddenCode(options, model)
