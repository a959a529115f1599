"""Captioners that write a caption unasked: BLIP, BLIP-2 and GIT.

A template is not a question to them but the words that the caption begins with.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gesso.captioners._model import generate, pictures

MODEL_TYPES = ("blip", "blip-2", "git")
TEMPLATE = ""
WITH_ORIGINAL = None


def describe(
    model: Any, processor: Any, images: list[np.ndarray], prompts: list[str], arguments: dict
) -> list[str]:
    """Let each caption go on from its prompt."""
    if not any(prompts):
        inputs = processor(images=pictures(images), return_tensors="pt")
        return generate(model, processor, inputs, arguments)
    inputs = processor(images=pictures(images), text=prompts, padding=True, return_tensors="pt")
    inputs.pop("token_type_ids", None)  # of BERT's tokenizers, which GIT's decoder does not take
    texts = generate(model, processor, inputs, arguments)
    return [
        text if text.startswith(prompt) else f"{prompt} {text}"
        for prompt, text in zip(prompts, texts, strict=True)
    ]
