"""Prompt -> pictures: the one glue, used by the command line, validation and evaluation.

    pipe = gesso.load()                       # the model that ships with gesso
    image = pipe("a red circle left of a blue square", seed=1).images[0]

A picture depends on its own prompt and seed only: noise comes from one CPU generator per picture,
and samplers keep their state in float32.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from gesso.config import SampleConfig, module, nearest, validate
from gesso.diffusion.noise import draw_noise
from gesso.diffusion.schedules import make_schedule
from gesso.model import DESCRIPTION, Model
from gesso.samplers.guidance import guide
from gesso.types import Cond, Denoise, GessoError

if TYPE_CHECKING:
    from PIL.Image import Image

ASSETS = Path(__file__).parent / "assets"
DEFAULT = "scenes"
OutputType = Literal["pil", "np", "pt", "latent"]


@dataclass
class PipelineOutput:
    """What a pipeline call returns.

    Attributes:
        images: N pictures, in prompt order, each prompt's pictures together: PIL images, or
            [N, H, W, 3] float array in [0, 1] ("np"), [N, 3, H, W] tensor in [0, 1] ("pt"), or
            [N, C, h, w] normalised latents ("latent").
        prompts, seeds: N each; a seed is None where the caller gave a generator or latents.
        contract: the settings that made them.
    """

    images: Any
    prompts: list[str]
    seeds: list[int | None]
    contract: SampleConfig


class Pipeline:
    """A model ready to paint.

    Args:
        model: the model; its modules are put into eval mode.
        source: where it came from, for messages and picture metadata.
    """

    def __init__(self, model: Model, source: str = "") -> None:
        if model.backbone is None or model.text_encoder is None:
            raise GessoError(
                f"{source or model.name} holds an image encoder only: give a text-to-image model."
            )
        self.model = model
        self.source = source
        for part in model.parts().values():
            part.eval()

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        output_type: OutputType = "pil",
        batch_size: int = 16,
        callback: Callable[[int, int], None] | None = None,
    ) -> PipelineOutput:
        """Paint.

        Args:
            prompt: one prompt or several; "" paints without a condition.
            negative_prompt: takes the place of the empty prompt in guidance; one, or one a prompt.
            height, width: in pixels; default: the model's contract.
            num_inference_steps, guidance_scale: default: the model's contract.
            num_images_per_prompt: pictures a prompt.
            seed: of the first picture, picture i gets seed + i; or one seed a picture.
                Default: drawn at random and reported.
            generator: instead of seeds: one for all pictures in turn, or one a picture.
            latents: [N, C, h, w] starting noise instead of drawn noise.
            output_type: see `PipelineOutput.images`.
            batch_size: pictures painted at a time; does not change them.
            callback: called as (steps done, steps in all) over the whole call.

        Raises:
            GessoError: no prompt, a size that the model cannot paint, a count that does not match.
        """
        prompts = [p for p in _as_list(prompt) for _ in range(num_images_per_prompt)]
        n = len(prompts)
        if n == 0:
            raise GessoError("There is nothing to paint: give at least one prompt.")
        negatives = _spread(negative_prompt, n, num_images_per_prompt)
        changes = {
            "height": height,
            "width": width,
            "num_inference_steps": num_inference_steps,
            "guidance_scale": guidance_scale,
        }
        changed = {k: v for k, v in changes.items() if v is not None}
        contract = validate(
            SampleConfig, self.model.sample.model_dump() | changed, "The generation contract"
        )
        shape = self._latent_shape(contract.height, contract.width)
        seeds, noise = _starting_noise(n, shape, seed, generator, latents)
        self._warn_if_truncated([*prompts, *(x for x in negatives if x)])

        done = 0
        total = -(-n // batch_size) * contract.num_inference_steps

        def step_done() -> None:
            nonlocal done
            done += 1
            if callback is not None:
                callback(done, total)

        finished = []
        for i in range(0, n, batch_size):
            some = slice(i, i + batch_size)
            x = self._paint(prompts[some], negatives[some], noise[some], contract, step_done)
            finished.append(x if output_type == "latent" else self._decode(x))
        return PipelineOutput(_output(torch.cat(finished), output_type), prompts, seeds, contract)

    def _paint(
        self,
        prompts: list[str],
        negatives: list[str | None],
        noise: Tensor,
        contract: SampleConfig,
        step_done: Callable[[], None],
    ) -> Tensor:
        """[n, C, h, w] noise -> latents."""
        device = self.model.device
        with self._precision(contract):
            cond = self._encode(prompts, contract)
            null = self._null(cond, negatives, contract)
        schedule = make_schedule(
            self.model.path,
            contract.num_inference_steps,
            contract.spacing,
            contract.final,
            timesteps=contract.timesteps,
            original_inference_steps=contract.original_inference_steps,
        )
        denoise = guide(
            self.model.denoiser(),
            cond,
            null,
            guidance_scale=contract.guidance_scale,
            rescale=contract.guidance_rescale,
            interval=contract.guidance_interval,
            schedule=schedule,
        )

        def in_precision(x: Tensor, t: Tensor) -> Any:
            with self._precision(contract):
                return denoise(x, t)

        sample = module("samplers", contract.sampler).sample
        wrapped: Denoise = in_precision
        latents: Tensor = sample(
            wrapped, noise.to(device), schedule, callback=lambda *_: step_done()
        )
        return latents

    def _encode(self, prompts: list[str], contract: SampleConfig) -> Cond:
        encoder = self.model.text_encoder
        cond: Cond = encoder(encoder.prepare(prompts).to(self.model.device))
        size = torch.tensor([[contract.height, contract.width]], dtype=torch.float32)
        size = size.expand(len(prompts), 2).to(self.model.device)
        return cond.replace(size=size, aspect=size[:, :1] / size[:, 1:])

    def _null(self, cond: Cond, negatives: list[str | None], contract: SampleConfig) -> Cond:
        """The unconditional branch: the backbone's own, or text(negative prompt or "")."""
        if contract.null == "learned" and not any(negatives):
            null: Cond = self.model.backbone.null(cond)
            return null
        return self._encode([text or "" for text in negatives], contract)

    def _decode(self, latents: Tensor) -> Tensor:
        """[n, C, h, w] latents -> [n, 3, H, W] in [0, 1], on the CPU."""
        pixels = self.model.image_encoder.decode(latents.float())
        return ((pixels + 1) / 2).clamp(0, 1).cpu()

    def _precision(self, contract: SampleConfig) -> Any:
        if contract.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16)

    def _latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        encoder, backbone = self.model.image_encoder, self.model.backbone
        multiple = encoder.factor * backbone.patch_size
        for name, value in (("height", height), ("width", width)):
            if value < multiple or value % multiple:
                near = max(multiple, round(value / multiple) * multiple)
                raise GessoError(
                    f"The {name} {value} is no multiple of {multiple} pixels, "
                    f"this model's patch: try {near}."
                )
        return encoder.channels, height // encoder.factor, width // encoder.factor

    def _warn_if_truncated(self, prompts: list[str]) -> None:
        encoder = self.model.text_encoder
        for prompt in dict.fromkeys(prompts):
            lost = encoder.dropped(prompt)
            if lost:
                words = lost.split()
                shown = " ".join(words[:12]) + (" ..." if len(words) > 12 else "")
                warnings.warn(
                    f"The prompt is longer than the {encoder.max_tokens} tokens that this model "
                    f"reads; {len(words)} words were dropped: {shown}",
                    stacklevel=3,
                )


