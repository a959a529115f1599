"""Models that describe pictures, by transformers' image-text-to-text classes.

Each file handles the `model_type`s that it lists in `MODEL_TYPES`; `chat.py` handles all others. A
file has `TEMPLATE` and `WITH_ORIGINAL`, what the model is asked unless told otherwise (the latter
with the place `{caption}`; None where a model cannot be told of a caption), and `describe`.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np

from gesso.captioners._model import Settings, generation, load, model_type
from gesso.config import module, modules
from gesso.types import GessoError

PLACE = "{caption}"  # where a template takes the original caption


class Captioner:
    """A loaded captioner.

    Args:
        settings: which model, and how it writes.

    Raises:
        GessoError: no such model, one that does not turn pictures and text into text, or files that
            are missing or broken.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._adapter = adapter_of(settings.model)
        self._model, self._processor = load(settings)

    def __call__(self, images: list[np.ndarray], prompts: list[str], seed: int) -> list[str]:
        """Describe pictures.

        Args:
            images: [H, W, 3] uint8 each; sizes may differ.
            prompts: one for each.
            seed: of what is sampled; the same call gives the same texts.

        Returns:
            One text for each, on one line; "" where the model says nothing.
        """
        with generation(self.settings, seed) as arguments:
            texts = self._adapter.describe(self._model, self._processor, images, prompts, arguments)
        return [" ".join(text.split()) for text in texts]


def adapter_of(model: str) -> ModuleType:
    """The file that handles a model.

    Raises:
        GessoError: no such model, or one that is not image-text-to-text.
    """
    kind = model_type(model)
    named = {t: name for name in modules("captioners") for t in _types(name)}
    return module("captioners", named.get(kind, "chat"))


def template_for(adapter: ModuleType, template: str | None, with_original: bool) -> str:
    """What a captioner is asked.

    Args:
        adapter: from `adapter_of`.
        template: the user's; None: the adapter's own.
        with_original: tell it the original caption, at `{caption}`.

    Raises:
        GessoError: `{caption}` and `with_original` do not go together, or the captioner cannot be
            told of a caption.
    """
    if template is None and with_original:
        if adapter.WITH_ORIGINAL is None:
            raise GessoError(
                "This captioner cannot be told of a caption: leave out --with-original, or give a "
                f"--template that has {PLACE}."
            )
        return adapter.WITH_ORIGINAL
    if template is None:
        return adapter.TEMPLATE
    if with_original != (PLACE in template):
        advice = f"put {PLACE} into it" if with_original else "add --with-original"
        raise GessoError(
            f"--with-original goes with a template that has {PLACE}, and {template!r} does not "
            f"fit: {advice}."
        )
    return template


def _types(name: str) -> Any:
    return module("captioners", name).MODEL_TYPES
