"""A perceptual distance through a network that the user names.

Zhang et al. 2018 (LPIPS), https://arxiv.org/abs/1801.03924, eq. 1 without learned weights: feature
maps are normalised over channels, squared differences averaged over places and summed over layers.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gesso.types import GessoError


class Features(nn.Module):
    """Hidden states of a frozen transformers vision model.

    Args:
        path: a hub id or folder, as `AutoModel.from_pretrained` takes it.

    Raises:
        GessoError: it cannot be loaded, or takes no pictures.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, path: str) -> None:
        super().__init__()
        from transformers import AutoImageProcessor, AutoModel

        try:
            self.network = AutoModel.from_pretrained(path, use_safetensors=True)
            processor = AutoImageProcessor.from_pretrained(path)
            mean, std = processor.image_mean, processor.image_std
        except Exception as e:  # what transformers raises on bad files has no common type
            first = (str(e).strip().splitlines() or [type(e).__name__])[0].rstrip(".:")
            raise GessoError(
                f"The feature network {path!r} could not be loaded ({first}): give a transformers"
                " vision model with its image processor."
            ) from None
        self.network.requires_grad_(False).eval()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """[B, 3, H, W] in [-1, 1] to the hidden states of every layer, channels in dimension 1."""
        x = ((pictures + 1) / 2 - self.mean) / self.std
        states = self.network(pixel_values=x, output_hidden_states=True).hidden_states
        return [s if s.dim() == 4 else s.transpose(1, 2) for s in states]

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """The mean distance of pictures [B, 3, H, W] in [-1, 1]; gradients reach both."""
        total = a.new_zeros(())
        for x, y in zip(self(a), self(b), strict=True):
            difference = F.normalize(x, dim=1) - F.normalize(y, dim=1)
            total = total + difference.square().sum(1).mean()
        return total