def load(path: str | Path | None = None, *, dtype: Any = None, device: Any = None) -> Pipeline:
    """Load a model into a pipeline.

    Args:
        path: a checkpoint folder, a run folder (its newest checkpoint) or the name of a shipped
            model; default: the shipped one.
        dtype: torch.float32 or torch.bfloat16 for the denoiser; default: the model's contract.
        device: default: CUDA where there is one, else the CPU.

    Raises:
        GessoError: no such model, or its files are incomplete, truncated or do not fit.
    """
    folder = find(path)
    model = Model.load(folder)
    if dtype is not None:
        name = str(dtype).removeprefix("torch.")
        if name not in ("float32", "bfloat16"):
            raise GessoError(f"The dtype {name} is not supported: use float32 or bfloat16.")
        model.sample.dtype = name  # type: ignore[assignment]
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Pipeline(model.to(device), source=str(path or DEFAULT))


def find(path: str | Path | None) -> Path:
    """The checkpoint folder that a name or path means.

    Raises:
        GessoError: no such model (names the shipped ones), or a run without a checkpoint yet.
    """
    shipped = {p.parent.name: p.parent for p in ASSETS.glob(f"*/{DESCRIPTION}")}
    if path is None:
        path = DEFAULT
    folder = Path(path)
    if not folder.is_dir():
        if str(path) in shipped:
            return shipped[str(path)]
        hint = nearest(str(path), list(shipped))
        raise GessoError(f"There is no model folder or shipped model {str(path)!r}: {hint}")
    if (folder / DESCRIPTION).is_file():
        return folder
    if (folder / "recipe.yaml").is_file():
        found = sorted((folder / "checkpoints").glob(f"step-*/{DESCRIPTION}"))
        if not found:
            raise GessoError(f"The run {folder} has no checkpoint yet: let it reach one.")
        return found[-1].parent
    raise GessoError(f"{folder} is not a gesso model: it has no {DESCRIPTION}.")


