"""Published weights as a gesso model: finding their files, and putting the parts together.

found = find("PixArt-alpha/PixArt-XL-2-1024-MS")    # or a folder, or a file
model = found.load()
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from gesso.config import DiffusionConfig, SampleConfig, Spec
from gesso.convert import checkpoint, hub, pixart, published_sd3, variants
from gesso.convert.checkpoint import WEIGHT_SUFFIXES, read_json
from gesso.convert.network import Network, read_network, read_pixart, with_branch
from gesso.convert.parts import PublishedParts
from gesso.convert.published_sd3 import PublishedSD3
from gesso.model import Description
from gesso.types import GessoError

PIPELINES: dict[str, pixart.Family] = {
    "PixArtAlphaPipeline": "alpha",
    "PixArtSigmaPipeline": "sigma",
}
SCALING: dict[pixart.Family, float] = {"alpha": 0.18215, "sigma": 0.13025}  # SD's VAE, SDXL's
TRANSFORMERS = ("PixArtTransformer2DModel", "Transformer2DModel")


@dataclass
class Published(PublishedParts):
    """Files of published weights, found but not read.

    Attributes:
        source: as the user wrote it.
        files: of the transformer; shards of one checkpoint.
        root: the folder of the pipeline, None for lone weights.
        hints: what is known besides the tensors.
        scheduler: diffusers' config of the scheduler, {} without one.
        vae, text_encoder: folders; None where there is none.
        tokenizer: folder, None where there is none.
        clean: how captions are cleaned (`gesso.encoders.text.t5`); None: the family's default.
        controlnet: file or folder of a control branch for the transformer, or None.
    """

    source: str
    files: list[Path]
    root: Path | None = None
    hints: variants.Hints = field(default_factory=variants.Hints)
    scheduler: Mapping[str, Any] = field(default_factory=dict)
    vae: Path | None = None
    text_encoder: Path | None = None
    tokenizer: Path | None = None
    clean: str | None = None
    controlnet: Path | None = None
    _description: Description | None = None

    def weight_files(self) -> dict[str, list[Path]]:
        """The files of weights of each part, by the names that `Model.parts` uses."""
        found = {"backbone": self.files}
        for name, folder in (("image_encoder", self.vae), ("text_encoder", self.text_encoder)):
            found[name] = checkpoint.weight_files(folder) if folder else []
        return found

    @property
    def transformer_config(self) -> Mapping[str, Any] | None:
        """diffusers' config of the transformer, None without one."""
        return self.hints.transformer

    def network(self, dtype: torch.dtype | None = None) -> Network:
        """Read the transformer.

        Args:
            dtype: of its tensors; None keeps the files'.

        Raises:
            GessoError: unreadable, of another family, or not told apart by its tensors.
        """
        network = read_network(self.files, self.hints, dtype)
        return network if self.controlnet is None else with_branch(network, self.controlnet)

    def text_encoders(self, description: Description) -> list[Spec]:
        """The spec of T5."""
        return [] if description.text_encoder is None else [description.text_encoder]

    def describe(self, network: Network) -> Description:
        """What a gesso model of this network and these encoders says in its `gesso.json`.

        Raises:
            GessoError: nothing tells whether the network is of alpha or of Sigma.
        """
        family = variants.need_family(network.family, network.config, network.where)
        self._check_widths(network, family)
        config, factor = network.config, 8
        if self.vae is not None:
            blocks = read_json(self.vae / "config.json").get("block_out_channels", [])
            factor = 2 ** (len(blocks) - 1) if blocks else factor
        text = self.text_encoder
        text_spec = {
            "name": "t5",
            "path": _anywhere(text),
            "tokenizer": _anywhere(self.tokenizer or text),
            "max_tokens": variants.MAX_TOKENS[family],
            "clean": self.clean or _cleaning(network.format, family),
        }
        return Description(
            name=Path(self.source).name,
            fingerprint=network.fingerprint,
            image_encoder={"name": "kl", "path": _anywhere(self.vae)},
            text_encoder=text_spec,
            backbone={"name": "pixart", **config.model_dump()},
            adapter=network.adapter,
            diffusion=DiffusionConfig(),
            sample=self._contract(network, config.base_size * config.patch_size * factor),
        )

    def check_encoders(self, parts: Collection[str]) -> None:
        """Say which argument gives an encoder that is wanted and has no files."""
        for part, what, argument, flag, folder in (
            ("image_encoder", "autoencoder", "vae", "--vae", self.vae),
            ("text_encoder", "text encoder", "text_encoder", "--text-encoder", self.text_encoder),
        ):
            if part not in parts:
                continue
            if folder is None:
                raise GessoError(
                    f"{self.source} comes without {_a(what)}: give a folder or hub id with"
                    f" {argument}=... ({flag})."
                )
            if not checkpoint.weight_files(folder):
                raise GessoError(
                    f"{folder} holds no weights of {_a(what)}: complete the download, or give"
                    f" another with {argument}=... ({flag})."
                )
        words = self.tokenizer or self.text_encoder
        if "text_encoder" in parts and words is not None and not _has_tokenizer(words):
            raise GessoError(
                f"There is no tokenizer beside the text encoder {self.text_encoder}: give a folder"
                " that has both with text_encoder=... (--text-encoder)."
            )

    def _check_widths(self, network: Network, family: pixart.Family) -> None:
        """Refuse encoders of another width; warn of an autoencoder that scales as no PixArt's."""
        config = network.config
        if self.text_encoder is not None:
            width = read_json(self.text_encoder / "config.json").get("d_model", config.text_dim)
            if width != config.text_dim:
                raise GessoError(
                    f"The text encoder {self.text_encoder} is {width} wide, but {network.where}"
                    f" reads {config.text_dim}: give another with text_encoder=..."
                    " (--text-encoder)."
                )
        if self.vae is not None:
            values = read_json(self.vae / "config.json")
            channels = values.get("latent_channels", config.in_channels)
            if channels != config.in_channels:
                raise GessoError(
                    f"The autoencoder {self.vae} has {channels} latent channels, but"
                    f" {network.where} takes {config.in_channels}: give another with vae=..."
                    " (--vae)."
                )
            scale = values.get("scaling_factor", SCALING[family])
            if scale != SCALING[family]:
                warnings.warn(
                    f"The autoencoder {self.vae} scales latents by {scale}, PixArt-{family}'s by"
                    f" {SCALING[family]}: unless the model was tuned to it, give another.",
                    stacklevel=4,
                )

    def _contract(self, network: Network, side: int) -> SampleConfig:
        """The defaults of the software that the files belong to: the authors' or diffusers'."""
        contract = SampleConfig(height=side, width=side)
        if side in (256, 512, 1024, 2048):
            contract.bucket_size = side
        if network.format == "original":
            contract.spacing, contract.final = "continuous", "sigma_min"
            if network.config.null_tokens:
                contract.null = "learned"
        elif contract.bucket_size is not None:
            contract.use_resolution_binning = True
        distilled = _distilled(self.source, self.scheduler)
        if distilled is not None:
            contract.final, contract.guidance_scale = "zero", 1.0
        if distilled == "lcm":
            contract.sampler, contract.spacing, contract.num_inference_steps = "lcm", "lcm", 4
        elif distilled == "dmd":
            contract.sampler, contract.spacing = "one_step", "linspace"
            contract.timesteps, contract.num_inference_steps = (400.0,), 1
        elif self.scheduler.get("final_sigmas_type") == "sigma_min":
            contract.final = "sigma_min"
        return contract


