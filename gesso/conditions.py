"""A batch's captions as text features, with and without their words."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from gesso.types import Cond


class Captions:
    """The text encoder of a training, and what stands for no caption.

    Args:
        text_encoder: turns what it prepared into features.
        backbone: has the learned null caption.
        null: the unconditional branch: the encoded empty prompt, or the backbone's own.
    """

    def __init__(
        self, text_encoder: Any, backbone: Any, null: Literal["empty", "learned"] = "empty"
    ) -> None:
        self.text_encoder, self.backbone, self.null = text_encoder, backbone, null
        self.empty: Cond = text_encoder.prepare([""])

    def encode(self, cond: Cond) -> Cond:
        """Text features of B captions, as the text encoder prepared them."""
        encoded: Cond = self.text_encoder(cond)
        return encoded

    def dropped(self, cond: Cond, drop: Tensor) -> Cond:
        """Text features, unconditional where `drop` [B] bool is True."""
        if self.null == "learned":
            encoded = self.encode(cond)
            learned: Cond = self.backbone.null(encoded)
            return encoded.where(drop, learned)
        return self.encode(cond.where(drop, self._wordless(cond, drop)))

    def both(self, cond: Cond) -> Cond:
        """2B rows for guidance: the captions' features, and then the unconditional ones."""
        if self.null == "learned":
            encoded = self.encode(cond)
            return Cond.cat([encoded, self.backbone.null(encoded)])
        everywhere = next(v for v in (cond.ids, cond.tokens) if v is not None).new_ones(len(cond))
        return self.encode(Cond.cat([cond, self._wordless(cond, everywhere)]))

    def _wordless(self, cond: Cond, like: Tensor) -> Cond:
        """`cond` with the empty prompt in every row."""
        empty = self.empty.to(like.device)[torch.zeros_like(like, dtype=torch.long)]
        return cond.replace(
            ids=empty.ids, tokens=empty.tokens, mask=empty.mask, pooled=empty.pooled
        )
