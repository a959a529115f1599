"""LPIPS (Zhang et al., arXiv 1801.03924, eq. 1), version 0.1 with AlexNet.

    d(x, y) = sum over layers l of  mean over places  w_l . (f_l(x) - f_l(y))²

with f_l the features after the l-th ReLU, of length one along the channels, and w_l the learned
weights. So d is a squared Euclidean distance: pictures become vectors once, and pairs are cheap.

B = pictures, C = channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CHANNELS = (64, 192, 384, 256, 256)
LEAST = 31  # pixels, below which the pooling has nothing left
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # ImageNet's, for [-1, 1]
EPS = 1e-8  # under the root of a length, as the published code of version 0.1.4 has it


class AlexNet(nn.Module):
    """The five convolutions of AlexNet (Krizhevsky, arXiv 1404.5997), named as torchvision does."""

    def __init__(self) -> None:
        super().__init__()
        c1, c2, c3, c4, c5 = CHANNELS
        layers = [
            nn.Conv2d(3, c1, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(c1, c2, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, 2),
            nn.Conv2d(c2, c3, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(c3, c4, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(c4, c5, 3, padding=1),
            nn.ReLU(),
        ]
        self.features = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Pictures [B, 3, H, W], normalised -> the five [B, C, h, w] after the ReLUs."""
        found = []
        for layer in self.features:
            x = layer(x)
            if isinstance(layer, nn.ReLU):
                found.append(x)
        return found


def vectors(trunk: AlexNet, heads: list[Tensor], pictures: Tensor) -> Tensor:
    """Vectors [B, D] whose squared distances are LPIPS.

    Args:
        pictures: [B, 3, H, W] in [-1, 1], H and W at least `LEAST`. D grows with H W.
        heads: five [C], not negative.
    """
    shift, scale = (pictures.new_tensor(v)[:, None, None] for v in (SHIFT, SCALE))
    parts = []
    for f, head in zip(trunk((pictures - shift) / scale), heads, strict=True):
        unit = f / torch.sqrt(EPS + (f**2).sum(1, keepdim=True))  # [B, C, h, w]
        places = f.shape[2] * f.shape[3]
        parts.append((unit * (head / places).sqrt()[:, None, None]).flatten(1))  # [B, C h w]
    return torch.cat(parts, 1)


def resized(pixels: Tensor, side: int) -> Tensor:
    """[B, 3, H, W] -> [B, 3, side, side], bilinear and antialiased."""
    return F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
