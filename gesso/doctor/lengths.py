"""How captions are measured: by the recipe's text encoder, or by a tokenizer at given limits."""

from __future__ import annotations

from functools import partial
from typing import Any

from gesso.config import Recipe, resolve
from gesso.doctor.types import LostWords
from gesso.encoders._frozen_text import weights_at, words_lost
from gesso.encoders._weights import loading, locate, locate_model
from gesso.encoders.text.learned import split_words

LIMITS = (120, 300)  # tokens of PixArt-alpha and PixArt-Sigma, end of text included


def by_tokenizer(path: str, limits: tuple[int, ...] = LIMITS) -> dict[str, LostWords]:
    """Measures for each limit, with the tokenizer of a folder, a package or the hub.

    Raises:
        GessoError: it cannot be loaded.
    """
    tokenizer = _tokenizer(locate_model("tokenizer", path), path)
    return {f"{n} tokens": partial(words_lost, tokenizer, max_tokens=n) for n in limits}


def by_recipe(recipe: Recipe) -> dict[str, LostWords]:
    """The measure of a recipe's text encoder, without its weights; {} if it has none.

    Raises:
        GessoError: unknown options, or a tokenizer that cannot be loaded.
    """
    if recipe.text_encoder is None:
        return {}
    options: Any = resolve("encoders.text", recipe.text_encoder)[1]
    n = getattr(options, "max_tokens", None)
    if n is None:
        return {}
    if not hasattr(options, "tokenizer"):  # `learned`, whose tokens are words
        return {f"{n} tokens": lambda text: " ".join(split_words(text)[n - 1 :])}
    folder, inside = weights_at(options.path, options.subfolder)
    beside = inside.replace("text_encoder", "tokenizer")
    place, sub = (folder, beside) if options.tokenizer is None else (locate(options.tokenizer), "")
    tokenizer = _tokenizer(place, options.tokenizer or options.path, sub)
    return {f"{n} tokens": partial(words_lost, tokenizer, max_tokens=n)}


def _tokenizer(place: str, named: str, subfolder: str = "") -> Any:
    from transformers import AutoTokenizer

    with loading("tokenizer", named):
        return AutoTokenizer.from_pretrained(place, subfolder=subfolder, trust_remote_code=False)
