"""Control pictures: what a control branch is steered by. One file each, found by name.

A module has `Config`, and `build(options)` returning a `Condition`.

Dims: H, W a size in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gesso.config import Config
from gesso.data.buckets import Size
from gesso.data.images import cover
from gesso.data.source import digest
from gesso.types import Sample


class Condition(Protocol):
    """Makes the control picture of a picture."""

    def __call__(self, sample: Sample, size: Size) -> np.ndarray:
        """[H, W, 3] uint8 for the picture as it is cut to (H, W).

        Raises:
            GessoError: this picture has none.
        """
        ...

    def fingerprint(self) -> str:
        """Changes when the control pictures change."""
        ...


@dataclass(frozen=True)
class FromPixels:
    """A condition that is computed from the picture itself, after it was cut.

    Attributes:
        name, options: of its module.
        draw: [H, W, 3] uint8 -> [H, W] uint8.
    """

    name: str
    options: Config
    draw: Callable[[np.ndarray], np.ndarray]

    def __call__(self, sample: Sample, size: Size) -> np.ndarray:
        return np.repeat(self.draw(cover(sample.image, size))[..., None], 3, axis=2)

    def fingerprint(self) -> str:
        return digest(self.name, self.options.model_dump())
