"""LAION's aesthetic predictor (improved, v2): a head on CLIP ViT-L/14's picture features.

Head: `sac+logos+ava1-l14-linearMSE.pth`, five linear layers without activations between.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gesso.encoders._weights import read_safetensors
from gesso.evals.fingerprint import file_digest, fingerprint, source_digest
from gesso.evals.networks import NetworkConfig
from gesso.evals.types import Image, Judge
from gesso.types import GessoError

ABILITIES = ("score",)
WIDTHS = (1024, 128, 64, 16, 1)
PLACES = (0, 2, 4, 6, 7)  # of the linear layers among the head's, whose others drop out


class Config(NetworkConfig):
    """Options of the judge `aesthetic`; `path` is CLIP's."""

    head: str  # the head's file


class Aesthetic(Judge):
    """See the module."""

    def __init__(self, options: Config, device: str | None) -> None:
        from gesso.evals.judging import open_judge

        told = options.model_dump(exclude={"head"})
        self.clip = open_judge({"name": "clip", **told}, device)
        file = Path(options.head)
        self.head = load_head(file)
        self.batch_size = options.batch_size
        self.abilities = ABILITIES
        self.name = f"aesthetic:{file.stem}"
        self.versions = self.clip.versions
        self.fingerprint = fingerprint(
            self.clip.fingerprint, file_digest(file), source_digest(__name__)
        )

    @torch.no_grad()
    def score(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        """About 1 to 10; the prompt does not matter."""
        features = torch.from_numpy(self.clip.embed(images))
        width = self.head[0].in_features
        if features.shape[1] != width:
            raise GessoError(
                f"The aesthetic head takes {width} features and {self.clip.name} gives "
                f"{features.shape[1]}: take the CLIP that it was trained on, ViT-L/14."
            )
        return self.head(features)[:, 0].tolist()


def load_head(file: Path) -> Any:
    """The head, from tensors `layers.<place>.weight` and `.bias`; nothing pickled is run.

    Raises:
        GessoError: no such file, or not such a head.
    """
    if not file.is_file():
        raise GessoError(
            f"There is no aesthetic head {str(file)!r}: give sac+logos+ava1-l14-linearMSE.pth as "
            "--judge aesthetic:path=CLIP,head=FILE."
        )
    try:
        tensors: dict[str, Tensor] = (
            read_safetensors(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
        inputs = tensors["layers.0.weight"].shape[1]
        layers = []
        for place, width in zip(PLACES, WIDTHS, strict=True):
            layer = nn.Linear(inputs, width)
            layer.load_state_dict(
                {key: tensors[f"layers.{place}.{key}"] for key in ("weight", "bias")}
            )
            layers.append(layer)
            inputs = width
    except (RuntimeError, KeyError, pickle.UnpicklingError, AttributeError, TypeError) as e:
        raise GessoError(
            f"{str(file)!r} is no aesthetic head ({(str(e).splitlines() or [''])[0]}): give "
            "sac+logos+ava1-l14-linearMSE.pth."
        ) from None
    return nn.Sequential(*layers).float().requires_grad_(False).eval()


def build(options: Config, device: str | None) -> Aesthetic:
    """The judge.

    Raises:
        GessoError: weights that are absent or of another kind, or a device that is not there.
    """
    return Aesthetic(options, device)
