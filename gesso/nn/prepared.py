"""What a network computes from a condition once, for the many steps of a sampler."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from gesso.nn.attention import KeysValues


@dataclass(frozen=True, slots=True)
class Prepared:
    """A condition as blocks with cross-attention and adaLN use it.

    It belongs to one call: made for its prompts under its weights, and gone with it.

    Attributes:
        text: one a block: embedded tokens [B, L, D], or their keys and values [B, H, L, d].
        bias: [B, 1, 1, L] of the text's mask, or None.
        micro: [B, D] embedded micro-conditions, or None.
        times: by t, its embedding [B or 1, D] and what the blocks share of it [B or 1, 6, D].
    """

    text: list[Tensor] | list[KeysValues]
    bias: Tensor | None = None
    micro: Tensor | None = None
    times: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor] | None:
        """The entry of `times` if all of t [B] is one known time."""
        if not self.times:
            return None
        values = set(t.tolist())
        return self.times.get(values.pop()) if len(values) == 1 else None
