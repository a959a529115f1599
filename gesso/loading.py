"""Finding a model by name or path and loading it into a pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from gesso.config import nearest
from gesso.convert import hub
from gesso.convert import published as published_weights
from gesso.device import pick_device
from gesso.encoders._weights import locate
from gesso.encoders.pack import Pack
from gesso.memory import available_bytes, gib, total_bytes
from gesso.model import DESCRIPTION, PARTS, WEIGHTS, Model, checkpoint_in, read_description
from gesso.nn.quantize import Kind
from gesso.pipeline import Pipeline
from gesso.types import GessoError

ASSETS = Path(__file__).parent / "assets"
DEFAULT = "scenes"
WEIGHT_FILES = "*.safetensors"
ROOM = 0.9  # share of the free memory that a model may take


class Source(Protocol):
    """Where a model's parts come from; nothing is loaded before it is asked for."""

    def weight_files(self) -> Mapping[str, Sequence[Path]]:
        """The files that hold each part's weights, as far as they are known without a network."""

    def load(self, parts: Collection[str] = PARTS, dtype: str = "float32") -> Model:
        """The model with some of its parts."""


@dataclass
class Folder:
    """A checkpoint folder as a `Source`."""

    path: Path

    def weight_files(self) -> Mapping[str, Sequence[Path]]:
        described = read_description(self.path)
        files = {"backbone": [self.path / WEIGHTS]}
        for part, inside in (("image_encoder", "vae"), ("text_encoder", "text_encoder")):
            spec = getattr(described, part) or {}
            files[part] = []
            if spec.get("path") is not None:
                where = Path(locate(spec["path"])) / (spec.get("subfolder") or "")
                whole_pipeline = (where / inside).is_dir()
                files[part] = sorted(
                    (where / inside if whole_pipeline else where).glob(WEIGHT_FILES)
                )
        return files

    def load(self, parts: Collection[str] = PARTS, dtype: str = "float32") -> Model:
        return Model.load(self.path, parts, getattr(torch, dtype))


def load(
    path: str | Path | None = None,
    *,
    dtype: Any = None,
    device: Any = None,
    low_memory: bool | None = None,
    pack: str | Path | None = None,
    quantize: Kind | None = None,
    tiling: bool = False,
    variant: str | None = None,
    vae: str | Path | None = None,
    text_encoder: str | Path | None = None,
    clean: str | None = None,
    controlnet: str | Path | None = None,
    lora: str | Path | Sequence[str | Path | tuple[str | Path, float]] = (),
) -> Pipeline:
    """Load a model into a pipeline.

    Args:
        path: a checkpoint folder, a run folder (its newest checkpoint) or the name of a shipped
            model; default: the shipped one. Or published PixArt weights: a diffusers folder, a hub
            id, a `.pth` or `.safetensors` file (docs/weights.md).
        dtype: torch.float32 or torch.bfloat16 for the denoiser; default: the model's contract.
        device: default: CUDA where there is one, else the CPU.
        low_memory: text encoder and denoiser are loaded in turn, in every call, and never
            together; default: where the free memory is too small for both, with a warning.
        pack: a prompt pack (`gesso encode --prompts`) in place of the text encoder, which is then
            not loaded.
        quantize: "int8" or "bfloat16": smaller weights in the denoiser's blocks, and with int8 in
            a frozen text encoder's; `gesso quantize` tells what that costs.
        tiling: decode, and encode, in overlapping tiles, which bounds memory at 2K and changes
            pictures a little. Low memory alone already decodes one picture at a time.
        variant: of published weights, where the files cannot tell: a name of
            `gesso.backbones.pixart.SIZES`, such as "sigma-1024".
        vae, text_encoder: folder or hub id of the encoders of published weights that come without.
        clean: how captions of published weights are cleaned: "none", "lower" or "alpha"; default:
            as the software does that the files belong to.
        controlnet: file or folder of a control branch for published PixArt weights, see
            docs/control.md.
        lora: LoRAs to paint with: paths, "path:weight" or (path, weight); see
            `gesso.pipeline.Pipeline.load_lora`.

    Raises:
        GessoError: no such model, or its files are incomplete, truncated or do not fit.
    """
    source = find_source(
        path,
        variant=variant,
        vae=vae,
        text_encoder=text_encoder,
        clean=clean,
        controlnet=controlnet,
    )
    name = None if dtype is None else str(dtype).removeprefix("torch.")
    if name not in (None, "float32", "bfloat16"):
        raise GessoError(f"The dtype {name} is not supported: use float32 or bfloat16.")
    device = pick_device(device)

    def read(parts: Collection[str]) -> Model:
        model = source.load(parts, name or "float32")
        if name is not None:
            model.sample.dtype = name  # type: ignore[assignment]
        if tiling and model.image_encoder is not None:
            _vae(model).enable_tiling()
        return model.to(device)

    shown = str(path or DEFAULT)
    if pack is not None:
        model = read(PARTS - {"text_encoder"})
        model.text_encoder = Pack.read(Path(pack)).check(model.description)
        pipe = Pipeline(model, shown)
    elif low_memory or (low_memory is None and _too_large(source, device)):
        model = read({"image_encoder"})
        if hasattr(model.image_encoder, "vae"):
            model.image_encoder.vae.enable_slicing()
        pipe = Pipeline(model, shown, read)
    else:
        pipe = Pipeline(read(PARTS), shown)
    for spec in [lora] if isinstance(lora, str | Path) else lora:
        pipe.load_lora(*(spec if isinstance(spec, tuple) else split_weight(str(spec))))
    if quantize is not None:
        pipe.quantize(quantize)
    return pipe


