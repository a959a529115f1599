"""T5's encoder, frozen: the text encoder of PixArt (T5 v1.1 XXL, 120 tokens; 300 for Sigma).

Prompts are cut to `max_tokens` including the end-of-text token, and T5 itself attends under the
mask, so that padding to the longest prompt gives the features that padding to 120 would.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from importlib.util import find_spec
from typing import Literal

from pydantic import Field

from gesso import config
from gesso.encoders._frozen_text import FrozenTextEncoder, load_encoder

URL = re.compile(r"\b(?:https?://|www\.)\S+", re.IGNORECASE)
TAG = re.compile(r"<[^<>]*>")


class Config(config.Config):
    """Options of the T5 text encoder.

    Attributes:
        path: a folder (a whole pipeline's too), `package:NAME`, or a hub id.
        subfolder: of `path`, where the weights are; "text_encoder" for a pipeline on the hub.
        tokenizer: where the tokenizer is, if not beside the weights.
        max_tokens: 120 for PixArt-alpha, 300 for PixArt-Sigma.
        clean: "lower" lower-cases prompts and strips blanks, as diffusers' pipelines do; "alpha"
            also removes mark-up, as PixArt-alpha's authors do; Sigma's read them raw ("none").
        padding: "longest": padding is there for the batch alone and not read, as in PixArt;
            "max": prompts are padded to `max_tokens` and all is read, as in Stable Diffusion 3.
        dtype: of the weights; T5 overflows in float16.
    """

    path: str
    subfolder: str | None = None
    tokenizer: str | None = None
    max_tokens: int = Field(default=120, ge=2)
    clean: Literal["none", "lower", "alpha"] = "none"
    padding: Literal["longest", "max"] = "longest"
    dtype: Literal["float32", "bfloat16"] = "float32"


def build(options: Config) -> FrozenTextEncoder:
    """Load the encoder.

    Raises:
        GessoError: files are missing, truncated or not of a T5.
    """
    from transformers import T5EncoderModel

    encoder, tokenizer = load_encoder(
        T5EncoderModel, options.path, options.subfolder, options.tokenizer, options.dtype
    )
    cleaners: dict[str, Callable[[str], str]]
    cleaners = {"none": str, "lower": lower, "alpha": clean_caption}
    repaired = ", ftfy" if options.clean == "alpha" and find_spec("ftfy") else ""
    return FrozenTextEncoder(
        encoder,
        tokenizer,
        options.max_tokens,
        cleaners[options.clean],
        f"{options.clean}{repaired}",
        options.padding,
    )


def lower(text: str) -> str:
    """In lower case, without blanks around it."""
    return text.lower().strip()


def clean_caption(text: str) -> str:
    """A caption without mark-up, in lower case.

    Done twice, as PixArt-alpha does: one pass may uncover what the next removes (`&amp;lt;b&gt;`).
    Broken encodings are repaired where the package ftfy is installed.
    """
    for _ in range(2):
        if find_spec("ftfy"):
            import ftfy

            text = ftfy.fix_text(text)
        text = html.unescape(text)
        text = TAG.sub(" ", URL.sub(" ", text))
        text = " ".join(text.lower().split())
    return text
