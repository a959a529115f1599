"""TextBlob's tagger: a lexicon of 94,000 words with rules for context and unknown words.

The package carries its word lists as plain text, so nothing is downloaded and no pickle is read.
The method is Brill's (1992); measured on captions in docs/captions.md.
"""

from __future__ import annotations

from gesso.taggers import Tagger
from gesso.types import GessoError


def build() -> Tagger:
    """Load the lexicon.

    Raises:
        GessoError: textblob is not installed.
    """
    try:
        from textblob.en import tag
    except ImportError:
        raise GessoError(
            "The tagger textblob is not installed: pip install 'gesso[captions]'."
        ) from None

    def nouns(caption: str) -> list[str]:
        # In lower case: the lexicon takes a capital at the start of a caption for a name. What it
        # does not know is a noun to it, numbers and signs too.
        words = tag(caption.lower())
        return [word for word, kind in words if kind.startswith("NN") and word[0].isalpha()]

    return nouns
