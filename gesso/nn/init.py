"""Initialisations used by more than one block."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class WithoutWeights(TorchFunctionMode):
    """Builds modules on the meta device, for weights that are assigned afterwards.

    with WithoutWeights():
        network = PixArt(config)

    Initialisations are skipped. On meta tensors they would only cost time: torch runs them through
    its compiler's decompositions, whose import alone takes seconds.
    """

    def __enter__(self) -> Any:
        self._device = torch.device("meta")
        self._device.__enter__()
        return super().__enter__()

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        self._device.__exit__(*exception)

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.randn:
            func = torch.empty
        elif getattr(func, "__name__", "") in ("normal_", "uniform_", "mul"):
            return args[0] if args else kwargs["tensor"]  # with the shape that it would have
        return func(*args, **kwargs)


def xavier_(layer: nn.Linear) -> nn.Linear:
    """Xavier-uniform weight and zero bias, in place; returns the layer."""
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def zero_(layer: nn.Linear) -> nn.Linear:
    """Zero weight and bias, in place, for layers whose branch starts silent; returns the layer."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def normal_(layer: nn.Linear, std: float = 0.02) -> nn.Linear:
    """Normal weight and zero bias, in place; returns the layer."""
    nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer


def bare(dim: int, out: int, std: float = 0.02) -> nn.Linear:
    """A linear layer without a bias, its weight normal."""
    layer = nn.Linear(dim, out, bias=False)
    nn.init.normal_(layer.weight, std=std)
    return layer
