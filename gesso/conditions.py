"""A batch's captions as text features, with and without their words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gesso.config import Null
from gesso.draws import Draws
from gesso.types import Cond


class Captions:
    """The text encoder of a training, and what stands for no caption.

    Args:
        text_encoder: turns what it prepared into features.
        backbone: has the learned null caption.
        null: the unconditional branch: the encoded empty prompt, the backbone's own, or zeros.

    Dims: B captions, E text encoders (more than one of `gesso.encoders.text.joined`).
    """

    def __init__(self, text_encoder: Any, backbone: Any, null: Null = "empty") -> None:
        self.text_encoder, self.backbone, self.null = text_encoder, backbone, null
        self.empty: Cond = text_encoder.prepare([""])
        self.parts = len(getattr(text_encoder, "parts", [text_encoder]))

    def encode(self, cond: Cond) -> Cond:
        """Text features of B captions, as the text encoder prepared them."""
        encoded: Cond = self.text_encoder(cond)
        return encoded

    def dropped(self, cond: Cond, share: float, generator: Draws) -> Cond:
        """Text features, a share of them unconditional; of several encoders, each independently.

        Args:
            cond: B captions, as the text encoder prepared them.
            share: probability of being unconditional.
            generator: draws which are.
        """
        device = _first(cond).device
        drop = (generator.rand(len(cond), self.parts) < share).to(device)  # [B, E]
        if self.parts > 1:
            encoded = self.encode(cond)
            mixed: Cond = self.text_encoder.mixed(encoded, self._nothing(encoded), drop)
            return mixed
        rows = drop[:, 0]
        if self.null == "empty":
            return self.encode(cond.where(rows, self._wordless(cond, rows)))
        encoded = self.encode(cond)
        return encoded.where(rows, self._nothing(encoded))

    def both(self, cond: Cond) -> Cond:
        """2B rows for guidance: the captions' features, and then the unconditional ones."""
        if self.null != "empty":
            encoded = self.encode(cond)
            return Cond.cat([encoded, self._nothing(encoded)])
        everywhere = _first(cond).new_ones(len(cond))
        return self.encode(Cond.cat([cond, self._wordless(cond, everywhere)]))

    def _nothing(self, encoded: Cond) -> Cond:
        """B rows of unconditional features, beside those of B captions."""
        if self.null == "zero":
            return encoded.silent()
        if self.null == "learned":
            learned: Cond = self.backbone.null(encoded)
            return learned
        assert encoded.tokens is not None
        device = encoded.tokens.device
        alone = self.encode(self.empty.to(device))
        return alone[torch.zeros(len(encoded), dtype=torch.long, device=device)]

    def _wordless(self, cond: Cond, like: Tensor) -> Cond:
        """`cond` with the empty prompt in every row."""
        empty = self.empty.to(like.device)[torch.zeros_like(like, dtype=torch.long)]
        return cond.replace(
            ids=empty.ids, tokens=empty.tokens, mask=empty.mask, pooled=empty.pooled
        )


def _first(cond: Cond) -> Tensor:
    """The ids or tokens of a condition."""
    return next(v for v in (cond.ids, cond.tokens) if v is not None)
