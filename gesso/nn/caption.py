"""Text features to the width of a backbone, and the caption that stands for none."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gesso.nn.init import normal_
from gesso.nn.mlp import Mlp


class CaptionEmbedder(nn.Module):
    """Projects text features to the width of the model; holds the learned null caption."""

    def __init__(self, text_dim: int, dim: int, null_tokens: int, init_std: float) -> None:
        super().__init__()
        self.y_proj = Mlp(text_dim, dim, dim)
        for layer in (self.y_proj.fc1, self.y_proj.fc2):
            normal_(layer, init_std)
        self.y_embedding: nn.Parameter | None = None
        if null_tokens:
            self.y_embedding = nn.Parameter(torch.randn(null_tokens, text_dim) * text_dim**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.y_proj(tokens)  # [B, L, D]
