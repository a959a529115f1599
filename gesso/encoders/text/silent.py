"""No text at all: features of zeros in the place of an encoder that is left out.

Stable Diffusion 3 was trained to do without any of its encoders; without T5's 9 GiB the third of
`gesso.encoders.text.joined` is {name: silent, width: 4096, max_tokens: 256}.

Dims: B prompts, L = max_tokens, D width.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from gesso import config
from gesso.types import Cond


class Config(config.Config):
    """Options.

    Attributes:
        width: D.
        max_tokens: L.
    """

    width: int = Field(ge=1)
    max_tokens: int = Field(ge=1)


class SilentTextEncoder(nn.Module):
    """Any prompt -> zeros; the contract is `gesso.encoders.text.TextEncoder`."""

    trainable = False

    def __init__(self, options: Config) -> None:
        super().__init__()
        self.dim, self.max_tokens = options.width, options.max_tokens

    def prepare(self, prompts: list[str]) -> Cond:
        """`tokens` [B, L, D] of zeros, which are read: `mask` [B, L] is True."""
        shape = (len(prompts), self.max_tokens)
        return Cond(tokens=torch.zeros(*shape, self.dim), mask=torch.ones(shape, dtype=torch.bool))

    def forward(self, cond: Cond) -> Cond:
        """The condition itself."""
        return cond

    def dropped(self, prompt: str) -> str:
        """The whole prompt."""
        return prompt

    def fingerprint(self) -> str:
        """16 digits over the options."""
        return f"{self.dim:08d}{self.max_tokens:08d}"


def build(options: Config) -> SilentTextEncoder:
    """Build the encoder."""
    return SilentTextEncoder(options)