def split_weight(spec: str) -> tuple[str, float]:
    """ "file.safetensors:0.8" -> its path and weight; without a number behind it, weight 1."""
    path, _, weight = spec.rpartition(":")
    try:
        return (path, float(weight)) if path else (spec, 1.0)
    except ValueError:  # a colon of the path's own
        return spec, 1.0


def find_source(path: str | Path | None, **published: Any) -> Source:
    """The model that a name or path means, not yet loaded.

    Args:
        path: as in `load`.
        published: options of `gesso.convert.published.find`, for published weights only.

    Raises:
        GessoError: no such model, or options that it has no use for.
    """
    name = str(path)
    if path is not None and Path(path).exists():
        is_published = checkpoint_in(Path(path)) is None
    else:
        is_published = path is not None and name not in _shipped() and hub.looks_like_hub_id(name)
    if is_published:
        return published_weights.find(name, **published)
    unused = [key for key, value in published.items() if value is not None]
    if unused:
        raise GessoError(f"{path or DEFAULT} is a gesso model: leave out {', '.join(unused)}.")
    return Folder(find(path))


def find(path: str | Path | None) -> Path:
    """The checkpoint folder that a name or path means.

    Raises:
        GessoError: no such model (names the shipped ones), or a run without a checkpoint yet.
    """
    shipped = _shipped()
    if path is None:
        path = DEFAULT
    folder = Path(path)
    if not folder.is_dir():
        if str(path) in shipped:
            return shipped[str(path)]
        hint = nearest(str(path), list(shipped))
        raise GessoError(f"There is no model folder or shipped model {str(path)!r}: {hint}")
    found = checkpoint_in(folder)
    if found is not None:
        return found
    raise GessoError(f"{folder} is not a gesso model: it has no {DESCRIPTION}.")


def _shipped() -> dict[str, Path]:
    """The folders of the models that ship with gesso, by name."""
    return {p.parent.name: p.parent for p in ASSETS.glob(f"*/{DESCRIPTION}")}


def _vae(model: Model) -> Any:
    """The diffusers autoencoder inside a model's image encoder."""
    if not hasattr(model.image_encoder, "vae"):
        raise GessoError("This model's image encoder is too small to tile: leave tiling out.")
    return model.image_encoder.vae


def _too_large(source: Source, device: Any) -> bool:
    """Whether text encoder and denoiser must take turns; says so in one line."""
    sizes = {part: total_bytes(files) for part, files in source.weight_files().items()}
    free = available_bytes(device)
    if not sizes.get("text_encoder") or sum(sizes.values()) <= ROOM * free:
        return False
    warnings.warn(
        f"The model's files hold {gib(sum(sizes.values()))} and {gib(free)} of memory are free: "
        "text encoder and denoiser are loaded in turn.",
        stacklevel=3,
    )
    return True