def find(
    source: str | Path,
    *,
    variant: str | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    clean: str | None = None,
    controlnet: str | Path | None = None,
) -> Published | PublishedSD3:
    """The files of published weights, of PixArt or of Stable Diffusion 3.

    Args:
        source: a weight file, a diffusers folder (pipeline or transformer alone), a hub id, or
            ORG/NAME/FILE for one file of a hub repository. What lies in the hub's cache needs no
            network.
        variant: a name of `gesso.backbones.pixart.SIZES`, where the tensors cannot tell.
        vae, text_encoder: folder or hub id, of a part or of a pipeline that has it; takes the
            place of the source's own.
        clean: none, lower or alpha; default: as the software that the files belong to.
        controlnet: file or folder of a control branch for a PixArt.

    Raises:
        GessoError: nothing there, a pipeline of another family, an incomplete download.
    """
    given = ("vae",) * bool(vae) + ("text_encoder", "tokenizer") * bool(text_encoder)
    path = hub.resolve(source, parts=[p for p in hub.PARTS if not p.startswith(given)])
    if published_sd3.recognise(path):
        of_pixart = {"variant": variant, "clean": clean, "controlnet": controlnet}
        if unused := [k for k, v in of_pixart.items() if v is not None]:
            raise GessoError(f"{source} is Stable Diffusion 3: leave out {', '.join(unused)}.")
        return published_sd3.find(str(source), path, vae=vae, text_encoder=text_encoder)
    found = Published(str(source), [], clean=clean)
    found.controlnet = None if controlnet is None else Path(controlnet)
    found.hints.variant = variant
    if path.is_file():
        found.files = [path]
    else:
        _look_into(path, found)
    if found.root is None:  # what it is matters more than what it lacks; only names are read
        read_pixart(found.files)
    if vae is not None:
        found.vae = _part(vae, "vae")
    if text_encoder is not None:
        found.text_encoder = _part(text_encoder, "text_encoder")
        found.tokenizer = _tokenizer_of(found.text_encoder)
    return found


