"""LPIPS with AlexNet: vectors of pictures, whose squared distance is the perceptual distance.

The trunk is torchvision's AlexNet for ImageNet, `alexnet-owt-7be5be79.pth` (or its tensors as
safetensors), in a file that the user names; the learned heads come with torchmetrics.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from gesso.config import Config as _Config
from gesso.device import pick_device
from gesso.encoders._weights import read_safetensors
from gesso.evals.fingerprint import file_digest, fingerprint, source_digest, versions
from gesso.evals.lpips import LEAST, AlexNet, resized, vectors
from gesso.evals.networks import in_batches
from gesso.evals.types import Image, Judge
from gesso.types import GessoError

ABILITIES = ("features",)
WANTED = "alexnet-owt-7be5be79.pth"


class Config(_Config):
    """Options of the judge `lpips`."""

    path: str  # the trunk's weight file
    size: int = Field(default=64, ge=LEAST)  # pixels, to which both sides are brought
    batch_size: int = 32


class LPIPS(Judge):
    """See the module."""

    def __init__(self, options: Config, device: str | None) -> None:
        file = Path(options.path)
        self.size, self.device = options.size, pick_device(device)
        self.batch_size = options.batch_size
        self.abilities = ABILITIES
        self._trunk = load_trunk(file).requires_grad_(False).eval()
        self.heads = [head.to(self.device) for head in load_heads()]
        self.name = f"lpips-alex-{options.size}px:{file.name}"
        self.versions = versions("torch", "torchmetrics")
        source = source_digest(__name__, "gesso.evals.lpips")
        heads = [head.tolist() for head in self.heads]
        self.fingerprint = fingerprint(file_digest(file), options.size, heads, source)

    @cached_property
    def trunk(self) -> AlexNet:
        """The network, which moves to its device when it is first used."""
        return self._trunk.to(self.device)

    @torch.no_grad()
    def features(self, images: Sequence[Image]) -> np.ndarray:
        """[B, D] float32; at 64 pixels D is 31,872."""

        def run(some: list[int]) -> list[Tensor]:
            pixels = [torch.from_numpy(np.array(images[i])).movedim(-1, 0)[None] for i in some]
            small = torch.cat([resized(p.to(self.device).float(), self.size) for p in pixels])
            return list(vectors(self.trunk, self.heads, small / 127.5 - 1).cpu())

        return torch.stack(in_batches(run, [0] * len(images), self.batch_size)).numpy()


def load_trunk(file: Path) -> AlexNet:
    """The convolutions, from tensors `features.0.weight` ...; nothing pickled is run.

    Raises:
        GessoError: no such file, or not these weights.
    """
    if not file.is_file():
        raise GessoError(
            f"There is no AlexNet weight file {str(file)!r}: LPIPS needs torchvision's "
            f"{WANTED}, given as --judge lpips:FILE."
        )
    try:
        tensors: dict[str, Tensor] = (
            read_safetensors(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
        trunk = AlexNet()
        trunk.load_state_dict({k: v for k, v in tensors.items() if k.startswith("features.")})
    except (RuntimeError, AttributeError, EOFError, ValueError, pickle.UnpicklingError) as e:
        raise GessoError(
            f"{str(file)!r} is no AlexNet of torchvision ({str(e).splitlines()[0].rstrip(':')}): "
            f"give {WANTED}."
        ) from None
    return trunk.float()


def load_heads() -> list[Tensor]:
    """The five learned heads, [C] each.

    Raises:
        GessoError: torchmetrics is not installed.
    """
    try:
        import torchmetrics.functional.image as package
    except ImportError:
        raise GessoError("LPIPS needs torchmetrics: pip install 'gesso[judge]'.") from None
    file = Path(str(package.__file__)).parent / "lpips_models" / "alex.pth"
    tensors = torch.load(file, map_location="cpu", weights_only=True)
    return [tensors[f"lin{i}.model.1.weight"].flatten().float() for i in range(5)]


def build(options: Config, device: str | None) -> LPIPS:
    """The judge.

    Raises:
        GessoError: weights that are absent or of another kind, or a device that is not there.
    """
    return LPIPS(options, device)
