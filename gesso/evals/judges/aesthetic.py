"""LAION's aesthetic predictor (improved, v2): a head on CLIP ViT-L/14's picture features.

Head: `sac+logos+ava1-l14-linearMSE.pth`, five linear layers without activations between.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gesso.evals.fingerprint import file_digest, fingerprint, source_digest
from gesso.evals.networks import NetworkConfig, linear_head, read_tensors
from gesso.evals.types import Image, Judge
from gesso.types import GessoError

ABILITIES = ("score",)


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
    wanted = "sac+logos+ava1-l14-linearMSE.pth"
    tensors = read_tensors(file, "an aesthetic head", wanted)
    try:
        return linear_head(tensors, "layers.").float().requires_grad_(False).eval()
    except (RuntimeError, KeyError) as e:
        raise GessoError(
            f"{str(file)!r} is no aesthetic head ({(str(e).splitlines() or [''])[0]}): give "
            f"{wanted}."
        ) from None


def build(options: Config, device: str | None) -> Aesthetic:
    """The judge.

    Raises:
        GessoError: weights that are absent or of another kind, or a device that is not there.
    """
    return Aesthetic(options, device)
