"""Low-rank adapters on a network, applied by changing its weights.

Any network with Linear or Conv2d layers will do. An adapter of weight w makes a layer's weight W

    W + w (f(W) - W)

with f as `gesso.nn.low_rank` has it. Several adapters add up: each is a change of the original W.
Sums are float32, rounded once to the weight's dtype. The original weights of the touched layers are
kept on the CPU, so taking adapters out restores the original bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from gesso.nn.low_rank import Layer
from gesso.types import GessoError


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
                layer.check(weight[layer.rows(weight)].shape)
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
                        rows = layer.rows(original)
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
