"""CLIP's text tower, frozen, as Stable Diffusion 3 reads it: penultimate states and pooled text.

text_encoder: {name: clip, path: stable-diffusion-3-medium, subfolder: text_encoder_2}

Prompts are padded to `max_tokens`, and the padding is read: by the backbone as by CLIP itself.

Dims: B prompts, L = max_tokens, D width of a token, P width of the pooled text.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from gesso import config
from gesso.encoders._frozen_text import FrozenTextEncoder, load_encoder
from gesso.types import Cond


class Config(config.Config):
    """Options of the CLIP text encoder.

    Attributes:
        path: a folder (a whole pipeline's too), `package:NAME`, or a hub id.
        subfolder: of `path`, where the weights are; "text_encoder" for a pipeline on the hub.
        tokenizer: where the tokenizer is, if not beside the weights.
        max_tokens: longer prompts are cut; CLIP's beginning and end of a text count.
        dtype: of the weights.
    """

    path: str
    subfolder: str | None = None
    tokenizer: str | None = None
    max_tokens: int = Field(default=77, ge=3)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class ClipTextEncoder(FrozenTextEncoder):
    """Prompts -> penultimate hidden states; the contract is `gesso.encoders.text.TextEncoder`.

    Attributes:
        pooled_dim: P.
    """

    def __init__(self, encoder: Any, tokenizer: Any, max_tokens: int) -> None:
        super().__init__(encoder, tokenizer, max_tokens, padding="max")
        self.pooled_dim = int(encoder.config.projection_dim)

    def features(self, ids: Tensor, mask: Tensor) -> Cond:
        """ids [B, L] -> `tokens` [B, L, D] of the last layer but one, `pooled` [B, P] projected."""
        out = self.encoder(input_ids=ids, output_hidden_states=True)
        return Cond(tokens=out.hidden_states[-2].float(), pooled=out.text_embeds.float())


def build(options: Config) -> ClipTextEncoder:
    """Load the encoder.

    Raises:
        GessoError: files are missing, truncated or not of a CLIP with a text projection.
    """
    from transformers import CLIPTextModelWithProjection

    encoder, tokenizer = load_encoder(
        CLIPTextModelWithProjection,
        options.path,
        options.subfolder,
        options.tokenizer,
        options.dtype,
    )
    return ClipTextEncoder(encoder, tokenizer, options.max_tokens)
