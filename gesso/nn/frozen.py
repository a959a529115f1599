"""Networks that do not learn: gradients that pass through them, and refusing to train them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from gesso.types import GessoError


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Inside, what is computed has no gradient for the network's parameters, only for its input."""
    learns = [p for p in network.parameters() if p.requires_grad]
    for p in learns:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learns:
            p.requires_grad_(True)


def refuse_frozen(image_encoder: nn.Module) -> None:
    """Raise a GessoError if an image encoder that shall be trained has no trainable parameter."""
    if not any(p.requires_grad for p in image_encoder.parameters()):
        raise GessoError(
            "The image encoder of this recipe is frozen: set image_encoder.weights to null."
        )
