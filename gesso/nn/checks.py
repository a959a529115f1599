"""What every backbone asks of its inputs, with one message for all."""

from __future__ import annotations

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
    if tokens is None or tokens.shape[2] != width:
        found = "none" if tokens is None else f"width {tokens.shape[2]}"
        raise GessoError(
            f"{name} takes text tokens of width {width}, got {found}: set its text_dim to the text"
            " encoder's width."
        )
    return tokens
