"""Inception-v3's pool features, as FID and its relatives are defined on.

Weights: the published conversion `pt_inception-2015-12-05-6726825d.pth` (or the same tensors as
safetensors). How pictures are brought to 299 pixels is part of the number and of the judge's name:
"clean" is antialiased bicubic in floats (Parmar et al., arXiv 2104.11222), "bilinear" is without
antialiasing, as the first PyTorch port does it.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gesso.config import Config as _Config
from gesso.device import pick_device
from gesso.encoders._weights import read_safetensors
from gesso.evals.fingerprint import file_digest, fingerprint, source_digest, versions
from gesso.evals.inception import SIDE, Inception
from gesso.evals.networks import DTYPES, in_batches
from gesso.evals.types import Image, Judge
from gesso.types import GessoError

ABILITIES = ("features",)


class Config(_Config):
    """Options of the judge `inception`."""

    path: str  # the weight file
    resize: Literal["clean", "bilinear"] = "clean"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    batch_size: int = 32


class InceptionJudge(Judge):
    """See the module."""

    def __init__(self, options: Config, device: str | None) -> None:
        file = Path(options.path)
        self.options, self.device = options, pick_device(device)
        self.batch_size = options.batch_size
        self.abilities = ABILITIES
        self._network = _load(file).requires_grad_(False).eval()
        kind = options.resize + ("" if options.dtype == "float32" else f"-{options.dtype}")
        self.name = f"inception-{kind}:{file.name}"
        self.versions = versions("torch", "pillow")
        source = source_digest(__name__, "gesso.evals.inception")
        self.fingerprint = fingerprint(file_digest(file), kind, source)

    @cached_property
    def network(self) -> Inception:
        """The network, which moves to its device when it is first used."""
        return self._network.to(self.device, DTYPES[self.options.dtype])

    @torch.no_grad()
    def features(self, images: Sequence[Image]) -> np.ndarray:
        """[B, 2048] float32."""
        resize = clean if self.options.resize == "clean" else bilinear

        def run(some: list[int]) -> list[Tensor]:
            pixels = torch.stack([resize(images[i]) for i in some])
            return list(self.network(pixels.to(self.device, DTYPES[self.options.dtype])).cpu())

        return torch.stack(in_batches(run, [0] * len(images), self.batch_size)).float().numpy()


def clean(image: Image) -> Tensor:
    """[H, W, 3] uint8 -> [3, 299, 299] in [-1, 1]: bicubic, antialiased, not rounded between."""
    from PIL import Image as Pictures

    channels = [
        np.asarray(
            Pictures.fromarray(image[..., c].astype(np.float32)).resize(
                (SIDE, SIDE), Pictures.Resampling.BICUBIC
            )
        )
        for c in range(3)
    ]
    return (torch.from_numpy(np.stack(channels)).clip(0, 255) - 128) / 128


def bilinear(image: Image) -> Tensor:
    """[H, W, 3] uint8 -> [3, 299, 299] in [-1, 1]: bilinear, without antialiasing."""
    pixels = torch.from_numpy(np.array(image)).movedim(-1, 0)[None].float() / 255
    resized = F.interpolate(pixels, (SIDE, SIDE), mode="bilinear", align_corners=False)
    return 2 * resized[0] - 1


def _load(file: Path) -> Inception:
    """The network; of a pickled file tensors are read and nothing is run.

    Raises:
        GessoError: no such file, or not these weights.
    """
    if not file.is_file():
        raise GessoError(
            f"There is no Inception weight file {str(file)!r}: FID is defined with "
            "pt_inception-2015-12-05-6726825d.pth, given as --judge inception:FILE."
        )
    try:
        if file.suffix == ".safetensors":
            tensors = read_safetensors(file)
        else:
            tensors = torch.load(file, map_location="cpu", weights_only=True)
        with torch.device("meta"):
            network = Inception()
        network.load_state_dict(tensors, assign=True)
        return network.float()
    except (RuntimeError, pickle.UnpicklingError, AttributeError, EOFError, ValueError) as e:
        raise GessoError(
            f"{str(file)!r} is no Inception-v3 of 2015 ({str(e).splitlines()[0].rstrip(':')}): "
            "give pt_inception-2015-12-05-6726825d.pth."
        ) from None


def build(options: Config, device: str | None) -> InceptionJudge:
    """The judge.

    Raises:
        GessoError: weights that are absent or of another kind, or a device that is not there.
    """
    return InceptionJudge(options, device)
