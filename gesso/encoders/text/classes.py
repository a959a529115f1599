"""Class names as prompts, for models that are conditioned on class labels alone.

    gesso paint "red circle" --model RUN
    gesso paint 3 --model RUN                 the same class by its number

Dims: B prompts, K classes.
"""

from __future__ import annotations

import hashlib

import torch
from pydantic import Field
from torch import nn

from gesso import config
from gesso.config import nearest
from gesso.types import Cond, GessoError


class Config(config.Config):
    """Options of the class encoder.

    Attributes:
        classes: the names by number; `gesso train` fills them in from the source where the recipe
            leaves them out.
    """

    classes: list[str] = Field(default_factory=list)


class ClassEncoder(nn.Module):
    """Names, or numbers, -> labels; "" is K, no class.

    The contract is `gesso.encoders.text.TextEncoder`, with `label` in the place of `tokens`.

    Attributes:
        num_classes: K.
        gives_labels: True.

    Raises:
        GessoError: no classes, or two of one name.
    """

    trainable = False
    gives_labels = True
    max_tokens = 1

    def __init__(self, options: Config) -> None:
        super().__init__()
        if not options.classes:
            raise GessoError(
                "The text encoder `classes` has no classes: set text_encoder.classes, or train it "
                "with `gesso train`, which reads them from the source."
            )
        self.config = options
        self.num_classes = len(options.classes)
        self._labels = {_plain(name): number for number, name in enumerate(options.classes)}
        if len(self._labels) < self.num_classes:
            twice = next(n for i, n in enumerate(options.classes) if self._labels[_plain(n)] != i)
            raise GessoError(f"text_encoder.classes names {twice!r} twice: give each a name.")

    def prepare(self, prompts: list[str]) -> Cond:
        """Names to `ids` [B, 1], which are labels, and `mask` [B, 1].

        Raises:
            GessoError: there is no such class.
        """
        ids = torch.tensor([[self._label(prompt)] for prompt in prompts], dtype=torch.int64)
        return Cond(ids=ids.view(-1, 1), mask=torch.ones(len(prompts), 1, dtype=torch.bool))

    def forward(self, cond: Cond) -> Cond:
        """Turn `ids` [B, 1] into `label` [B]."""
        if cond.ids is None:
            return cond
        return cond.replace(ids=None, mask=None, label=cond.ids[:, 0])

    def dropped(self, prompt: str) -> str:
        """Nothing: a name is read whole or refused."""
        return ""

    def fingerprint(self) -> str:
        """16 hex digits over the names."""
        text = "\n".join(["classes", *self.config.classes])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _label(self, prompt: str) -> int:
        name = _plain(prompt)
        if not name:
            return self.num_classes
        if name in self._labels:
            return self._labels[name]
        known = f"{self.num_classes} classes, 0 to {self.num_classes - 1}"
        if name.isdecimal():
            if int(name) < self.num_classes:
                return int(name)
            raise GessoError(f"The class {name} is out of range: this model knows {known}.")
        hint = nearest(name, list(self._labels)[:1000])
        if len(hint) > 200:
            hint = f"such as {self.config.classes[0]!r}"
        raise GessoError(f"There is no class {prompt!r}; this model knows {known}: {hint}")


def _plain(name: str) -> str:
    """A name as it is looked up: in lower case, with single spaces."""
    return " ".join(name.lower().replace("_", " ").split())


def build(options: Config) -> ClassEncoder:
    """Build the encoder.

    Raises:
        GessoError: no classes, or two of one name.
    """
    return ClassEncoder(options)
