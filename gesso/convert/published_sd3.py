"""Published Stable Diffusion 3 and 3.5 weights as a gesso model: their files, and their parts.

A diffusers folder has everything: the transformer, the autoencoder, and three text encoders, of
which T5 may be left out. A lone transformer or a single file of the authors needs a folder beside
it for the autoencoder and the text encoders.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gesso.config import DiffusionConfig, SampleConfig, Spec
from gesso.convert import checkpoint, hub
from gesso.convert.checkpoint import WEIGHT_SUFFIXES, read_json
from gesso.convert.families import name_family
from gesso.convert.network import Network
from gesso.convert.parts import PublishedParts
from gesso.convert.sd3_network import FAMILY, read_network
from gesso.model import Description
from gesso.types import GessoError

PIPELINE, TRANSFORMER = "StableDiffusion3Pipeline", "SD3Transformer2DModel"
SCHEDULER = "FlowMatchEulerDiscreteScheduler"
TEXT = ("text_encoder", "text_encoder_2", "text_encoder_3")  # CLIP-L, CLIP-G, T5
CLIP_TOKENS, T5_TOKENS = 77, 256
STEPS, GUIDANCE = 28, 7.0  # diffusers' defaults
SHIFT = 3.0  # of the published schedulers


@dataclass
class PublishedSD3(PublishedParts):
    """Files of published weights, found but not read.

    Attributes:
        source: as the user wrote it.
        files: of the transformer; shards of one checkpoint.
        transformer_config: diffusers' config of it, None for the authors' files.
        scheduler: diffusers' config of the scheduler, {} without one.
        vae: the autoencoder's folder; None where there is none.
        text: the folder with `TEXT` and their tokenizers; None where there is none.
    """

    source: str
    files: list[Path]
    transformer_config: Mapping[str, Any] | None = None
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    vae: Path | None = None
    text: Path | None = None
    _description: Description | None = None

    def weight_files(self) -> dict[str, list[Path]]:
        """The files of weights of each part, by the names that `Model.parts` uses."""
        text = [] if self.text is None else [self.text / name for name in TEXT]
        return {
            "backbone": self.files,
            "image_encoder": checkpoint.weight_files(self.vae) if self.vae else [],
            "text_encoder": [f for p in text if p.is_dir() for f in checkpoint.weight_files(p)],
        }

    def network(self, dtype: torch.dtype | None = None) -> Network:
        """Read the transformer; see `gesso.convert.sd3_network.read_network`."""
        return read_network(self.files, self.transformer_config, dtype)

    def text_encoders(self, description: Description) -> list[Spec]:
        """The specs of the encoders that are joined, but those that are left out."""
        groups = (description.text_encoder or {})["encoders"]
        return [spec for group in groups for spec in group if spec["name"] != "silent"]

    def describe(self, network: Network) -> Description:
        """What a gesso model of this network and these encoders says in its `gesso.json`.

        Raises:
            GessoError: an autoencoder of other channels, or a scheduler of another kind.
        """
        config, factor = network.config, 8
        if self.vae is not None:
            values = read_json(self.vae / "config.json")
            channels = values.get("latent_channels", config.in_channels)
            if channels != config.in_channels:
                raise GessoError(
                    f"The autoencoder {self.vae} has {channels} latent channels, but"
                    f" {network.where} takes {config.in_channels}: give another with vae=..."
                    " (--vae)."
                )
            factor = 2 ** (len(values.get("block_out_channels", [0] * 4)) - 1)
        name, dynamic = (self.scheduler.get(k) for k in ("_class_name", "use_dynamic_shifting"))
        if name not in (None, SCHEDULER) or dynamic:
            what = f"a {name}" if not dynamic else "a shift that depends on the picture's length"
            raise GessoError(
                f"{self.source} samples with {what}, Stable Diffusion 3 with {SCHEDULER} and one"
                " shift: gesso cannot paint with it."
            )
        side = config.base_size * config.patch_size * factor
        return Description(
            name=Path(self.source).name,
            fingerprint=network.fingerprint,
            image_encoder={"name": "kl", "path": _anywhere(self.vae)},
            text_encoder={"name": "joined", "encoders": self._text(config.text_dim)},
            backbone={"name": "mmdit", **config.model_dump()},
            diffusion=DiffusionConfig(
                path="flow",
                prediction="flow",
                timesteps="logit_normal",
                shift=self.scheduler.get("shift", SHIFT),
            ),
            sample=SampleConfig(
                sampler="euler",
                spacing="sd3",
                num_inference_steps=STEPS,
                guidance_scale=GUIDANCE,
                height=side,
                width=side,
            ),
        )

    def _text(self, width: int) -> list[list[Spec]]:
        """CLIP-L beside CLIP-G, then T5 or the silence in its place."""
        folder = self.text or Path()
        clip, clip_2, t5 = (
            {
                "path": _anywhere(folder / name),
                "tokenizer": _anywhere(folder / name.replace("text_encoder", "tokenizer")),
            }
            for name in TEXT
        )
        last = {"name": "t5", **t5, "max_tokens": T5_TOKENS, "padding": "max"}
        if self.text is not None and not (folder / TEXT[2]).is_dir():
            last = {"name": "silent", "width": width, "max_tokens": T5_TOKENS}
        clips = [{"name": "clip", **c, "max_tokens": CLIP_TOKENS} for c in (clip, clip_2)]
        return [clips, [last]]

    def check_encoders(self, parts: Collection[str]) -> None:
        """Say which argument gives an encoder that is wanted and has no files."""
        files = self.weight_files()
        if "image_encoder" in parts and not files["image_encoder"]:
            raise GessoError(
                f"{self.source} comes without an autoencoder: give a folder or hub id with vae=..."
                " (--vae)."
            )
        if "text_encoder" not in parts:
            return
        for name in TEXT[:2]:
            if self.text is None or not checkpoint.weight_files(self.text / name):
                raise GessoError(
                    f"{self.source} comes without {name}: give a Stable Diffusion 3 folder or hub"
                    " id that has it with text_encoder=... (--text-encoder)."
                )


def recognise(path: Path) -> bool:
    """Whether a file or folder holds Stable Diffusion 3, by its names alone."""
    if path.is_file():
        if path.suffix not in WEIGHT_SUFFIXES:
            return False
        return name_family(checkpoint.read([path]).tensors) == FAMILY
    index, config = path / "model_index.json", path / "config.json"
    if index.is_file():
        return read_json(index).get("_class_name") == PIPELINE
    return config.is_file() and read_json(config).get("_class_name") == TRANSFORMER


def find(
    source: str,
    path: Path,
    *,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
) -> PublishedSD3:
    """The files of published weights in a file or folder that `recognise` knows.

    Raises:
        GessoError: an incomplete download, or encoders that are not there.
    """
    found = PublishedSD3(source, [path])
    if path.is_dir():
        root, path = path, path / "transformer"
        if not path.is_dir():
            root, path = path, root
        else:
            found.text = root if (root / TEXT[0]).is_dir() else None
            found.vae = root / "vae" if (root / "vae").is_dir() else None
            scheduler = root / "scheduler" / "scheduler_config.json"
            found.scheduler = read_json(scheduler) if scheduler.is_file() else {}
        found.transformer_config = read_json(path / "config.json")
        found.files = checkpoint.weight_files(path)
        if not found.files:
            raise GessoError(f"{path} is half-downloaded: it has no weights; download it again.")
    if vae is not None:
        given = hub.resolve(vae, parts=["vae"])
        found.vae = given / "vae" if (given / "vae").is_dir() else given
    if text_encoder is not None:
        parts = [*TEXT, *(name.replace("text_encoder", "tokenizer") for name in TEXT)]
        found.text = hub.resolve(text_encoder, parts=parts)
    return found


def _anywhere(folder: Path | None) -> str:
    """A path that holds in every working folder, as it may be saved with a model."""
    return "" if folder is None else str(folder.absolute())
