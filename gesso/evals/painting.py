"""Models that paint a benchmark's prompts: any of gesso's, or any diffusers pipeline."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from gesso.evals.types import Image
from gesso.png import read_png, save_png
from gesso.types import GessoError

if TYPE_CHECKING:
    from gesso.pipeline import Pipeline

BATCH = 32  # pictures painted at a time; published pipelines take fewer
PUBLISHED_BATCH = 4


class Painter(Protocol):
    """A model that paints.

    Attributes:
        name: as the user named it.
        fingerprint: of its weights.
        settings: steps, guidance, size: what else its pictures depend on.
        words: its vocabulary, where it has a closed one.
        batch: pictures that are painted at a time.
    """

    name: str
    fingerprint: str
    settings: dict[str, Any]
    words: frozenset[str]
    batch: int

    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> list[Image]:
        """One picture for each text and seed."""


@dataclass(frozen=True)
class Settings:
    """How models paint; None: as each one's contract or pipeline says."""

    steps: int | None = None
    guidance_scale: float | None = None
    size: str | None = None
    device: str | None = None

    def asked(self) -> dict[str, Any]:
        """What was asked for, as arguments of a pipeline."""
        from gesso.paint import parse_size

        height, width = parse_size(self.size)
        values = {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "height": height,
            "width": width,
        }
        return {key: value for key, value in values.items() if value is not None}


class Wanted(NamedTuple):
    """One picture to be painted."""

    file: Path
    text: str
    seed: int


def open_painter(model: str | Pipeline | None, settings: Settings) -> Painter:
    """A painter.

    Args:
        model: as for `gesso.load`, or folder or hub id of any text-to-image pipeline of diffusers,
            or a model in memory.

    Raises:
        GessoError: no such model.
    """
    if isinstance(model, str) and _foreign(model):
        return _Diffusers(model, settings)
    return _Gesso(model, settings)


def paint_missing(
    painter: Painter, wanted: Sequence[Wanted], show: Callable[[int, int | None], None]
) -> None:
    """Paint the pictures that are not there yet, with this prompt and seed; others stay."""
    todo = [w for w in wanted if not _painted(w)]
    done = len(wanted) - len(todo)
    show(done, len(wanted))
    for i in range(0, len(todo), painter.batch):
        some = todo[i : i + painter.batch]
        images = painter.paint([w.text for w in some], [w.seed for w in some])
        for w, image in zip(some, images, strict=True):
            _save(painter, w, image)
        done += len(some)
        show(done, len(wanted))


def _painted(wanted: Wanted) -> bool:
    try:
        made = read_png(wanted.file)
    except GessoError:
        return False
    return made["prompt"] == wanted.text and made["seed"] == wanted.seed


def _save(painter: Painter, wanted: Wanted, image: Image) -> None:
    """Written beside its place and renamed: a kill leaves no half picture."""
    from PIL import Image as Pillow

    wanted.file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = wanted.file.with_name(f".{os.getpid()}-{wanted.file.name}")
    metadata = {
        "prompt": wanted.text,
        "seed": wanted.seed,
        "model": painter.name,
        "fingerprint": painter.fingerprint,
        "contract": painter.settings,
    }
    save_png(Pillow.fromarray(image), unfinished, metadata)
    unfinished.replace(wanted.file)


class _Gesso:
    """A model of gesso's, or published PixArt weights."""

    def __init__(self, model: str | Pipeline | None, settings: Settings) -> None:
        from gesso.loading import load

        if model is None or isinstance(model, str):
            model = load(model, device=settings.device)
        self.pipe = model
        self.name = self.pipe.source
        self.fingerprint = self.pipe.model.description.fingerprint
        self._asked = settings.asked()
        self.settings = self.pipe.model.sample.model_dump(mode="json") | self._asked
        options = getattr(self.pipe.model.text_encoder, "config", None)
        self.words = frozenset(getattr(options, "words", None) or ())
        small = self.settings["height"] * self.settings["width"] <= 256 * 256
        self.batch = BATCH if small else PUBLISHED_BATCH

    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> list[Image]:
        output = self.pipe(list(texts), seed=list(seeds), batch_size=self.batch, **self._asked)
        return [np.asarray(image) for image in output.images]


class _Diffusers:
    """A text-to-image pipeline of diffusers'."""

    words: frozenset[str] = frozenset()
    batch = PUBLISHED_BATCH

    def __init__(self, model: str, settings: Settings) -> None:
        import torch
        from diffusers import DiffusionPipeline

        from gesso.device import pick_device

        self.device = pick_device(settings.device)
        dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        try:
            self.pipe = DiffusionPipeline.from_pretrained(
                model, torch_dtype=dtype, use_safetensors=True, trust_remote_code=False
            ).to(self.device)
        except (OSError, ValueError, ImportError, AttributeError) as e:
            reason = str(e).strip().splitlines()[0].rstrip(".")
            raise GessoError(
                f"{model} cannot be loaded as a pipeline of diffusers ({reason}): give a complete "
                "folder or a hub id."
            ) from None
        self.pipe.set_progress_bar_config(disable=True)
        self.name = model
        self._asked = settings.asked()
        self.settings = {
            "pipeline": type(self.pipe).__name__,
            "dtype": str(dtype).removeprefix("torch."),
            **self._asked,
        }
        self.fingerprint = _weights_digest(self.pipe)

    def paint(self, texts: Sequence[str], seeds: Sequence[int]) -> list[Image]:
        import torch

        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        output = self.pipe(list(texts), generator=generators, output_type="pil", **self._asked)
        return [np.asarray(image.convert("RGB")) for image in output.images]


def _foreign(model: str) -> bool:
    """Whether a name means a pipeline that only diffusers can run."""
    from gesso.convert import hub
    from gesso.loading import _shipped

    file = Path(model) / "model_index.json"
    if file.is_file():
        try:
            kind = json.loads(file.read_text()).get("_class_name", "")
        except (ValueError, AttributeError):
            return True
        return not str(kind).startswith("PixArt")
    if Path(model).exists() or model in _shipped() or not hub.looks_like_hub_id(model):
        return False
    return "pixart" not in model.lower()


def _weights_digest(pipe: Any) -> str:
    """16 hex digits over the weights of all parts and the scheduler's settings."""
    import torch

    digest = hashlib.sha256()
    for name, part in sorted(pipe.components.items()):
        if isinstance(part, torch.nn.Module):
            for key, tensor in sorted(part.state_dict().items()):
                digest.update(f"{name}.{key}".encode())
                digest.update(
                    tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
                )
        elif hasattr(part, "config"):
            digest.update(json.dumps(dict(part.config), default=str, sort_keys=True).encode())
    return digest.hexdigest()[:16]
