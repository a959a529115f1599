"""A model: backbone, encoders, diffusion and generation contract, and the folder they live in.

A checkpoint folder is self-contained and holds no code and no pickle:
    model.safetensors   the trained weights (EMA), keys `backbone.*`, `text_encoder.*`, ...
    gesso.json          what to build, the encoders' fingerprints, the generation contract
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from gesso.adapters.lora import merged
from gesso.config import (
    Config,
    DiffusionConfig,
    Recipe,
    SampleConfig,
    Spec,
    build,
    module,
    resolve,
    validate,
)
from gesso.diffusion.denoiser import Denoiser
from gesso.diffusion.paths import Path as NoisePath
from gesso.diffusion.paths import make_path
from gesso.memory import give_back
from gesso.nn.init import WithoutWeights
from gesso.nn.quantize import Kind, quantize_blocks
from gesso.types import GessoError

if TYPE_CHECKING:
    from collections.abc import Iterable

WEIGHTS = "model.safetensors"
DESCRIPTION = "gesso.json"
STAGES = "stages.json"  # in the folder of a run of several stages
FORMAT = 1
PARTS = frozenset({"image_encoder", "text_encoder", "backbone"})


class Description(Config):
    """`gesso.json`: everything but the weights."""

    format: int = FORMAT
    gesso: str = installed("gesso")
    name: str
    step: int = 0
    fingerprint: str = ""
    image_encoder: Spec
    text_encoder: Spec | None = None
    backbone: Spec | None = None
    encoder_fingerprints: dict[str, str] = Field(default_factory=dict)
    adapter: Spec | None = None  # that stays on the backbone, such as a control branch
    diffusion: DiffusionConfig | None  # None: the backbone generates a tokenizer's codes
    sample: SampleConfig


@dataclass
class Model:
    """The parts of a text-to-image model, built and on one device.

    Attributes:
        description: what `gesso.json` says.
        image_encoder, text_encoder, backbone: the modules; the last two are None while an image
            encoder is being trained on its own, and any that was not loaded is.
    """

    description: Description
    image_encoder: Any = None
    text_encoder: Any = None
    backbone: Any = None

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Model:
        """Build freshly initialised parts; the draw is fixed by `recipe.seed`.

        Raises:
            GessoError: an unknown part or option.
        """
        description = Description(
            name=recipe.name,
            image_encoder=recipe.image_encoder,
            text_encoder=recipe.text_encoder,
            backbone=recipe.backbone,
            diffusion=recipe.diffusion,
            sample=recipe.sample,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            return cls.build(description)

    @classmethod
    def build(
        cls,
        description: Description,
        *,
        parts: Collection[str] = PARTS,
        backbone: nn.Module | None = None,
    ) -> Model:
        """Build the parts that a description names.

        Args:
            description: what to build; options that it leaves out are written into a copy.
            parts: only these modules; the others are None.
            backbone: the backbone, where it has been built already.

        Raises:
            GessoError: an unknown part or option.
        """
        d = description.model_copy()
        image_encoder = text_encoder = None
        if "image_encoder" in parts:
            d.image_encoder = _complete("encoders.image", d.image_encoder)
            image_encoder = build("encoders.image", d.image_encoder)
        if d.text_encoder is not None and "text_encoder" in parts:
            d.text_encoder = _complete("encoders.text", d.text_encoder)
            text_encoder = build("encoders.text", d.text_encoder)
        if d.backbone is not None and "backbone" in parts:
            d.backbone = complete_backbone(d.backbone, image_encoder, text_encoder)
            backbone = backbone or _backbone(d)
        if d.backbone is not None and isinstance(image_encoder, nn.Module):
            image_encoder.requires_grad_(False)
        if backbone is not None and image_encoder is not None:
            check_kind(d, backbone, image_encoder)
        model = cls(d, image_encoder, text_encoder, backbone)
        model.description.encoder_fingerprints = {
            name: part.fingerprint()  # type: ignore[operator]
            for name, part in model.parts().items()
            if name not in model.stored()
        }
        return model

    @property
    def name(self) -> str:
        return self.description.name

    @property
    def sample(self) -> SampleConfig:
        """The generation contract."""
        return self.description.sample

    @sample.setter
    def sample(self, contract: SampleConfig) -> None:
        self.description.sample = contract

    @property
    def coded(self) -> bool:
        """Whether the backbone generates codes, and does not denoise."""
        return self.description.backbone is not None and self.description.diffusion is None

    @property
    def diffusion(self) -> DiffusionConfig:
        """The diffusion that the backbone denoises.

        Raises:
            GessoError: it generates codes instead.
        """
        if self.description.diffusion is None:
            raise GessoError(
                f"{self.name} generates codes and has no noise path: this needs a diffusion model."
            )
        return self.description.diffusion

    @property
    def path(self) -> NoisePath:
        return make_path(self.diffusion)

    def path_at(self, height: int, width: int) -> NoisePath:
        """The path of pictures of a size in pixels, which `diffusion.shift_base` may depend on."""
        return make_path(self.diffusion, height * width)

    def denoiser(self) -> Denoiser:
        """The backbone as a denoiser on its path."""
        return Denoiser(self.backbone, self.path, self.diffusion.prediction)

    def attach(self, adapter: Spec) -> None:
        """Attach an adapter to the backbone, see `gesso.adapters`; one that stays is described.

        Raises:
            GessoError: an unknown adapter or option, or one that does not fit the backbone.
        """
        found, options = resolve("adapters", adapter)
        found.attach(options, self.backbone)
        if found.STAYS:
            self.description.adapter = _complete("adapters", adapter)

    def parts(self) -> dict[str, nn.Module]:
        """The modules by name."""
        named = {
            "image_encoder": self.image_encoder,
            "text_encoder": self.text_encoder,
            "backbone": self.backbone,
        }
        return {name: part for name, part in named.items() if part is not None}

    def trained(self) -> dict[str, nn.Module]:
        """The parts that are trained."""
        if self.description.backbone is None:
            return {"image_encoder": self.image_encoder}
        trained = {} if self.backbone is None else {"backbone": self.backbone}
        if self.text_encoder is not None and self.text_encoder.trainable:
            trained["text_encoder"] = self.text_encoder
        return trained

    def stored(self) -> dict[str, nn.Module]:
        """The parts whose weights lie in the model's folder: those that are trained, and an image
        encoder that names no weights, as it was trained before; others are named, not stored."""
        stored = self.trained()
        named = self.description.image_encoder.get("weights", "its own") is not None
        if self.image_encoder is not None and not named:
            stored["image_encoder"] = self.image_encoder
        return stored

    def to(self, device: torch.device | str) -> Model:
        """Move every part to a device."""
        for part in self.parts().values():
            part.to(device)
        return self

    @property
    def device(self) -> torch.device:
        return next(p.device for part in self.parts().values() for p in part.parameters())

    def quantizable(self, kind: Kind) -> dict[str, nn.Module]:
        """The loaded parts that `quantize` makes smaller: the backbone, and with int8 a frozen
        text encoder, too (bfloat16 ones are loaded as such, by their own option)."""
        found = {} if self.backbone is None else {"backbone": self.backbone}
        frozen = self.text_encoder is not None and not self.text_encoder.trainable
        if kind == "int8" and frozen:
            found["text_encoder"] = self.text_encoder
        return found

    def quantize(self, kind: Kind) -> None:
        """Make weights smaller for inference, see `gesso.nn.quantize`; in place, for good.

        Raises:
            GessoError: int8 without torchao, or a network without blocks.
        """
        for part in self.quantizable(kind).values():
            quantize_blocks(part, kind)
        give_back()
        if kind == "bfloat16":
            self.sample.dtype = "bfloat16"

    def state(self) -> dict[str, Tensor]:
        """The stored parts' tensors, keys `part.tensor`; a LoRA in training is in the weights."""
        return {
            f"{name}.{key}": value
            for name, part in self.stored().items()
            for key, value in merged(part).items()
        }

    def load_state(self, state: Mapping[str, Tensor], where: str, *, assign: bool = False) -> None:
        """Load tensors strictly.

        Args:
            state: keys as `state()` gives them.
            where: the file's name, for messages.
            assign: the tensors become the parameters, instead of being copied into them.

        Raises:
            GessoError: a tensor is missing, left over or of another shape (names the first few).
        """
        own = self.state()
        problems = [
            ("lacks", sorted(own.keys() - state.keys())),
            ("has the unknown", sorted(state.keys() - own.keys())),
        ]
        for what, keys in problems:
            if keys:
                raise GessoError(
                    f"{where} {what} tensors {_first(keys)}: it does not fit its {DESCRIPTION}."
                )
        for key, value in state.items():
            if value.shape != own[key].shape:
                raise GessoError(
                    f"{where}: {key} has shape {tuple(value.shape)} where the model has "
                    f"{tuple(own[key].shape)}: it does not fit its {DESCRIPTION}."
                )
        for name, part in self.stored().items():
            cut = len(name) + 1
            own_part = {k[cut:]: v for k, v in state.items() if k[:cut] == f"{name}."}
            part.load_state_dict(own_part, assign=assign)

    def save(
        self,
        folder: Path,
        state: Mapping[str, Tensor] | None = None,
        *,
        step: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Write `model.safetensors` and `gesso.json` into an existing folder.

        Args:
            folder: existing folder; atomicity of the whole is the caller's.
            state: tensors to write instead of the modules' own (the EMA weights).
            step: recorded in the description.
            dtype: of floating tensors on disk; None keeps theirs.
        """
        tensors = {
            k: (v.to(dtype) if dtype is not None and v.is_floating_point() else v)
            .detach()
            .cpu()
            .contiguous()
            for k, v in (state or self.state()).items()
        }
        described = self.description.model_copy(
            update={"step": step, "fingerprint": fingerprint(tensors), "gesso": installed("gesso")}
        )
        save_file(tensors, folder / WEIGHTS)
        (folder / DESCRIPTION).write_text(json.dumps(described.model_dump(), indent=2) + "\n")

    @classmethod
    def load(
        cls,
        folder: Path,
        parts: Collection[str] = PARTS,
        dtype: torch.dtype = torch.float32,
    ) -> Model:
        """Load a checkpoint folder.

        Weights that the file holds in the wanted dtype are mapped, not copied: they take no memory
        of their own until they are written to.

        Args:
            folder: with `model.safetensors` and `gesso.json`.
            parts: only these modules; the others are None.
            dtype: of the backbone's weights; everything else is float32.

        Raises:
            GessoError: a file is missing, truncated or does not fit, or a frozen encoder is not
                the one that the model was trained with.
        """
        description = read_description(folder)
        if description.backbone is None:
            parts = PARTS
        left_out = PARTS - set(parts)
        state = read_tensors(folder / WEIGHTS, lambda key: key.partition(".")[0] not in left_out)
        state = {key: _cast(key, value, dtype) for key, value in state.items()}
        backbone = None
        if description.backbone is not None and "backbone" in parts:
            with WithoutWeights():
                backbone = _backbone(description)
        expected = dict(description.encoder_fingerprints)
        model = cls.build(description, parts=parts, backbone=backbone)
        for name, found in model.description.encoder_fingerprints.items():
            if name in expected and expected[name] != found:
                raise GessoError(
                    f"{folder} was trained with another {name} ({expected[name]}) than the one "
                    f"found here ({found}): restore that encoder's files."
                )
        model.description.encoder_fingerprints |= expected
        model.load_state(state, str(folder / WEIGHTS), assign=True)
        return model


def checkpoint_in(folder: Path) -> Path | None:
    """The checkpoint that a folder means: itself, or a run's newest; None if it is neither.

    A run of several stages means its last one that has a checkpoint.

    Raises:
        GessoError: a run without a checkpoint yet.
    """
    if (folder / DESCRIPTION).is_file():
        return folder
    if (folder / "recipe.yaml").is_file():
        found = sorted((folder / "checkpoints").glob(f"step-*/{DESCRIPTION}"))
    elif (folder / STAGES).is_file():
        places = sorted(folder.glob("*-*/recipe.yaml"), key=lambda p: _number(p.parent))
        glob = f"checkpoints/step-*/{DESCRIPTION}"
        found = [file for place in places for file in sorted(place.parent.glob(glob))]
    else:
        return None
    if not found:
        raise GessoError(f"The run {folder} has no checkpoint yet: let it reach one.")
    return found[-1].parent


def _number(stage: Path) -> int:
    """i of a stage's folder i-NAME."""
    number = stage.name.partition("-")[0]
    return int(number) if number.isdigit() else 0


def read_description(folder: Path) -> Description:
    """Read and check `gesso.json`.

    Raises:
        GessoError: no such file, broken JSON, an unknown key or a newer format.
    """
    file = folder / DESCRIPTION
    if not file.is_file():
        raise GessoError(f"{folder} is not a gesso model: it has no {DESCRIPTION}.")
    try:
        values = json.loads(file.read_text())
    except ValueError as e:
        raise GessoError(f"{file} is not readable JSON: {e}.") from None
    if not isinstance(values, dict):
        raise GessoError(f"{file} is not a description of a model: it holds no keys.")
    if values.get("format", FORMAT) > FORMAT:
        raise GessoError(f"{file} was written by a newer gesso: upgrade gesso to load it.")
    return validate(Description, values, str(file))


def read_tensors(file: Path, wanted: Callable[[str], bool] | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        file: path.
        wanted: told a key, whether to read it; default: every one.

    Raises:
        GessoError: the file is missing, truncated or no safetensors file.
    """
    if not file.is_file():
        raise GessoError(f"{file} is missing: the model folder is incomplete.")
    try:
        with safe_open(file, framework="pt") as f:
            keys = [key for key in f.keys() if wanted is None or wanted(key)]  # noqa: SIM118
            return {key: f.get_tensor(key) for key in keys}
    except (SafetensorError, OSError) as e:
        raise GessoError(
            f"{file} is truncated or not a safetensors file ({e}): copy or save it again."
        ) from None


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """16 hex digits over names, shapes, dtypes and bytes."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        value = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def check_kind(description: Description, backbone: Any, image_encoder: Any) -> None:
    """Refuse a denoiser without a diffusion, a generator of codes with one, and one whose
    tokenizer is another than it was made for."""
    coded, name = hasattr(backbone, "groups"), (description.backbone or {})["name"]
    if coded != (description.diffusion is None):
        does = "generates codes" if coded else "denoises"
        wanted = "to null" if coded else "to a noise path, such as {path: flow, prediction: flow}"
        raise GessoError(f"The backbone {name} {does}: set diffusion {wanted}.")
    if coded:
        backbone.check(image_encoder)


def _cast(key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """The backbone's tensors in a dtype, others in float32, whole numbers as they are."""
    if not value.is_floating_point():
        return value
    return value.to(dtype if key.startswith("backbone.") else torch.float32)


def complete_backbone(backbone: Spec, image_encoder: Any, text_encoder: Any) -> Spec:
    """A backbone's options in full; widths that follow from the encoders need not be written."""
    sizes = {
        "in_channels": getattr(image_encoder, "channels", None),
        "vocabulary": getattr(image_encoder, "vocabulary", None),
        "scales": getattr(image_encoder, "scales", None),
        "text_dim": getattr(text_encoder, "dim", None),
        "pooled_dim": getattr(text_encoder, "pooled_dim", None),
        "num_classes": getattr(text_encoder, "num_classes", None),
    }
    options = module("backbones", backbone["name"]).Config.model_fields
    implied = {k: v for k, v in sizes.items() if v is not None and k in options}
    return _complete("backbones", implied | backbone)


def _backbone(description: Description) -> Any:
    """The backbone with its adapter."""
    assert description.backbone is not None
    backbone = build("backbones", description.backbone)
    if description.adapter is not None:
        found, options = resolve("adapters", description.adapter)
        found.attach(options, backbone)
    return backbone


def _complete(kind: str, spec: Spec) -> Spec:
    """The spec with every default written out, so that later defaults cannot change a model."""
    _, options = resolve(kind, spec)
    return {"name": spec["name"], **options.model_dump(mode="json")}


def _first(keys: Iterable[str], most: int = 4) -> str:
    keys = list(keys)
    more = f" and {len(keys) - most} more" if len(keys) > most else ""
    return ", ".join(keys[:most]) + more
