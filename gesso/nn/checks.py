"""What every backbone asks of its inputs, with one message for all."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from gesso.types import GessoError


def check_latents(x: Tensor, channels: int, patch_size: int, name: str) -> None:
    """Raise a GessoError unless x is [B, channels, h, w] with sides divisible by the patch size."""
    if x.shape[1] != channels or x.shape[2] % patch_size or x.shape[3] % patch_size:
        raise GessoError(
            f"{name} takes latents of {channels} channels and sides divisible by {patch_size}, not"
            f" {list(x.shape[1:])}: change the picture's size or the encoder."
        )


def check_text(tokens: Tensor | None, width: int, name: str) -> Tensor:
    """The text tokens [B, L, width]; raises a GessoError if there are none, or of another width."""
    return _check_field(tokens, width, f"{name} takes text tokens", "text_dim")


def check_pooled(pooled: Tensor | None, width: int, name: str) -> Tensor:
    """The pooled text [B, width]; raises a GessoError if there is none, or of another width."""
    return _check_field(pooled, width, f"{name} takes pooled text", "pooled_dim")


def check_codes(tokenizer: Any, vocabulary: int, channels: int, name: str) -> None:
    """Raise a GessoError unless an image encoder has a codebook of `vocabulary` x `channels`."""
    if not hasattr(tokenizer, "codes"):
        raise GessoError(
            f"{name} generates codes, and its image encoder has none: set image_encoder to one"
            " with a codebook, such as {name: multiscale_vq}."
        )
    for what, own, found in (
        ("codes", vocabulary, tokenizer.vocabulary),
        ("channels", channels, tokenizer.channels),
    ):
        if own != found:
            option = "vocabulary" if what == "codes" else "in_channels"
            raise GessoError(
                f"{name} was made for a tokenizer of {own} {what}, and this one has {found}: use"
                f" its own tokenizer, or leave out backbone.{option} and train it anew."
            )


def check_heads(dim: int, num_heads: int, name: str) -> None:
    """Raise a GessoError unless heads and sine-cosine positions divide a width."""
    if dim % num_heads or dim % 4:
        raise GessoError(
            f"{name}: hidden_size {dim} must be divisible by 4 and by num_heads {num_heads}:"
            " change one of them."
        )


def _check_field(value: Tensor | None, width: int, takes: str, option: str) -> Tensor:
    if value is None or value.shape[-1] != width:
        found = "none" if value is None else f"width {value.shape[-1]}"
        raise GessoError(
            f"{takes} of width {width}, got {found}: set its {option} to the text encoder's width."
        )
    return value
