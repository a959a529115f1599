"""Backbones: the networks that generate. One file each, with `Config` and `build(options)`.

Those that denoise are called as (x, t, cond) -> `gesso.types.Prediction`. Those that write a
tokenizer's codes are `Writes`, and their recipes have `diffusion: null`.

Dims: B pictures, T codes of a picture, n of them known, m of the next group, V entries of the
codebook, h, w latent size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from gesso.nn.kv_cache import Cache
    from gesso.types import Cond


class Writes(Protocol):
    """A backbone that predicts codes, group after group; it is also an `nn.Module`.

    Tokenizers are `gesso.encoders.image.Tokenizer`s.
    """

    def check(self, tokenizer: Any) -> None:
        """Raise a GessoError unless these are the codes that a tokenizer has."""
        ...

    def groups(self, grid: tuple[int, int]) -> list[int]:
        """How many codes each step predicts, for latents of size (h, w).

        Raises:
            GessoError: it cannot paint this size.
        """
        ...

    def teach(self, codes: Tensor, cond: Cond, tokenizer: Any) -> Tensor:
        """Codes [B, T] to logits [B, T, V] of each from the groups before it."""
        ...

    def follow(self, codes: Tensor, cond: Cond, tokenizer: Any, cache: Cache) -> Tensor:
        """Codes [B, n] so far to logits [B, m, V] of the next group.

        All but the last group are in the cache, which this call extends; one cache a batch.
        """
        ...
