"""Captioners that are asked: LLaVA, Qwen-VL, InternVL, Gemma, SmolVLM and their like.

The question goes through the processor's chat template where it has one, else it is given plainly,
behind the image token where the processor has one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gesso.captioners._model import generate, pictures

MODEL_TYPES = ()  # all that no other file names
TEMPLATE = "Describe what this picture shows and the style it is made in, in great detail."
WITH_ORIGINAL = (
    "Someone captioned this picture: {caption}\n"
    "Describe what the picture shows and the style it is made in, in great detail."
)


def describe(
    model: Any, processor: Any, images: list[np.ndarray], prompts: list[str], arguments: dict
) -> list[str]:
    """Ask each prompt of its picture."""
    texts = [_ask(processor, prompt) for prompt in prompts]
    inputs = processor(
        images=[[picture] for picture in pictures(images)],  # one for each text
        text=texts,
        padding=True,
        return_tensors="pt",
    )
    return generate(model, processor, inputs, arguments)


def _ask(processor: Any, prompt: str) -> str:
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        return processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
    token = getattr(processor, "image_token", None)
    return prompt if token is None or str(token) in prompt else f"{token}\n{prompt}"