def _look_into(folder: Path, found: Published) -> None:
    """Fill in what a folder holds: a pipeline, a transformer or one weight file."""
    index = folder / "model_index.json"
    if index.is_file() or (folder / "transformer").is_dir():
        found.root = folder
        name = read_json(index).get("_class_name", "") if index.is_file() else ""
        if name and name not in PIPELINES:
            raise GessoError(f"{folder} is a {name}: gesso loads PixArt and Stable Diffusion 3.")
        found.hints.family = PIPELINES.get(name)
        if (folder / "scheduler" / "scheduler_config.json").is_file():
            found.scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
            _check_noise(found.scheduler, folder)
        for part in ("vae", "text_encoder", "tokenizer"):
            if (folder / part).is_dir():
                setattr(found, part, folder / part)
        folder = folder / "transformer"
    if (folder / "config.json").is_file():
        found.hints.transformer = read_json(folder / "config.json")
        name = found.hints.transformer.get("_class_name", "")
        if name not in TRANSFORMERS:
            raise GessoError(f"{folder} is a {name or 'model without a class'}, not a PixArt.")
        found.files = checkpoint.weight_files(folder)
        if not found.files:
            raise GessoError(f"{folder} is half-downloaded: it has no weights; download it again.")
        return
    files = sorted(p for p in folder.glob("*") if p.suffix in WEIGHT_SUFFIXES)
    if found.root is not None:
        raise GessoError(f"{found.root} is half-downloaded: it has no transformer/config.json.")
    if len(files) != 1:
        what = f"{len(files)} weight files" if files else "no weights"
        raise GessoError(
            f"{folder} is neither a gesso model nor a diffusers pipeline, and holds {what}: name a"
            " file or another folder."
        )
    found.files = files


def _anywhere(folder: Path | None) -> str:
    """A path that holds in every working folder, as it may be saved with a model."""
    return "" if folder is None else str(folder.absolute())


def _check_noise(scheduler: Mapping[str, Any], folder: Path) -> None:
    """Refuse a scheduler with another noise than PixArt's."""
    ours = {
        "beta_schedule": "linear",
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "prediction_type": "epsilon",
        "num_train_timesteps": 1000,
    }
    for key, value in ours.items():
        if scheduler.get(key, value) != value:
            raise GessoError(
                f"{folder}: its scheduler has {key} {scheduler[key]}, PixArt's is {value}: gesso"
                " cannot paint with it."
            )


def _part(source: str | Path, name: str) -> Path:
    """The folder of an encoder that was named by itself or by a pipeline that has it."""
    path = hub.resolve(source, parts=[name, name.replace("text_encoder", "tokenizer")])
    if (path / name / "config.json").is_file():
        return path / name
    if (path / "config.json").is_file():
        return path
    raise GessoError(f"{source} holds no {name}: it has neither config.json nor {name}/.")


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / n).is_file() for n in ("tokenizer.json", "spiece.model"))


def _tokenizer_of(encoder: Path) -> Path | None:
    beside = encoder.parent / encoder.name.replace("text_encoder", "tokenizer")
    return next((p for p in (encoder, beside) if _has_tokenizer(p)), None)


def _distilled(source: str, scheduler: Mapping[str, Any]) -> Literal["lcm", "dmd"] | None:
    """Whether the weights are of PixArt-LCM or PixArt-DMD: no tensor tells, only a name does."""
    words = re.split(r"[^a-z0-9]+", Path(source).name.lower())
    if scheduler.get("_class_name") == "LCMScheduler" or "lcm" in words:
        return "lcm"
    return "dmd" if "dmd" in words else None


def _cleaning(format: pixart.Format, family: pixart.Family) -> str:
    """diffusers lower-cases every prompt, and so do the authors for alpha; Sigma reads it raw."""
    return "none" if format == "original" and family == "sigma" else "lower"


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
