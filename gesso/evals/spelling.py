"""How well a rendered text reads as the one asked for.

CER = edit distance / length of the wanted text. A wanted word is found where a read word, each
used once, is like it with a fuzzy ratio of 80 or more (TextAtlasEval, arXiv 2502.07870). Accuracy
is the share of wanted words that are found; F1 puts that together with the share of read words
that were wanted.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

from gesso.evals.types import Verdict

FUZZY = 80.0


@dataclass(frozen=True)
class Spelling:
    """How one text was rendered. `cer` may exceed 1; `accuracy` and `f1` are in [0, 1]."""

    edits: int
    cer: float
    accuracy: float
    f1: float
    found: int
    wanted: int


def tidy(text: str) -> str:
    """Lower case, compatibility forms unified, white space single."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def compare(wanted: str, read: str) -> Spelling:
    """Compare what was read with what was wanted; case and white space do not count."""
    from rapidfuzz import fuzz
    from rapidfuzz.distance import Levenshtein

    wanted, read = tidy(wanted), tidy(read)
    edits = Levenshtein.distance(wanted, read)
    words, left = wanted.split(), read.split()
    n_read = len(left)
    found = 0
    for word in words:
        ratios = [fuzz.ratio(word, other) for other in left]
        if ratios and max(ratios) >= FUZZY:
            left.pop(ratios.index(max(ratios)))
            found += 1
    accuracy = found / len(words) if words else float(n_read == 0)
    precision = found / n_read if n_read else float(not words)
    f1 = 2 * precision * accuracy / (precision + accuracy) if precision + accuracy else 0.0
    return Spelling(edits, edits / max(len(wanted), 1), accuracy, f1, found, len(words))


def verdict(wanted: str, read: str) -> Verdict:
    """Word accuracy as the score; CER, accuracy and F1 as categories."""
    result = compare(wanted, read)
    told = f"read {tidy(read)!r}" if read.strip() else "no text was read"
    return Verdict(
        result.accuracy,
        [told] if result.accuracy < 1 else [],
        {"word accuracy": [result.accuracy], "F1": [result.f1], "CER": [result.cer]},
    )
