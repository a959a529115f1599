"""Low-rank adapters on a network: LoRA, LoHa, LoKr and DoRA, applied by changing the weights.

Any network with Linear or Conv2d layers will do. With W a layer's weight, an adapter of weight w
makes it

    W + w (f(W) - W)
    f(W) = W + s D               LoRA (Hu et al. 2021, https://arxiv.org/abs/2106.09685, eq. 3)
    f(W) = m V/|V|, V = W + s D  DoRA (Liu et al. 2024, https://arxiv.org/abs/2402.09353, eq. 5)

where D is the product of the factors, and s = alpha / rank, or alpha / sqrt(rank) where the adapter
is rank-stabilised (Kalajdzievski 2023, https://arxiv.org/abs/2312.03732). Several adapters add up:
each is a change of the original W. Sums are float32, rounded once to the weight's dtype. The
original weights of the touched layers are kept on the CPU, so taking adapters out restores the
original bits.

Dims: o output rows of a weight, i input columns, k kernel sides (a Conv2d), r rank.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

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


@dataclass
class Loaded:
    """An adapter that is attached: its name, weight, layers and where it came from."""

    name: str
    weight: float
    layers: Sequence[Layer]
    source: str = ""
    fingerprint: str = ""


@dataclass
class Adapters:
    """The adapters of one network, in its weights (`fused`) or beside them.

    Attributes:
        network: changed in place, so whoever holds its tensors sees the change. None: not there
            at the moment; see `attach`.
        loaded: in the order in which they were added.
        fused: whether the network computes with them, or will once it is there.
    """

    network: nn.Module | None
    loaded: list[Loaded] = field(default_factory=list)
    fused: bool = False
    _originals: dict[str, Tensor] = field(default_factory=dict)

    def attach(self, network: nn.Module | None, *, keep: bool = True) -> None:
        """Go over to another network, or to None; the one before stays as it is.

        Args:
            network: with its original weights; the adapters are fused into it if they were.
            keep: its originals, so that it can be unfused; False spares their memory.

        Raises:
            GessoError: an adapter is for other layers or shapes.
        """
        self._originals.clear()
        self.network = network
        if self.fused:
            self.fuse()
        if not keep:
            self._originals.clear()

    def add(self, adapter: Loaded) -> None:
        """Attach an adapter and fuse.

        Raises:
            GessoError: the name is taken, or a layer is missing or has another shape; the network
                is as it was before.
        """
        if any(a.name == adapter.name for a in self.loaded):
            raise GessoError(f"A LoRA named {adapter.name!r} is loaded already: give another name.")
        if self.network is not None:
            for layer in adapter.layers:
                weight = self._weight(layer.target)
                layer.check(weight[_rows(layer, weight)].shape)
        self.loaded.append(adapter)
        self.fuse()

    def remove(self, name: str | None = None) -> None:
        """Take one adapter out, or all.

        Raises:
            GessoError: no such adapter (names those that are loaded).
        """
        if name is not None:
            self.get(name)
        self.loaded = [a for a in self.loaded if name is not None and a.name != name]
        if self.fused:
            self.fuse()

    def set_weight(self, name: str, weight: float) -> None:
        """Change an adapter's weight.

        Raises:
            GessoError: no such adapter.
        """
        self.get(name).weight = weight
        if self.fused:
            self.fuse()

    def get(self, name: str) -> Loaded:
        """The adapter of a name.

        Raises:
            GessoError: no such adapter (names those that are loaded).
        """
        for adapter in self.loaded:
            if adapter.name == name:
                return adapter
        names = ", ".join(a.name for a in self.loaded) or "none"
        raise GessoError(f"There is no LoRA named {name!r}: loaded are {names}.")

    @torch.no_grad()
    def fuse(self) -> None:
        """Make the network compute with the adapters as they are now; again is no change."""
        self.unfuse()
        self.fused = True
        if self.network is None:
            return
        targets = dict.fromkeys(layer.target for a in self.loaded for layer in a.layers)
        for target in targets:
            weight = self._weight(target)
            original = weight.detach().clone()
            total = original.to(torch.float32, copy=True)
            for adapter in self.loaded:
                for layer in adapter.layers:
                    if layer.target == target and adapter.weight:
                        rows = _rows(layer, original)
                        total[rows].add_(layer.change(original[rows]), alpha=adapter.weight)
            self._originals[target] = original.cpu()
            weight.copy_(total)

    @torch.no_grad()
    def unfuse(self) -> None:
        """Give the network its original weights back, bit for bit; the adapters stay loaded.

        Raises:
            GessoError: the weights were quantised meanwhile.
        """
        weights = [self._weight(target) for target in self._originals]
        for weight, original in zip(weights, self._originals.values(), strict=True):
            weight.copy_(original)
        self._originals.clear()
        self.fused = False

    def _weight(self, target: str) -> Tensor:
        assert self.network is not None
        try:
            layer = self.network.get_submodule(target)
        except AttributeError:
            raise GessoError(
                f"The LoRA changes the layer {target}, which this model does not have: "
                "use one made for this model."
            ) from None
        weight = getattr(layer, "weight", None)
        if not isinstance(layer, nn.Linear | nn.Conv2d) or not isinstance(weight, Tensor):
            raise GessoError(f"The LoRA changes {target}, which is no Linear or Conv2d layer.")
        if type(weight.data) is not Tensor or not weight.is_floating_point():
            raise GessoError(
                f"The weights of {target} are quantised and cannot take a LoRA: load it before "
                "quantising."
            )
        return weight


def _rows(layer: Layer, weight: Tensor) -> slice:
    index, count = layer.part
    size = weight.shape[0] // count
    return slice(index * size, (index + 1) * size)


def _text(shape: torch.Size) -> str:
    return "x".join(map(str, shape))
