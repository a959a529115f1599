"""gesso: train, speed up, steer and judge text-to-image transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from gesso.pipeline import Pipeline

__all__ = ["__version__", "load"]


def load(path: Any = None, **options: Any) -> Pipeline:
    """Load a model into a pipeline: see `gesso.loading.load`."""
    from gesso.loading import load as load_pipeline

    return load_pipeline(path, **options)
