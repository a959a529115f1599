"""Training on some of the patches: the others are dropped on the way into the blocks.

Sehwag et al. 2024, "Stretching Each Dollar", https://arxiv.org/abs/2407.15811, section 3. In a
backbone with a patch-mixer the dropping is deferred: the mixer sees all patches, so those that stay
know of those that go. In a backbone without one it is naive masking, the thing compared with.

The loss is on kept patches only, and nothing stands in for dropped ones. A model paints with all
patches, always: this adapter refuses to run outside of training and leaves no trace in the network.

Dims: B batch, N patches of a picture, k kept ones, P numbers that are predicted of a patch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gesso.draws import Draws
from gesso.nn.hooks import hooked
from gesso.types import GessoError, Prediction


def keep(scores: Tensor, ratio: float) -> Tensor:
    """Which patches stay: in each picture the int(N (1 - ratio)) of the lowest scores, at least 1.

    Args:
        scores: [B, N], uniform draws make it a random choice.
        ratio: share of the patches that is dropped, in [0, 1).

    Returns:
        [B, k] int64, ascending.
    """
    k = max(1, int(scores.shape[1] * (1 - ratio) + 1e-9))  # 1 - 0.9 is a little below 0.1
    return scores.topk(k, dim=1, largest=False).indices.sort(dim=1).values


@dataclass(frozen=True)
class Masked:
    """A backbone that sees kept patches only: (x, t, cond) -> Prediction.

    `value` is zero where a patch was dropped; aux["kept"] [B, 1, h, w] bool tells where.

    Attributes:
        backbone: with the hook points `tokens_in` and `patches_out`, and a `patch_size`.
        kept: [B, k] from `keep`.
    """

    backbone: nn.Module
    kept: Tensor

    def __call__(self, x: Tensor, t: Tensor, cond: Any) -> Prediction:
        """Predict the kept patches of x [B, C, h, w] at t [B].

        Raises:
            GessoError: the backbone is not being trained: masked patches cannot be painted.
        """
        backbone, kept = self.backbone, self.kept
        if not (backbone.training and torch.is_grad_enabled()):
            raise GessoError("Patches are masked in training only: evaluate the backbone itself.")
        p: int = backbone.patch_size  # type: ignore[assignment]
        h, w = x.shape[2] // p, x.shape[3] // p

        def drop(tokens: Tensor) -> Tensor:  # [B, N, D] -> [B, k, D]
            return tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2]))

        def restore(patches: Tensor) -> Tensor:  # [B, k, P] -> [B, N, P]
            whole = patches.new_zeros(len(patches), h * w, patches.shape[2])
            return whole.scatter(1, kept[..., None].expand_as(patches), patches)

        with hooked(backbone.tokens_in, drop), hooked(backbone.patches_out, restore):  # type: ignore
            out = backbone(x, t, cond)
        where = torch.zeros(len(x), h * w, dtype=torch.bool, device=x.device).scatter(1, kept, True)
        cells = where.view(-1, 1, h, w).repeat_interleave(p, 2).repeat_interleave(p, 3)
        return Prediction(out.value, out.aux | {"kept": cells})


def masked(backbone: nn.Module, x: Tensor, ratio: float, draws: Draws) -> Masked:
    """The backbone on patches of x [B, C, h, w] that are drawn for each picture."""
    p: int = backbone.patch_size  # type: ignore[assignment]
    n = x[0, 0].numel() // p**2
    return Masked(backbone, keep(draws.rand(len(x), n).to(x.device), ratio))


def check(backbone: nn.Module) -> None:
    """Whether patches of a backbone can be dropped.

    Raises:
        GessoError: it declares no such hook points, or its attention needs whole grids.
    """
    name = type(backbone).__name__.lower()
    if not hasattr(backbone, "tokens_in") or not hasattr(backbone, "patches_out"):
        raise GessoError(f"{name} has no hook points for masked training: set mask_ratio to 0.")
    if any(getattr(block, "compressed", False) for block in backbone.modules()):
        raise GessoError(
            f"This {name} pools keys and values over whole grids (kv_blocks), which dropped patches"
            " tear apart: set mask_ratio to 0, or kv_blocks to []."
        )
