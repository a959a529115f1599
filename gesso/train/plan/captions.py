"""How many pictures a recipe's source has, and how long their captions are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gesso.config import Recipe
from gesso.data.open import open_data
from gesso.data.source import caption_texts
from gesso.encoders._frozen_text import weights_at
from gesso.train.plan.encoders import Encoders, Text
from gesso.types import GessoError

SAMPLE = 512  # captions that are read


@dataclass
class Captions:
    """What a plan has to know of the data.

    Attributes:
        pictures: None where the source does not tell, or is not at hand.
        longest: tokens of the longest caption in a batch.
        mean: tokens of a caption.
        each: captions of a picture.
        notes: what was assumed.
    """

    pictures: int | None
    longest: int
    mean: float
    each: float
    notes: list[str]


def look_at_data(recipe: Recipe, encoders: Encoders, batch: int) -> Captions:
    """Read some captions of a recipe's source; where it is not at hand, assume the longest.

    Args:
        recipe: any.
        encoders: of the recipe.
        batch: captions of which the longest counts.
    """
    most = 0 if encoders.text is None else int(encoders.text.max_tokens)
    limit = recipe.data.limit
    try:
        source = open_data(recipe.data)
        pictures = len(source) if isinstance(source, Sized) else None
        texts = [] if encoders.text is None else list(islice(caption_texts(source), SAMPLE))
        each = _captions_each(source) if texts else 0.0
    except GessoError as e:
        return Captions(limit, most, most, 1.0, [f"the source cannot be opened ({e})"])
    if pictures is not None and limit is not None:
        pictures = min(pictures, limit)
    count = _counter(recipe, encoders)
    if count is None:
        notes = [f"captions of {most} tokens, the longest, are assumed"] if texts else []
        return Captions(pictures, most, most, each, notes)
    lengths = [count(text) for text in texts]
    if not lengths:
        return Captions(pictures, most, most, each, [])
    groups = [max(lengths[i : i + batch]) for i in range(0, len(lengths), batch)]
    longest = round(sum(groups) / len(groups))
    return Captions(pictures, longest, sum(lengths) / len(lengths), each, [])


def _captions_each(source: Any) -> float:
    found = [len(item.captions) for item in islice(_items(source), 32) if hasattr(item, "captions")]
    return sum(found) / len(found) if found else 1.0


def _items(source: Any) -> Iterator[Any]:
    return iter(source.entries()) if hasattr(source, "entries") else iter(source)


def _counter(recipe: Recipe, encoders: Encoders) -> Callable[[str], int] | None:
    """Tokens of a caption; None where the tokenizer is not at hand."""
    text = encoders.text
    if text is None:
        return None
    if text.max_tokens == 1:  # of class labels
        return lambda caption: 1
    if not isinstance(text, Text):
        return lambda caption: int(text.prepare([caption]).mask.sum())
    if text.fixed:
        return lambda caption: text.max_tokens
    from transformers import AutoTokenizer

    spec = recipe.text_encoder or {}
    try:
        folder, subfolder = weights_at(spec["path"], spec.get("subfolder"))
        where = {"subfolder": subfolder} if spec.get("tokenizer") is None else {}
        tokenizer = AutoTokenizer.from_pretrained(
            spec.get("tokenizer") or folder, local_files_only=True, **where
        )
    except (OSError, ValueError, GessoError):
        return None
    return lambda caption: min(len(tokenizer(caption)["input_ids"]), text.max_tokens)
