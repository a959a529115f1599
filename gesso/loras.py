"""What a pipeline offers for LoRAs; the mechanism is `gesso.adapters.fused`."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gesso.adapters.fused import Adapters, Loaded
from gesso.convert import lora as lora_files
from gesso.model import Model
from gesso.types import GessoError


class LoraMethods:
    """The part of `gesso.pipeline.Pipeline` that loads, fuses and removes LoRAs."""

    model: Model
    _adapters: Adapters
    _read: Callable[..., Model] | None

    @property
    def loras(self) -> list[Loaded]:
        """The LoRAs that are loaded, in order: name, weight, layers, source, fingerprint."""
        return list(self._adapters.loaded)

    def load_lora(self, path: str | Path, weight: float = 1.0, name: str | None = None) -> str:
        """Load a LoRA, LoHa, LoKr or DoRA of any trainer (docs/lora.md) and paint with it.

        It changes the denoiser's weights in place; those that it touches are kept on the CPU, so
        `unfuse_lora` and `remove_lora` bring the original bits back.

        Args:
            path: a file, or a folder that peft, diffusers or PixArt's trainer wrote.
            weight: how much of it; several add up.
            name: default: the file's name, numbered if that is taken.

        Returns:
            The name.

        Raises:
            GessoError: an unreadable file, or one that is not for this model.
        """
        _check_weight(weight)
        network = self._lora_network()
        own = {n for n, _ in network.named_modules()} if network is not None else set()
        read = lora_files.read(path, own)
        for note in read.notes:
            warnings.warn(note, stacklevel=2)
        taken = {adapter.name for adapter in self._adapters.loaded}
        numbered = (f"{read.name}-{i}" for i in range(2, len(taken) + 3))
        free = next(n for n in (read.name, *numbered) if n not in taken)
        loaded = Loaded(name or free, weight, read.layers, str(path), read.fingerprint)
        self._adapters.add(loaded)
        return loaded.name

    def fuse_lora(self) -> None:
        """Paint with the loaded LoRAs again, after `unfuse_lora`; loading one fuses it already."""
        self._lora_network()
        self._adapters.fuse()

    def unfuse_lora(self) -> None:
        """Paint without the LoRAs: the original weights, bit for bit. They stay loaded."""
        self._lora_network()
        self._adapters.unfuse()

    def set_lora(self, name: str, weight: float) -> None:
        """Change a LoRA's weight.

        Raises:
            GessoError: no such LoRA, or a weight that is no finite number.
        """
        _check_weight(weight)
        self._lora_network()
        self._adapters.set_weight(name, weight)

    def remove_lora(self, name: str | None = None) -> None:
        """Take one LoRA out, or all.

        Raises:
            GessoError: no such LoRA.
        """
        self._lora_network()
        self._adapters.remove(name)

    def lora_metadata(self) -> list[dict[str, Any]]:
        """What a picture's metadata say of the LoRAs that it is painted with."""
        if not self._adapters.fused:
            return []
        return [
            {"path": a.source, "weight": a.weight, "fingerprint": a.fingerprint}
            for a in self._adapters.loaded
        ]

    def _lora_network(self) -> Any:
        """The network whose adapters are about to change; with little memory it is read anew."""
        if self._read is not None:
            self.model.backbone = None
            self._adapters.attach(None)
        return self._adapters.network


def _check_weight(weight: float) -> None:
    if not math.isfinite(weight):
        raise GessoError(f"The weight of a LoRA is a number, not {weight}: give one like 0.8.")
