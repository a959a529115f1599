"""Initialisations used by more than one block."""

from __future__ import annotations

from torch import nn


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
