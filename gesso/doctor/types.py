"""What checks are given and what they find."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gesso.config import Recipe
from gesso.data.buckets import Size
from gesso.data.source import Source
from gesso.types import Bad, Sample

Severity = Literal["error", "warning", "note"]
"""error: training skips it or breaks; warning: it is learned wrongly; note: worth a look."""


class Kind(NamedTuple):
    """A kind of fault.

    Attributes:
        name: such as "cropped".
        severity: of every finding of the kind.
        about: what it means, half a sentence.
    """

    name: str
    severity: Severity
    about: str


class Finding(NamedTuple):
    """One fault.

    Attributes:
        key: of the picture, or the name of a shard.
        kind: name of a `Kind`.
        why: what was seen, one sentence.
        badness: of findings of a kind, the largest is the worst.
        other: key of the picture that it is about, too; "" for none.
    """

    key: str
    kind: str
    why: str
    badness: float = 0.0
    other: str = ""


LostWords = Callable[[str], str]
"""A caption -> its words that do not fit ("" if it fits)."""


@dataclass(frozen=True)
class Plan:
    """What is examined, and against what.

    Attributes:
        source: the pictures.
        table: the sizes (H, W) that they are cut to, by ratio; see `gesso.data.buckets`.
        fits: how captions are measured, by a name such as "120 tokens"; may be empty.
        clip: a CLIP or SigLIP that tells whether captions fit; None: not looked at.
        cache: a feature cache to examine; None: none.
        recipe: what was named, if it was a recipe.
        device: of the image-text model.
    """

    source: Source
    table: Mapping[float, Size]
    fits: Mapping[str, LostWords] = field(default_factory=dict)
    clip: str | None = None
    cache: str | None = None
    recipe: Recipe | None = None
    device: str | None = None


class Check:
    """Looks for some kinds of fault. Memory must not grow with the size of pictures.

    Attributes:
        kinds: that it looks for.
        skipped: why it cannot look, or "".
        notes: what it could not look at besides, once it has ended.
    """

    def __init__(self, kinds: tuple[Kind, ...], skipped: str = "") -> None:
        self.kinds = kinds
        self.skipped = skipped
        self.notes: list[str] = []

    def bad(self, bad: Bad) -> Iterable[Finding]:
        """Called with what the source skips."""
        return ()

    def look(self, sample: Sample) -> Iterable[Finding]:
        """Called with every picture, once, in the source's order."""
        return ()

    def end(self) -> Iterable[Finding]:
        """Called once after the last picture."""
        return ()
