"""The tagger of spaCy's small English pipeline, where both are installed."""

from __future__ import annotations

from gesso.taggers import Tagger
from gesso.types import GessoError

PIPELINE = "en_core_web_sm"


def build() -> Tagger:
    """Load the pipeline without what does not tag.

    Raises:
        GessoError: spaCy or its English pipeline is not installed.
    """
    try:
        import spacy

        pipeline = spacy.load(PIPELINE, exclude=["parser", "ner", "lemmatizer"])
    except (ImportError, OSError):
        raise GessoError(
            f"The tagger spacy needs spaCy and its pipeline {PIPELINE}: install both, or use "
            "--tagger textblob."
        ) from None

    def nouns(caption: str) -> list[str]:
        return [t.lower_ for t in pipeline(caption) if t.pos_ in ("NOUN", "PROPN")]

    return nouns
