"""Prompt -> pictures: the one glue, used by the command line, validation and evaluation.

    pipe = gesso.load()                       # the model that ships with gesso
    image = pipe("a red circle left of a blue square", seed=1).images[0]

A picture depends on its own prompt and seed only: noise comes from one generator per picture, and
samplers keep their state in float32.

Dims: N pictures, n of them in a batch, H x W pixels, C latent channels, h, w latent size.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from gesso import codes
from gesso.adapters.fused import Adapters
from gesso.config import SampleConfig, module, validate
from gesso.control_image import control_cond
from gesso.data.buckets import Size
from gesso.diffusion.guidance import guide
from gesso.diffusion.noise import Generators, start_scale, starting_noise
from gesso.diffusion.schedules import Schedule, make_schedule
from gesso.loras import LoraMethods
from gesso.memory import give_back
from gesso.model import Model
from gesso.nn.packed import packed
from gesso.nn.quantize import Kind
from gesso.repaint import Canvas, keep_unmasked, make_canvas, resize_and_crop
from gesso.sizes import fitting_size, latent_shape, painted_size, warn_beyond_buckets
from gesso.types import Cond, GessoError

if TYPE_CHECKING:
    from gesso.repaint import Picture

OutputType = Literal["pil", "np", "pt", "latent"]
Texts = tuple[Cond, Cond | None, Tensor]
"""Prompts, negative prompts as far as they are needed, and [n] bool: which of them are typed."""


@dataclass
class PipelineOutput:
    """What a pipeline call returns.

    Attributes:
        images: N pictures, in prompt order, each prompt's pictures together: PIL images, or
            [N, H, W, 3] float array in [0, 1] ("np"), [N, 3, H, W] tensor in [0, 1] ("pt"), or
            [N, C, h, w] normalised latents ("latent").
        prompts, seeds: N each; a seed is None where the caller gave a generator or latents.
        contract: the settings that made them.
        strength: how far a given picture was painted over; None without one.
    """

    images: Any
    prompts: list[str]
    seeds: list[int | None]
    contract: SampleConfig
    strength: float | None = None


class Pipeline(LoraMethods):
    """A model ready to paint.

    Args:
        model: the model; its modules are put into eval mode.
        source: where it came from, for messages and picture metadata.
        read: loads parts of the same model; then `model` needs to hold its image encoder only, and
            every call loads text encoder and backbone in turn and never has both in memory.
    """

    def __init__(
        self,
        model: Model,
        source: str = "",
        read: Callable[[Collection[str]], Model] | None = None,
    ) -> None:
        described = model.description
        if described.backbone is None or described.text_encoder is None:
            raise GessoError(
                f"{source or model.name} holds an image encoder only: give a text-to-image model."
            )
        self.model = model
        self.source = source
        self._read = read
        self._adapters = Adapters(model.backbone)
        self.quantized: Kind | None = None
        for part in model.parts().values():
            part.eval()

    @torch.inference_mode()
    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str | Sequence[str] | None = None,
        *,
        image: Picture | Sequence[Picture] | None = None,
        mask_image: Picture | Sequence[Picture] | None = None,
        strength: float | None = None,
        control_image: Picture | Sequence[Picture] | None = None,
        control_scale: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        timesteps: Sequence[float] | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        use_resolution_binning: bool | None = None,
        output_type: OutputType = "pil",
        batch_size: int = 16,
        callback: Callable[[int, int], None] | None = None,
    ) -> PipelineOutput:
        """Paint.

        Args:
            prompt: one prompt or several; "" paints without a condition.
            negative_prompt: takes the place of the empty prompt in guidance; one, or one a prompt.
            image: a picture to paint over, for all or one a prompt: PIL, or [H, W, 3] uint8. It is
                resized until it covers height and width, and its centre is cut out.
            mask_image: of the picture's size; white is painted over, black stays as it is.
            strength: in (0, 1], how much is painted over: of the steps, the last
                int(steps x strength) run, and 1 begins with noise. Default: 0.8, with a mask 1.
            control_image: a picture that steers a model with a control branch, such as edges, for
                all or one a prompt: PIL, or [H, W, 3] or [H, W] uint8, of the size that is painted.
            control_scale: how strongly; default: 1, as trained. 0 is without.
            height, width: in pixels; default: the model's contract, or what suits the picture.
            num_inference_steps, guidance_scale: default: the model's contract. A guidance scale of
                1 or less is no guidance. A model of codes has no steps, noise or timesteps to
                choose and paints over nothing.
            timesteps: these times instead of num_inference_steps.
            num_images_per_prompt: pictures a prompt.
            seed: of the first picture, picture i gets seed + i; or one seed a picture.
                Default: drawn at random and reported.
            generator: instead of seeds: one for all pictures in turn, or one a picture.
            latents: [N, C, h, w] starting noise instead of drawn noise.
            use_resolution_binning: paint in the bucket nearest in aspect, then resize and crop to
                height and width. Default: the model's contract.
            output_type: see `PipelineOutput.images`.
            batch_size: pictures painted at a time; does not change them.
            callback: called as (steps done, steps in all) over the whole call.

        Raises:
            GessoError: no prompt, a size that the model cannot paint, a count that does not match,
                a mask without a picture or of another size, a control picture that does not fit or
                has no use, what a model of codes cannot do.
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
            "use_resolution_binning": use_resolution_binning,
            "timesteps": None if timesteps is None else tuple(timesteps),
        }
        changed: dict[str, Any] = {k: v for k, v in changes.items() if v is not None}
        known = self.model.sample
        if timesteps is None and known.timesteps and num_inference_steps:
            # Steps that were asked for replace times that the contract gives outright.
            kept = known.timesteps if len(known.timesteps) == num_inference_steps else None
            changed["timesteps"] = kept
        contract = validate(SampleConfig, known.model_dump() | changed, "The generation contract")
        self._check_sampler(contract)
        if self.model.coded:
            codes.refuse(
                self.model,
                {
                    "image": image,
                    "mask_image": mask_image,
                    "strength": strength,
                    "num_inference_steps": num_inference_steps,
                    "timesteps": timesteps,
                    "latents": latents,
                },
            )
        if strength is not None and image is None:
            raise GessoError("A strength says how far a picture is painted over: give an image.")
        if mask_image is not None and image is None:
            raise GessoError("A mask says which parts of a picture to paint over: give an image.")
        canvas = None
        if image is not None:
            if strength is None:
                strength = 0.8 if mask_image is None else 1.0
            given = height is not None or width is not None

            def size(found: Size) -> Size:
                if not given:
                    contract.height, contract.width = fitting_size(self.model, contract, found)
                latent_shape(self.model, contract)  # which refuses what cannot be painted
                return painted_size(contract)

            canvas = make_canvas(
                image, mask_image, size, self._to_latents, n, num_images_per_prompt
            )
        if control_scale is not None and control_image is None:
            raise GessoError("A control scale needs something to scale: give a control picture.")
        control = Cond()
        if control_image is not None:
            control = control_cond(
                control_image,
                control_scale,
                self.model,
                contract,
                self._to_latents,
                n,
                num_images_per_prompt,
            )
        schedule = None
        if not self.model.coded:
            schedule = self._schedule(contract, 1.0 if strength is None else strength)
        shape = latent_shape(self.model, contract)
        warn_beyond_buckets(contract)
        seeds, noise, generators = starting_noise(n, shape, seed, generator, latents)
        slices = [slice(i, i + batch_size) for i in range(0, n, batch_size)]

        self._need("text_encoder")
        self._warn_if_truncated([*prompts, *(x for x in negatives if x)])
        texts: Iterator[Texts] = (
            self._texts(prompts[some], negatives[some], contract) for some in slices
        )
        if self._read is not None:
            texts = iter(list(texts))
            self._need("backbone")

        steps = codes.steps(self.model, contract) if schedule is None else len(schedule)
        done = 0

        def step_done() -> None:
            nonlocal done
            done += 1
            if callback is not None:
                callback(done, len(slices) * steps)

        finished = []
        for some in slices:
            over = None if canvas is None else canvas[some]
            cond, negative, typed = next(texts)
            with self._precision(contract):
                null = self._null(cond, negative, typed, contract)
                steered = control[some]
                cond, null = (
                    c.replace(control=steered.control, control_scale=steered.control_scale)
                    for c in (cond, null)
                )
                own = generators[some]
                if schedule is None:
                    x = codes.paint(self.model, contract, cond, null, own, step_done)
                else:
                    x = self._paint(
                        cond, null, noise[some], own, over, contract, schedule, step_done
                    )
            finished.append(x if output_type == "latent" else self._decode(x, over, contract))
        images = _output(torch.cat(finished), output_type)
        return PipelineOutput(images, prompts, seeds, contract, strength)

    def _paint(
        self,
        cond: Cond,
        null: Cond,
        noise: Tensor,
        generators: Generators,
        canvas: Canvas | None,
        contract: SampleConfig,
        schedule: Schedule,
        step_done: Callable[[], None],
    ) -> Tensor:
        """[n, C, h, w] noise -> latents."""
        noise = noise.to(self.model.device)
        scale = start_scale(self.model.path, contract.start_noise, schedule.t[0].item())
        x, latents, mask = scale * noise, None, None
        if canvas is not None:
            latents, mask = canvas.latents, canvas.latent_mask
            if not schedule.from_noise:
                x = schedule.alpha[0].item() * latents + schedule.sigma[0].item() * noise
        sample = module("samplers", contract.sampler).sample
        backbone = self.model.backbone
        rows = len(schedule) * noise[:, 0].numel() // backbone.patch_size**2
        with packed(backbone, rows):
            denoise = guide(
                self.model.denoiser(),
                cond,
                null,
                guidance_scale=max(1.0, contract.guidance_scale),
                rescale=contract.guidance_rescale,
                interval=contract.guidance_interval,
                skip_layers=contract.skip_guidance_layers,
                skip_layer_scale=contract.skip_layer_guidance_scale,
                skip_layer_interval=contract.skip_layer_guidance_interval,
                schedule=schedule,
            )
            if latents is not None and mask is not None:
                denoise = keep_unmasked(denoise, self.model.path, latents, noise, mask)
            x = sample(denoise, x, schedule, generator=generators, callback=lambda *_: step_done())
        return x if mask is None or latents is None else torch.where(mask.bool(), x, latents)

    def _texts(
        self, prompts: list[str], negatives: list[str | None], contract: SampleConfig
    ) -> Texts:
        """Encode the prompts of a batch."""
        with self._precision(contract):
            cond = self._encode(prompts, contract)
            negative = None
            if contract.guidance_scale > 1 and (contract.null == "empty" or any(negatives)):
                negative = self._encode([text or "" for text in negatives], contract)
        return cond, negative, torch.tensor([bool(text) for text in negatives])

    def _encode(self, prompts: list[str], contract: SampleConfig) -> Cond:
        encoder, device = self.model.text_encoder, self.model.device
        texts = {prompt: row for row, prompt in enumerate(dict.fromkeys(prompts))}  # once each
        cond: Cond = encoder(encoder.prepare(list(texts)).to(device)).to(device)
        cond = cond[torch.tensor([texts[prompt] for prompt in prompts], device=device)]
        painted = torch.tensor([painted_size(contract)], dtype=torch.float32, device=device)
        size = painted.expand(len(prompts), 2)
        return cond.replace(size=size, aspect=size[:, :1] / size[:, 1:])

    def _null(
        self, cond: Cond, negative: Cond | None, typed: Tensor, contract: SampleConfig
    ) -> Cond:
        """The unconditional branch: text(negative prompt or ""), or what stands for no text."""
        if contract.guidance_scale <= 1:
            return cond
        if contract.null == "empty" and negative is not None:
            return negative
        fixed: Cond = cond.silent() if contract.null == "zero" else self.model.backbone.null(cond)
        return fixed if negative is None else negative.where(~typed.to(self.model.device), fixed)

    def _to_latents(self, pixels: Tensor) -> Tensor:
        """[k, 3, H, W] in [-1, 1] -> [k, C, h, w], one picture at a time to spare memory."""
        encoder, device = self.model.image_encoder, self.model.device
        rows = [encoder.sample(encoder.encode(p[None].to(device))) for p in pixels]
        return torch.cat(rows).float()

    def _decode(self, latents: Tensor, canvas: Canvas | None, contract: SampleConfig) -> Tensor:
        """[n, C, h, w] latents -> [n, 3, H, W] in [0, 1], on the CPU."""
        pixels = self.model.image_encoder.decode(latents.float())
        pixels = ((pixels + 1) / 2).cpu()
        if canvas is not None:
            pixels = canvas.composite(pixels.clamp(0, 1))
        # Clamped last, as in diffusers: a resized edge keeps what lies beyond black and white.
        return resize_and_crop(pixels, (contract.height, contract.width)).clamp(0, 1)

    def _precision(self, contract: SampleConfig) -> Any:
        if contract.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.model.device.type, dtype=torch.bfloat16)

    def _check_sampler(self, contract: SampleConfig) -> None:
        found, coded = module("samplers", contract.sampler), self.model.coded
        if hasattr(found, "generate") != coded:
            kinds = ("denoises", "generates codes")
            raise GessoError(
                f"The sampler {contract.sampler} {kinds[not coded]} and {self.model.name} "
                f"{kinds[coded]}: set sample.sampler to one that does, too."
            )

    def _schedule(self, contract: SampleConfig, strength: float) -> Schedule:
        if contract.sampler == "lcm" and not (
            contract.timesteps or contract.spacing.startswith("lcm")
        ):
            raise GessoError(
                f"The sampler lcm visits the times that it was distilled on, not {contract.spacing}"
                " ones: set sample.spacing to lcm or lcm_reference."
            )
        return make_schedule(
            self.model.path_at(*painted_size(contract)),
            contract.num_inference_steps,
            contract.spacing,
            contract.final,
            timesteps=contract.timesteps,
            original_inference_steps=contract.original_inference_steps,
            strength=strength,
        )

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

    # Memory.

    def _need(self, part: Literal["text_encoder", "backbone"]) -> None:
        """With little memory: let go of the other part and load this one."""
        if self._read is None:
            return
        other = "backbone" if part == "text_encoder" else "text_encoder"
        setattr(self.model, other, None)
        if other == "backbone":
            self._adapters.attach(None)  # which would keep it
        give_back()
        if getattr(self.model, part) is None:
            setattr(self.model, part, getattr(self._read({part}), part).eval())
            if part == "backbone":
                self._adapters.attach(self.model.backbone, keep=False)
            if self.quantized is not None:
                self.model.quantize(self.quantized)

    def quantize(self, kind: Kind) -> None:
        """Make weights smaller, see `gesso.nn.quantize`; for good, so load LoRAs before.

        Raises:
            GessoError: an unknown kind, int8 without torchao, or a network without blocks.
        """
        self.model.quantize(kind)
        self.quantized = kind


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
