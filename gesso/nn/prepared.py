"""What a network computes from a condition once, for the many steps of a sampler."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, nn

from gesso.nn.attention import CrossAttention, KeysValues
from gesso.types import Cond


@dataclass(frozen=True, slots=True)
class Prepared:
    """A condition as blocks with cross-attention and adaLN use it.

    It belongs to one call: made for its prompts under its weights, and gone with it.

    Attributes:
        text: one a block: embedded tokens [B, L, D], or their keys and values [B, H, L, d].
        bias: [B, 1, 1, L] of the text's mask, or None.
        micro: [B, D] embedded micro-conditions, or None.
        control: [B, C, h, w] as in the condition, or None.
        control_scale: [B, 1] likewise.
        times: by t, its embedding [B or 1, D] and what the blocks share of it [B or 1, 6, D].
    """

    text: Sequence[Tensor | KeysValues]
    bias: Tensor | None = None
    micro: Tensor | None = None
    control: Tensor | None = None
    control_scale: Tensor | None = None
    times: dict[float, tuple[Tensor, Tensor]] = field(default_factory=dict)

    @classmethod
    def of(
        cls, cond: Cond, text: Sequence[Tensor], bias: Tensor | None, micro: Tensor | None
    ) -> Prepared:
        """What is embedded of a condition, with the control that it carries."""
        return cls(text, bias, micro, cond.control, cond.control_scale)

    def at(self, t: Tensor) -> tuple[Tensor, Tensor] | None:
        """The entry of `times` if all of t [B] is one known time."""
        if not self.times:
            return None
        values = set(t.tolist())
        return self.times.get(values.pop()) if len(values) == 1 else None


def read_ahead(
    blocks: Iterable[nn.Module], texts: Iterable[Tensor | KeysValues]
) -> list[Tensor | KeysValues]:
    """Every block's keys and values of its text, [B, H, L, d] each.

    An adapter that listens at a block may call others on the same arguments: the text of that one
    stays as it is, [B, L, D].

    Args:
        blocks: with a `cross_attn`.
        texts: embedded tokens [B, L, D], one a block.
    """
    ready: list[Tensor | KeysValues] = []
    for block, text in zip(blocks, texts, strict=True):
        if block._forward_hooks:
            ready.append(text)
        else:
            k, v = cast(CrossAttention, block.cross_attn).keys_values(cast(Tensor, text))
            ready.append((k.contiguous(), v.contiguous()))
    return ready
