"""Florence-2: a task token in place of a question."""

from __future__ import annotations

from typing import Any

import numpy as np

from gesso.captioners._model import generate, pictures

MODEL_TYPES = ("florence2",)
TEMPLATE = "<MORE_DETAILED_CAPTION>"  # or <DETAILED_CAPTION>, <CAPTION>
WITH_ORIGINAL = None


def describe(
    model: Any, processor: Any, images: list[np.ndarray], prompts: list[str], arguments: dict
) -> list[str]:
    """Run each prompt's task on its picture."""
    inputs = processor(images=pictures(images), text=prompts, padding=True, return_tensors="pt")
    return generate(model, processor, inputs, arguments)
