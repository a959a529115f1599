"""CLIP and SigLIP of transformers: how well texts fit a picture, and features of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from gesso.evals.networks import Network, NetworkConfig, in_batches, quiet, same_pictures
from gesso.evals.types import Image, Judge

ABILITIES = ("similarity", "embed", "features", "text_similarity")
ARCHITECTURES = ("CLIPModel", "SiglipModel", "Siglip2Model", "ChineseCLIPModel", "AltCLIPModel")


class Config(NetworkConfig):
    """Options of the judge `clip`."""

    batch_size: int = 32


class CLIP(Judge):
    """See the module. A text that is too long for the network loses its end."""

    def __init__(self, options: Config, device: str | None) -> None:
        from transformers import AutoModel

        kinds: dict[str, Any] = dict.fromkeys(ARCHITECTURES, AutoModel)
        self.net = Network(__name__, kinds, options, device)
        self.batch_size = options.batch_size
        self.abilities = ABILITIES
        self.name = f"clip:{options.path}"
        self.fingerprint, self.versions = self.net.fingerprint, self.net.versions
        self.padding = "max_length" if "Siglip" in self.net.architecture else True
        self.positions = int(self.net.config.text_config.max_position_embeddings)

    def similarity(
        self, images: Sequence[Image], texts: Sequence[tuple[tuple[str, ...], ...]]
    ) -> list[list[float]]:
        """Cosines of each picture with each of its texts; of several wordings, with their mean."""
        seen = self._unit_images(images)  # [B, D]
        at, said = self._unit_texts([wordings for some in texts for wordings in some])
        ensembles = {
            wordings: F.normalize(said[[at[w] for w in wordings]].mean(0), dim=-1)
            for some in texts
            for wordings in some
        }
        return [
            [float(ensembles[wordings] @ one) for wordings in some]
            for one, some in zip(seen, texts, strict=True)
        ]

    def embed(self, images: Sequence[Image]) -> np.ndarray:
        """[B, D] float32 features of length one."""
        return self._unit_images(images).numpy()

    def features(self, images: Sequence[Image]) -> np.ndarray:
        """The same: CMMD is defined on features of length one."""
        return self.embed(images)

    def text_similarity(
        self, texts: Sequence[str], candidates: Sequence[tuple[str, ...]]
    ) -> list[list[float]]:
        """Cosines of each text with each of its candidates."""
        names, said = self._unit_texts([(t, *c) for t, c in zip(texts, candidates, strict=True)])
        return [
            (said[[names[c] for c in some]] @ said[names[text]]).tolist()
            for text, some in zip(texts, candidates, strict=True)
        ]

    @torch.no_grad()
    def _unit_images(self, images: Sequence[Image]) -> Tensor:
        """[B, D] float32; equal pictures go through the network once."""
        unique, place = same_pictures(images)

        def run(some: list[int]) -> list[Tensor]:
            with quiet():
                batch = self.net.processor.image_processor(
                    [images[unique[i]] for i in some], return_tensors="pt"
                )
            out = self.net.model.get_image_features(**self.net.to(batch))
            return list(F.normalize(features(out).float(), dim=-1).cpu())

        return torch.stack(in_batches(run, [0] * len(unique), self.batch_size))[place]

    @torch.no_grad()
    def _unit_texts(self, texts: Sequence[tuple[str, ...]]) -> tuple[dict[str, int], Tensor]:
        """Row of each distinct text, and the rows [T, D] float32."""
        distinct = sorted({text for some in texts for text in some})

        def run(some: list[int]) -> list[Tensor]:
            batch = self.net.processor.tokenizer(
                [distinct[i] for i in some],
                padding=self.padding,
                truncation=True,
                max_length=self.positions,
                return_tensors="pt",
            )
            out = self.net.model.get_text_features(**self.net.to(batch))
            return list(F.normalize(features(out).float(), dim=-1).cpu())

        rows = torch.stack(in_batches(run, [0] * len(distinct), 4 * self.batch_size))
        return {text: i for i, text in enumerate(distinct)}, rows


def features(out: Any) -> Tensor:
    """[B, D] of what `get_*_features` returns: a tensor, or an output with `pooler_output`."""
    return out if isinstance(out, Tensor) else out.pooler_output


def build(options: Config, device: str | None) -> CLIP:
    """The judge.

    Raises:
        GessoError: weights that are absent or of another kind, or a device that is not there.
    """
    return CLIP(options, device)