def picture_metadata(pipe: Pipeline, output: PipelineOutput, i: int, negative: str | None) -> str:
    """JSON that a painted PNG carries: all that is needed to paint it again."""
    return json.dumps(
        {
            "prompt": output.prompts[i],
            "negative_prompt": negative,
            "seed": output.seeds[i],
            "model": pipe.source,
            "fingerprint": pipe.model.description.fingerprint,
            "contract": output.contract.model_dump(),
        }
    )


def save_png(image: Image, file: Path, metadata: str) -> None:
    """Write a PNG with its metadata in the text chunk "gesso"."""
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_itxt("gesso", metadata)
    image.save(file, pnginfo=info)


def read_png(file: Path) -> dict[str, Any]:
    """The metadata of a picture that gesso painted.

    Raises:
        GessoError: no such file, no picture, or a picture without gesso's metadata.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            text = getattr(image, "text", {}).get("gesso")
    except FileNotFoundError:
        raise GessoError(f"There is no picture {file}: give one that gesso painted.") from None
    except (UnidentifiedImageError, OSError) as e:
        raise GessoError(f"{file} cannot be read as a picture: {e}.") from None
    try:
        values = json.loads(text or "null")
    except ValueError:
        values = None
    needed = {"prompt", "seed", "model", "fingerprint", "contract"}
    if not isinstance(values, dict) or not needed <= values.keys():
        raise GessoError(f"{file} carries no gesso prompt and seed: it cannot be repainted.")
    return values


def _as_list(prompt: str | Sequence[str]) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt)


def _spread(negative: str | Sequence[str] | None, n: int, per_prompt: int) -> list[str | None]:
    if negative is None or isinstance(negative, str):
        return [negative] * n
    spread = [x for x in negative for _ in range(per_prompt)]
    if len(spread) != n:
        raise GessoError(
            f"There are {len(negative)} negative prompts for {n // per_prompt} prompts: "
            "give one, or as many."
        )
    return list(spread)


def _starting_noise(
    n: int,
    shape: tuple[int, int, int],
    seed: int | Sequence[int] | None,
    generator: torch.Generator | Sequence[torch.Generator] | None,
    latents: Tensor | None,
) -> tuple[list[int | None], Tensor]:
    """Seeds that were used (None where there were none) and [n, C, h, w] float32 noise."""
    unknown: list[int | None] = [None] * n
    if latents is not None:
        if tuple(latents.shape) != (n, *shape):
            raise GessoError(
                f"latents has shape {tuple(latents.shape)}: this call needs {(n, *shape)}."
            )
        return unknown, latents.float()
    if generator is not None:
        if isinstance(generator, torch.Generator):
            generators = [generator] * n
        else:
            generators = list(generator)
        if len(generators) != n:
            raise GessoError(f"There are {len(generators)} generators for {n} pictures: give {n}.")
        return unknown, draw_noise(shape, generators)
    if seed is None:
        seed = torch.seed() % 2**31
    seeds = [seed + i for i in range(n)] if isinstance(seed, int) else list(seed)
    if len(seeds) != n:
        raise GessoError(f"There are {len(seeds)} seeds for {n} pictures: give one, or {n}.")
    return list(seeds), draw_noise(shape, [torch.Generator().manual_seed(s) for s in seeds])


def _output(images: Tensor, output_type: OutputType) -> Any:
    if output_type in ("latent", "pt"):
        return images
    array = images.permute(0, 2, 3, 1).numpy()  # [N, 3, H, W] -> [N, H, W, 3]
    if output_type == "np":
        return array
    if output_type == "pil":
        from PIL import Image

        return [Image.fromarray(np.uint8(np.rint(a * 255))) for a in array]
    raise GessoError(f"output_type {output_type!r} is unknown: use pil, np, pt or latent.")
