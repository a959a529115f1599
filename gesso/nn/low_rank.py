"""Low-rank changes of a weight: LoRA, LoHa, LoKr and DoRA.

With W a layer's weight, an adapter makes it

    f(W) = W + s D               LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685, eq. 3)
    f(W) = m V/|V|, V = W + s D  DoRA (Liu et al. 2024, https://arxiv.org/abs/2402.09353, eq. 5)

where D is the product of the factors, and s = alpha / rank, or alpha / sqrt(rank) where the adapter
is rank-stabilised (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732).

Dims: o output rows of a weight, i input columns, k kernel sides (a Conv2d), r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from gesso.types import GessoError

Kind = Literal["lora", "loha", "lokr"]


@dataclass(frozen=True)
class Layer:
    """One adapter of one weight, or of one of several equal row blocks of a fused weight.

    Attributes:
        target: path of the layer in the network, such as "blocks.0.attn.qkv".
        kind: which product of the factors makes D.
        factors: by their published names.
            lora: down [r, i, k, k], up [o, r, 1, 1], optionally mid [r, r, k, k] (k: Conv2d only).
            loha: w1_a [o, r], w1_b [r, i k k], w2_a, w2_b alike; with t1, t2 [r, r, k, k]:
                w1_a, w2_a [r, o] and w1_b, w2_b [r, i].
            lokr, with o = o1 o2 and i = i1 i2: w1 [o1, i1] or w1_a [o1, r], w1_b [r, i1]; and
                w2 [o2, i2, k, k] or w2_a [o2, r], w2_b [r, i2 k k]
                or w2_a [r, o2], w2_b [r, i2], t2 [r, r, k, k].
        rank: r.
        alpha: None: s is 1.
        rank_stabilised: s divides by sqrt(r).
        magnitude: DoRA's m: [o, 1, (1, 1)] a norm per output, [1, i, (1, 1)] a norm per input.
        part: (index, count): which of `count` equal row blocks of the weight.
    """

    target: str
    kind: Kind
    factors: Mapping[str, Tensor]
    rank: int
    alpha: float | None = None
    rank_stabilised: bool = False
    magnitude: Tensor | None = None
    part: tuple[int, int] = (0, 1)

    @property
    def scale(self) -> float:
        """s."""
        if self.alpha is None:
            return 1.0
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    @property
    def whole(self) -> bool:
        """Whether this is a product of whole factors, which has no rank."""
        return self.kind == "lokr" and {"w1", "w2"} <= self.factors.keys()

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """s D: [o, i], or [o, i, k, k]; a Conv2d's may come as [o, i k k]."""
        f = {name: tensor.to(dtype) for name, tensor in self.factors.items()}
        # s goes into a factor, which is small, and not into the product, which is not.
        scaled = next(name for name in ("up", "w1", "w1_a") if name in f)
        f[scaled] = f[scaled] * self.scale
        product = {"lora": _lora, "loha": _loha, "lokr": _lokr}[self.kind]
        return product(f)

    def rows(self, weight: Tensor) -> slice:
        """The rows of a weight [o, ...] that this adapter is for."""
        index, count = self.part
        size = weight.shape[0] // count
        return slice(index * size, (index + 1) * size)

    def shape(self) -> torch.Size:
        """Of `delta`.

        Raises:
            GessoError: the factors do not fit each other.
        """
        empty = {name: tensor.to("meta") for name, tensor in self.factors.items()}
        try:
            return replace(self, factors=empty).delta().shape
        except (RuntimeError, IndexError):
            shapes = ", ".join(f"{n} {_text(t.shape)}" for n, t in self.factors.items())
            raise GessoError(
                f"The LoRA's factors of {self.target} do not fit each other ({shapes}): it is"
                " broken, get it again."
            ) from None

    def check(self, shape: torch.Size) -> None:
        """Whether this adapter is for rows of this shape.

        Raises:
            GessoError: it is not; names the layer and both shapes.
        """
        own = self.shape()
        fits = own[0] == shape[0] and own.numel() == shape.numel()
        if not fits or (len(own) == len(shape) and own != shape):
            raise GessoError(
                f"The LoRA is for another width: its change of {self.target} is {_text(own)} where "
                f"the model has {_text(shape)}: use one made for this model."
            )
        if self.magnitude is None:
            return
        norms = self.magnitude.shape
        if norms.numel() != shape[1 if norms[0] == 1 and shape[0] > 1 else 0]:
            raise GessoError(
                f"The DoRA is for another width: its magnitude of {self.target} is {_text(norms)} "
                f"where the model has {_text(shape)}: use one made for this model."
            )

    def change(self, weight: Tensor) -> Tensor:
        """f(W) - W for the rows W that this adapter is for, of W's shape; at least in float32.

        Raises:
            GessoError: the adapter is for a weight of another shape.
        """
        self.check(weight.shape)
        weight = weight if weight.dtype == torch.float64 else weight.float()
        delta = self.delta(weight.dtype).to(weight.device).view(weight.shape)
        if self.magnitude is None:
            return delta
        magnitude = self.magnitude.to(weight)
        turned = weight + delta
        kept = 1 if magnitude.shape[0] == 1 and weight.shape[0] > 1 else 0
        summed = [d for d in range(turned.dim()) if d != kept]
        norm = torch.linalg.vector_norm(turned, dim=summed, keepdim=True)
        # A row that is zero has no direction: it stays zero instead of becoming NaN.
        return turned * (magnitude.view_as(norm) / norm.clamp_min(1e-30)) - weight


def _lora(f: Mapping[str, Tensor]) -> Tensor:
    up, down = f["up"], f["down"]
    if "mid" in f:  # a Tucker decomposition of the kernel
        return torch.einsum("mnxy,om,ni->oixy", f["mid"], up.flatten(1), down.flatten(1))
    return (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])


def _loha(f: Mapping[str, Tensor]) -> Tensor:
    """(w1_a w1_b) * (w2_a w2_b), elementwise (Hyeon-Woo et al. 2022, arXiv 2108.06098, 2.2)."""
    if "t1" in f:
        first, second = (
            torch.einsum("mnxy,mo,ni->oixy", f[f"t{j}"], f[f"w{j}_a"], f[f"w{j}_b"]) for j in (1, 2)
        )
        return first * second
    return (f["w1_a"] @ f["w1_b"]) * (f["w2_a"] @ f["w2_b"])


def _lokr(f: Mapping[str, Tensor]) -> Tensor:
    """The Kronecker product of w1 and w2 (Yeh et al. 2024, arXiv 2309.14859, LoKr)."""
    w1 = f["w1"] if "w1" in f else f["w1_a"] @ f["w1_b"]
    if "w2" in f:
        w2 = f["w2"]
    elif "t2" in f:
        w2 = torch.einsum("mnxy,mo,ni->oixy", f["t2"], f["w2_a"], f["w2_b"])
    else:
        w2 = f["w2_a"] @ f["w2_b"].flatten(1)
    return torch.kron(w1.view(*w1.shape, *[1] * (w2.dim() - 2)), w2.contiguous())


def _text(shape: torch.Size) -> str:
    return "x".join(map(str, shape))
