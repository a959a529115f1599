"""Everything that crosses a border between gesso's parts, with its shape.

Dims used throughout the package:
    B  pictures in a batch        L  text tokens          D  width of a text token
    C  latent channels            h, w  latent size       H, W  picture size in pixels
    R  channels of a raw latent (C, or 2C for mean and std of a KL posterior)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


class GessoError(Exception):
    """Bad input. The message is one sentence: what was wrong, where, what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class Bad(NamedTuple):
    """A sample that was skipped, and why. Sources yield these beside `Sample`s.

    `kind` says what is at fault: its "picture", its "caption" or its "key".
    """

    key: str
    reason: str
    kind: str = "picture"


class Caption(NamedTuple):
    """One caption of a picture; `kind` is what caption weights refer to ("short", "dense", ...)."""

    text: str
    kind: str = "caption"


@dataclass(slots=True)
class Sample:
    """One captioned picture, as a source yields it.

    Attributes:
        key: unique within its source; used in messages and as the cache key.
        image: [H, W, 3] uint8, RGB.
        captions: at least one.
        meta: whatever else the source knows (label, scene graph, file name).
    """

    key: str
    image: np.ndarray
    captions: list[Caption]
    meta: dict[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class Cond:
    """What a picture is conditioned on. Every field is absent (None) or has B rows.

    Attributes:
        ids: [B, L] int64, token ids, before a text encoder has run.
        tokens: [B, L, D] text features.
        mask: [B, L] bool, True where a token is real.
        pooled: [B, P] pooled text features.
        size: [B, 2] float, original height and width in pixels (micro-condition).
        aspect: [B, 1] float, height / width (micro-condition).
        label: [B] int64, class labels.
        control: [B, C, h, w] a control latent, of the latents' size.
        control_scale: [B, 1] float, strength of the control branch; absent: 1.
    """

    ids: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    pooled: Tensor | None = None
    size: Tensor | None = None
    aspect: Tensor | None = None
    label: Tensor | None = None
    control: Tensor | None = None
    control_scale: Tensor | None = None

    def _map(self, f: Callable[[Tensor], Tensor]) -> Cond:
        present = {k.name: getattr(self, k.name) for k in fields(self)}
        return Cond(**{k: None if v is None else f(v) for k, v in present.items()})

    def __len__(self) -> int:
        """B, the number of rows."""
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None:
                return int(value.shape[0])
        return 0

    def __getitem__(self, index: Any) -> Cond:
        """Rows by slice, list or tensor; every field keeps its batch dimension."""
        if isinstance(index, int):
            index = slice(index, index + 1)
        return self._map(lambda v: v[index])

    def to(self, *args: Any, **kwargs: Any) -> Cond:
        """Move to a device, and floating fields to a dtype, as `Tensor.to` does."""
        import torch

        device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)

        def move(v: Tensor) -> Tensor:
            return v.to(device, dtype if v.is_floating_point() else None, non_blocking)

        return self._map(move)

    @staticmethod
    def cat(conds: list[Cond]) -> Cond:
        """Join conditions along the batch; text is right-padded to the longest, masked there.

        Raises:
            ValueError: if a field is present in some conditions and absent in others.
        """
        import torch
        from torch.nn import functional as F

        joined: dict[str, Tensor | None] = {}
        for f in fields(Cond):
            values = [getattr(c, f.name) for c in conds]
            if all(v is None for v in values):
                continue
            if any(v is None for v in values):
                raise ValueError(f"cannot join conditions: only some have {f.name!r}")
            if f.name in ("ids", "tokens", "mask"):
                length = max(v.shape[1] for v in values)
                pads = [(0, 0) * (v.dim() - 2) + (0, length - v.shape[1]) for v in values]
                values = [F.pad(v, p) if any(p) else v for v, p in zip(values, pads, strict=True)]
            joined[f.name] = torch.cat(values)
        return Cond(**joined)

    def trim(self, multiple: int = 8) -> Cond:
        """Drop text columns that are padding in every row; a mask that masks nothing goes, too.

        What attends to the text under its mask does not change. A row without any real token
        would, as it averages its padding, so then nothing is dropped.

        Args:
            multiple: of the length that is left, so that few lengths occur.
        """
        if self.tokens is None or self.mask is None or not self.mask.any(dim=1).all():
            return self
        last = int(self.mask.any(dim=0).nonzero().max())  # the last column that some row reads
        length = -(-(last + 1) // multiple) * multiple
        mask = self.mask[:, :length]
        return self.replace(tokens=self.tokens[:, :length], mask=None if mask.all() else mask)

    def where(self, drop: Tensor, other: Cond) -> Cond:
        """Rows of `other` where `drop` [B] bool is True, own rows elsewhere (caption dropout)."""
        import torch

        both = Cond.cat([self, other])
        index = torch.arange(len(self), device=drop.device) + drop.long() * len(self)
        return both[index]

    def silent(self) -> Cond:
        """The same places with features of zero: text that says nothing."""
        return self.replace(
            tokens=None if self.tokens is None else self.tokens.new_zeros(self.tokens.shape),
            pooled=None if self.pooled is None else self.pooled.new_zeros(self.pooled.shape),
        )

    def replace(self, **changes: Tensor | None) -> Cond:
        """A copy with some fields changed."""
        return replace(self, **changes)


@dataclass(slots=True)
class Batch:
    """What an objective learns from.

    Attributes:
        keys: B sample keys, to name the batch in messages.
        cond: B rows; `ids` for a text encoder that is trained, `tokens` for a frozen one.
        latents: [B, C, h, w] normalised latents, for objectives that learn from latents.
        pixels: [B, 3, H, W] in [-1, 1], for objectives that learn from pictures.
        codes: [B, T] int64 of a frozen tokenizer, for objectives that learn from codes.
    """

    keys: list[str]
    cond: Cond
    latents: Tensor | None = None
    pixels: Tensor | None = None
    codes: Tensor | None = None


@dataclass(slots=True)
class Prediction:
    """What a backbone returns.

    Attributes:
        value: [B, C, h, w], in the parametrisation that the recipe names (epsilon, flow, ...).
        aux: side outputs; "variance" [B, C, h, w] for learned variance, router losses, ...
    """

    value: Tensor
    aux: dict[str, Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class Denoised:
    """The views of one denoiser evaluation at x_t = alpha x0 + sigma noise.

    Attributes:
        x0: [B, C, h, w] estimate of the clean latent.
        noise: [B, C, h, w] estimate of the noise, consistent with x0.
        variance: [B, C, h, w] raw learned-variance output, or None.
    """

    x0: Tensor
    noise: Tensor
    variance: Tensor | None = None


Denoise = Callable[["Tensor", "Tensor"], Denoised]
"""(x [B, C, h, w], t [B] in the path's units) -> Denoised; the condition is already bound."""


@dataclass(slots=True)
class LossOut:
    """One loss evaluation: the scalar to differentiate and the numbers to log."""

    loss: Tensor
    metrics: dict[str, float | Tensor] = field(default_factory=dict)


class Phase(NamedTuple):
    """One optimiser's turn in a training step.

    Attributes:
        name: what `Objective.loss` is asked for, and the prefix of its metrics.
        learns: names of the roles whose weights this phase updates.
        every: it runs on steps divisible by this number.
    """

    name: str
    learns: tuple[str, ...]
    every: int = 1
