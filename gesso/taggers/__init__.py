"""Finding the nouns of captions, one file for each part-of-speech tagger, found by file name.

A file has `build()`, which returns a function from a caption to its nouns, in lower case and in the
form in which they stand there ("dogs" and "dog" are two), and raises `GessoError` where something
that it needs is not installed.
"""

from __future__ import annotations

from collections.abc import Callable

from gesso.config import module

Tagger = Callable[[str], list[str]]
"""A caption -> its nouns, each as often as it occurs."""


def open_tagger(name: str = "textblob") -> Tagger:
    """The tagger of a file in this folder.

    Raises:
        GessoError: no such tagger, or what it needs is not installed.
    """
    return module("taggers", name).build()
