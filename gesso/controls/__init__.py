"""Control pictures: what a control branch is steered by. One file each, found by name.

A module has `Config`, and `build(options)` returning a `Condition`.

Dims: H, W a size in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from gesso.config import Config, Spec, build, resolve
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


def condition_of(adapter: Spec | None) -> Condition | None:
    """What makes the control pictures that an adapter is trained on; None if it takes none.

    Raises:
        GessoError: an unknown adapter or condition, or a bad option of one.
    """
    if adapter is None:
        return None
    options: Any = resolve("adapters", adapter)[1]
    spec = getattr(options, "condition", None)
    found: Condition | None = None if spec is None else build("controls", spec)
    return found


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
