"""Captions that do not fit their pictures, by an image-text model (CLIP, SigLIP).

In a batch of 64 pictures, each caption's similarity with its picture is compared with those of the
other captions with the same picture. A caption that more than half of the others beat says less
about its picture than a caption drawn at random, whatever the model's scale of similarities is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from gesso.doctor.types import Check, Finding, Kind, Plan
from gesso.encoders._weights import locate_model
from gesso.evals.types import Judge
from gesso.types import Sample

MISMATCH = Kind("mismatch", "note", "captions of other pictures fit it better than its own")
MAX_BETTER = 0.5
_BATCH = 64
_MIN = 8  # captions that one is compared with; a smaller last batch borrows from the one before


class Mismatch(Check):
    """Judges whole batches, by the likeliest to fit of each picture's captions.

    Args:
        judge: has `similarity(images, texts)`, see `gesso.evals.judges.clip`.
    """

    def __init__(self, judge: Judge) -> None:
        super().__init__((MISMATCH,))
        self._judge = judge
        self._waiting: list[tuple[str, np.ndarray, list[str]]] = []
        self._before: list[str] = []

    def look(self, sample: Sample) -> Iterable[Finding]:
        texts = [c.text for c in sample.captions]
        self._waiting.append((sample.key, sample.image, texts))
        if len(self._waiting) == _BATCH:
            yield from self._judge_batch()

    def end(self) -> Iterator[Finding]:
        if self._waiting:
            yield from self._judge_batch()

    def _judge_batch(self) -> Iterator[Finding]:
        batch, self._waiting = self._waiting, []
        firsts = [texts[0] for _, _, texts in batch]
        others = firsts if len(firsts) > _MIN else [*firsts, *self._before]
        self._before = firsts
        asked = [tuple(dict.fromkeys([*texts, *others])) for _, _, texts in batch]
        images = [image for _, image, _ in batch]
        rows = self._judge.similarity(images, [tuple((t,) for t in texts) for texts in asked])
        for (key, _, own), texts, row in zip(batch, asked, rows, strict=True):
            best = max(row[: len(set(own))])  # its own come first
            rest = row[len(set(own)) :]
            better = sum(value > best for value in rest) / max(1, len(rest))
            if len(rest) >= _MIN and better > MAX_BETTER:
                fits = texts[int(np.argmax(row))]
                why = f"{better:.0%} of {len(rest)} other captions fit better, most {fits!r}."
                yield Finding(key, MISMATCH.name, why, better)


def build(plan: Plan) -> Mismatch | Check:
    """Possible where a model is given.

    Raises:
        GessoError: no such model, or one of another kind.
    """
    if plan.clip is None:
        return Check((MISMATCH,), "give an image-text model with --clip")
    from gesso.evals.judges import clip

    locate_model("image-text model", plan.clip)
    return Mismatch(clip.build(clip.Config(path=plan.clip), plan.device))
