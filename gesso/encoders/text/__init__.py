"""Text encoders: prompts -> token features. One file each.

A text encoder module has `Config`, and `build(options)` returning a `TextEncoder`.

Dims: B prompts, L tokens of the longest prompt in a call, D width of a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from gesso.types import Cond


class TextEncoder(Protocol):
    """What every text encoder offers; it is also an `nn.Module`.

    Attributes:
        trainable: whether it is trained together with the backbone.
        max_tokens: longer prompts are cut, the end-of-text token included in the count.
        dim: D.
    """

    trainable: bool
    max_tokens: int
    dim: int

    def prepare(self, prompts: list[str]) -> Cond:
        """What is cached: `ids` [B, L] if trainable, `tokens` [B, L, D] if frozen, and `mask`.

        Rows are padded on the right to the longest of the call.
        """
        ...

    def forward(self, cond: Cond) -> Cond:
        """Turn `ids` into `tokens`; a condition that has tokens is returned as it is."""
        ...

    def dropped(self, prompt: str) -> str:
        """The end of the prompt that `max_tokens` cuts off; "" if it fits."""
        ...

    def fingerprint(self) -> str:
        """16 hex digits over what decides `prepare`; equal in every process."""
        ...
