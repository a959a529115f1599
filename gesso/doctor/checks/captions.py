"""Captions that are cut, and captions that many pictures share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from gesso.doctor.types import Check, Finding, Kind, LostWords, Plan
from gesso.types import Sample

CUT = Kind("cut caption", "warning", "the text encoder does not see its end")
REPEATED = Kind("repeated caption", "note", "another picture has the same caption")
_SHOWN = 90  # characters of what is lost


class Captions(Check):
    """Measures each caption against each limit; remembers 16 bytes of it.

    Args:
        fits: see `Plan`.
    """

    def __init__(self, fits: Mapping[str, LostWords]) -> None:
        super().__init__((CUT, REPEATED) if fits else (REPEATED,))
        if not fits:
            self.notes.append("Captions were not measured: give a --tokenizer.")
        self._fits = fits
        self._first: dict[bytes, str] = {}

    def look(self, sample: Sample) -> Iterable[Finding]:
        texts = list(dict.fromkeys(c.text for c in sample.captions))
        for name, lost_words in self._fits.items():
            for text in texts:
                if lost := lost_words(text):
                    n = len(lost.split())
                    why = f"At {name} it loses {n} words: {_shorten(lost)}"
                    yield Finding(sample.key, CUT.name, why, n)
        for text in texts:
            plain = " ".join(text.casefold().split())
            digest = hashlib.blake2b(plain.encode(), digest_size=16).digest()
            first = self._first.setdefault(digest, sample.key)
            if first != sample.key:
                why = f"Its caption is also that of {first}: {_shorten(text)}"
                yield Finding(sample.key, REPEATED.name, why, other=first)
                break


def _shorten(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN].rstrip()} …"


def build(plan: Plan) -> Captions:
    """Always possible; without a way to measure captions, only repeated ones are found."""
    return Captions(plan.fits)
