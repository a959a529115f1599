"""Two-layer perceptron with tanh-GELU, as in DiT blocks and the caption projection."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gesso.nn.init import xavier_


class Mlp(nn.Module):
    """[..., dim] -> [..., hidden] -> [..., out]."""

    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.fc1 = xavier_(nn.Linear(dim, hidden))
        self.fc2 = xavier_(nn.Linear(hidden, out))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))
