"""A frozen Hugging Face text encoder with its tokenizer, shared by `hf`, `t5` and `clip` of text/.

Dims: B prompts, L tokens of the longest prompt in a call, D width of a token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gesso.encoders._weights import (
    check_complete,
    fingerprint,
    loading,
    locate,
    without_bars,
)
from gesso.types import Cond, GessoError


class FrozenTextEncoder(nn.Module):
    """Prompts -> last hidden states; the contract is `gesso.encoders.text.TextEncoder`.

    Args:
        encoder: a transformers model whose output has `last_hidden_state`.
        tokenizer: its tokenizer.
        max_tokens: longer prompts are cut; special tokens (EOS, CLS, ...) count.
        clean: applied to every prompt first.
        cleaning: names what `clean` does, for the fingerprint.
        padding: up to the "longest" prompt of a call, which the encoder is told not to read; or up
            to "max" tokens, which it and the backbone read like words, as Stable Diffusion 3 does.

    Raises:
        GessoError: the tokenizer has neither a padding nor an end-of-text token, or the encoder
            has fewer positions than `max_tokens`.
    """

    trainable = False

    def __init__(
        self,
        encoder: Any,
        tokenizer: Any,
        max_tokens: int,
        clean: Callable[[str], str] = str,
        cleaning: str = "none",
        padding: Literal["longest", "max"] = "longest",
    ) -> None:
        super().__init__()
        positions = getattr(encoder.config, "max_position_embeddings", None) or max_tokens
        if max_tokens > positions:
            raise GessoError(
                f"The text encoder reads at most {positions} tokens: set text_encoder.max_tokens "
                f"to that or less, not {max_tokens}."
            )
        if tokenizer.pad_token is None:
            if tokenizer.eos_token is None:
                raise GessoError(
                    "The text encoder's tokenizer has neither a padding nor an end-of-text token: "
                    "use one that pads."
                )
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        self.encoder = encoder.requires_grad_(False).eval()
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens
        self.dim = int(encoder.config.hidden_size)
        self._clean = clean
        self._cleaning = cleaning
        self._padding = padding

    def train(self, mode: bool = True) -> FrozenTextEncoder:
        """Stays in evaluation mode: dropout would make the features random."""
        return super().train(False)

    @torch.no_grad()
    def prepare(self, prompts: list[str]) -> Cond:
        """Prompts to `tokens` [B, L, D] float32 and `mask` [B, L], on the encoder's device.

        Features of padding are left as the encoder gives them; the mask is False there, unless
        padding is read.
        """
        texts = [self._clean(p) for p in prompts]
        read = self._padding == "max"
        batch = self.tokenizer(
            texts,
            padding="max_length" if read else "longest",
            truncation=True,
            max_length=self.max_tokens,
            return_tensors="pt",
        )
        device = next(self.encoder.parameters()).device
        ids: Tensor = batch["input_ids"].to(device)  # [B, L]
        mask: Tensor = torch.ones_like(ids) if read else batch["attention_mask"].to(device)
        return self.features(ids, mask).replace(mask=mask.bool())

    def features(self, ids: Tensor, mask: Tensor) -> Cond:
        """ids [B, L], mask [B, L] of what is read -> `tokens` [B, L, D]."""
        hidden = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state  # [B, L, D]
        return Cond(tokens=hidden.float())

    def forward(self, cond: Cond) -> Cond:
        """The condition itself: `prepare` has filled in the tokens."""
        return cond

    def dropped(self, prompt: str) -> str:
        """The words, from the first that is cut or cut into, that `max_tokens` loses."""
        return words_lost(self.tokenizer, self._clean(prompt), self.max_tokens)

    def fingerprint(self) -> str:
        """16 hex digits over weights, vocabulary, length and cleaning."""
        vocabulary = hashlib.sha256(repr(sorted(self.tokenizer.get_vocab().items())).encode())
        read = f" {self._padding}" * (self._padding == "max")
        config = f"{self.max_tokens} {self._cleaning} {vocabulary.hexdigest()}{read}"
        return fingerprint(config, self.state_dict())


def words_lost(tokenizer: Any, text: str, max_tokens: int) -> str:
    """The words of a text, from the first that is cut or cut into, that do not fit.

    Args:
        tokenizer: of transformers, a fast one.
        text: as the tokenizer shall read it.
        max_tokens: that fit, special tokens included.
    """
    batch = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    kept = max_tokens - tokenizer.num_special_tokens_to_add()
    if len(batch["input_ids"]) <= kept:
        return ""
    start = batch["offset_mapping"][kept][0]
    if not text[start : start + 1].isspace():  # the token may begin with the space before it
        while start > 0 and not text[start - 1].isspace():
            start -= 1
    return text[start:].strip()


def weights_at(path: str, subfolder: str | None) -> tuple[str, str]:
    """(folder or hub id, subfolder or "") of an encoder's weights; finds a local pipeline's own."""
    folder = locate(path)
    if subfolder is None and (Path(folder) / "text_encoder" / "config.json").is_file():
        subfolder = "text_encoder"
    return folder, subfolder or ""


def load_encoder(
    model: Any, path: str, subfolder: str | None, tokenizer: str | None, dtype: str
) -> tuple[Any, Any]:
    """An encoder and its tokenizer.

    Args:
        model: a transformers class with `from_pretrained`.
        path: folder, `package:NAME` or hub id. Of the folder of a diffusers pipeline, the
            `text_encoder` is taken.
        subfolder: of `path`, where the weights are.
        tokenizer: where the tokenizer is, if not beside the weights (a pipeline's `tokenizer`
            folder is found by itself).
        dtype: name of the weights' torch dtype.

    Raises:
        GessoError: files are missing, truncated or of another architecture.
    """
    from transformers import AutoTokenizer

    folder, subfolder = weights_at(path, subfolder)
    beside = subfolder.replace("text_encoder", "tokenizer")
    words, words_in = (folder, beside) if tokenizer is None else (locate(tokenizer), "")
    with loading("text encoder", path), without_bars():
        encoder, info = model.from_pretrained(
            folder,
            subfolder=subfolder,
            dtype=getattr(torch, dtype),
            weights_only=True,  # of pickled weights, tensors are read and nothing is run
            trust_remote_code=False,  # nor is code that a folder brings along
            output_loading_info=True,
        )
        check_complete(info["missing_keys"])
    with loading("tokenizer of the text encoder", tokenizer or path):
        return encoder, AutoTokenizer.from_pretrained(
            words, subfolder=words_in, trust_remote_code=False
        )
