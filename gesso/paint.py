"""The job behind `gesso paint`: prompts to PNG files that can be repainted."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gesso.controls import condition_of
from gesso.data.images import load_rgb
from gesso.encoders.pack import Pack
from gesso.loading import load
from gesso.nn.quantize import Kind
from gesso.pipeline import Pipeline, PipelineOutput
from gesso.png import read_png, save_png
from gesso.progress import steps_bar
from gesso.types import GessoError, Sample


def paint_to_files(
    prompt: str | None,
    *,
    model: str | None = None,
    n: int | None = None,
    seed: int | None = None,
    steps: int | None = None,
    guidance_scale: float | None = None,
    negative: str | None = None,
    size: str | None = None,
    image: Path | None = None,
    mask: Path | None = None,
    strength: float | None = None,
    control: Path | None = None,
    control_from: Path | None = None,
    control_scale: float | None = None,
    out: Path = Path("paintings"),
    like: Path | None = None,
    pack: Path | None = None,
    variant: str | None = None,
    vae: str | None = None,
    text_encoder: str | None = None,
    clean: str | None = None,
    controlnet: str | None = None,
    lora: Sequence[str] = (),
    dtype: str | None = None,
    device: str | None = None,
    low_memory: bool | None = None,
    quantize: Kind | None = None,
    tiling: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Paint `n` pictures of a prompt into PNG files.

    Args:
        prompt: what to paint; may be left out with `like`, and with `pack`, all of whose prompts
            are painted then.
        size: "HxW" in pixels.
        image, mask, strength: a picture to paint over, and where and how far.
        control: a control picture, for a model with a control branch; of the size that is painted.
        control_from: or a picture whose control picture is made as for training, and written
            beside the paintings as NAME-control.png.
        control_scale: see `gesso.pipeline.Pipeline.__call__`.
        out: a folder, made when absent, or a `.png` file (numbered when n > 1).
        like: a picture that gesso painted; its prompt, seed, contract and model are the defaults,
            and the picture that it was painted over, if that is where it was and as it was.
        pack: a prompt pack to read in place of the text encoder.
        variant, vae, text_encoder, clean, controlnet: of published weights, see
            `gesso.loading.load`.
        lora: LoRAs, as "path" or "path:weight"; none: those of `like`.
        quiet: no progress bar.
        For the rest see `gesso.pipeline.Pipeline.__call__`; None means the model's contract.

    Returns:
        images (file names), seconds (of painting, loading excluded), seed (of the first picture).

    Raises:
        GessoError: no prompt, a broken size, a foreign picture, or a model that is not the one
            that painted `like`.
    """
    height, width = parse_size(size)
    options: dict[str, Any] = {
        "device": device,
        "low_memory": low_memory,
        "pack": pack,
        "lora": list(lora),
    }
    # What pictures depend on and the model's own files do not tell.
    given: dict[str, Any] = {
        "tiling": tiling or None,
        "variant": variant,
        "vae": vae,
        "text_encoder": text_encoder,
        "clean": clean,
        "controlnet": controlnet,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if like is not None:
        made = read_png(like)
        if model is None:
            given = made.get("options", {}) | given
        prompt = made["prompt"] if prompt is None else prompt
        negative = made.get("negative_prompt") if negative is None else negative
        seed = made["seed"] if seed is None else seed
        contract = made["contract"]
        if image is None and made.get("image"):
            image = _found_again(like, made["image"], "--image")
            strength = made["strength"] if strength is None else strength
            if mask is None and made.get("mask"):
                mask = _found_again(like, made["mask"], "--mask")
        if control is None and control_from is None and made.get("control"):
            control = _found_again(like, made["control"], "--control")
            control_scale = made["control_scale"] if control_scale is None else control_scale
        if not lora:
            options["lora"] = [(a["path"], a["weight"]) for a in made.get("lora", [])]
        options["quantize"] = quantize or made.get("quantize")
        pipe = load(model or made["model"], dtype=dtype or contract["dtype"], **options, **given)
        if not lora and pipe.lora_metadata() != made.get("lora", []):
            raise GessoError(
                f"{like} was painted with LoRAs that have changed since: name them with --lora to "
                "repaint it anyway."
            )
        found = pipe.model.description.fingerprint
        if model is None and found != made["fingerprint"]:
            raise GessoError(
                f"{like} was painted by model {made['fingerprint']}, but {made['model']} is now "
                f"{found}: name a model with --model to repaint it anyway."
            )
        pipe.model.sample = pipe.model.sample.model_validate(
            contract | {"dtype": pipe.model.sample.dtype}
        )
        if image is not None and size is None:
            height, width = contract["height"], contract["width"]
    else:
        pipe = load(model, dtype=dtype, quantize=quantize, **options, **given)
    prompts = [prompt] if prompt is not None else []
    if not prompts and isinstance(pipe.model.text_encoder, Pack):
        prompts = pipe.model.text_encoder.prompts
    if not prompts:
        raise GessoError('There is no prompt: write gesso paint "a red circle".')

    if control is not None and control_from is not None:
        raise GessoError("--control and --control-from exclude each other: leave out one.")
    if control_from is not None:
        control = _draw_control(control_from, pipe, (height, width), out)
    steered = None if control is None else _picture(control, "used as a control picture")

    started = time.perf_counter()
    with steps_bar("painting", quiet) as show:
        output = pipe(
            prompts,
            negative,
            image=None if image is None else _picture(image),
            mask_image=None if mask is None else _picture(mask).max(axis=2),
            strength=strength,
            control_image=steered,
            control_scale=control_scale,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            num_images_per_prompt=n or 1,
            seed=seed,
            callback=show,
        )
    seconds = time.perf_counter() - started
    shared: dict[str, Any] = {"negative_prompt": negative, "lora": pipe.lora_metadata()}
    shared |= {"quantize": pipe.quantized, "options": given}
    if image is not None:
        shared |= {"image": _reference(image), "strength": output.strength}
        shared |= {"mask": _reference(mask)} if mask is not None else {}
    if control is not None:
        shared |= {"control": _reference(control), "control_scale": control_scale}
    files = _write(pipe, output, out, shared)
    return {
        "images": [str(f) for f in files],
        "seconds": round(seconds, 3),
        "seed": output.seeds[0],
    }


def parse_size(size: str | None) -> tuple[int | None, int | None]:
    """(height, width) of "HxW" or "H".

    Raises:
        GessoError: another form.
    """
    if size is None:
        return None, None
    match = re.fullmatch(r"(\d+)(?:[xX](\d+))?", size.strip())
    if match is None:
        raise GessoError(f"The size {size!r} is not of the form HxW: write 64x96.")
    height = int(match[1])
    return height, int(match[2] or height)


def _picture(file: Path, use: str = "painted over") -> np.ndarray:
    """[H, W, 3] uint8."""
    try:
        return load_rgb(file)
    except GessoError as e:
        raise GessoError(f"{file} cannot be {use}: {e}") from None


def _draw_control(
    file: Path, pipe: Pipeline, size: tuple[int | None, int | None], out: Path
) -> Path:
    """Make a picture's control picture of the size that will be painted; returns its file."""
    from PIL import Image

    condition = condition_of(pipe.model.description.adapter)
    if condition is None:
        raise GessoError(
            f"{pipe.source} cannot make control pictures: give a finished one with --control to a "
            "model that has a control branch."
        )
    image, contract = _picture(file, "used for a control picture"), pipe.model.sample
    wanted = (size[0] or contract.height, size[1] or contract.width)
    try:
        drawn = condition(Sample(file.name, image, []), wanted)
    except GessoError as e:
        raise GessoError(f"No control picture can be made of {file}: {e}") from None
    folder = out.parent if out.suffix.lower() == ".png" else out
    folder.mkdir(parents=True, exist_ok=True)
    control = folder / f"{file.stem}-control.png"
    Image.fromarray(drawn).save(control)
    return control


def _reference(file: Path) -> dict[str, str]:
    """How metadata name a picture that was painted over."""
    return {"file": str(file), "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}


def _found_again(like: Path, reference: dict[str, str], option: str) -> Path:
    """The file that metadata name: where it was, or beside the painting.

    Raises:
        GessoError: it is in neither place, or has changed.
    """
    was = Path(reference["file"])
    places = [p for p in (was, like.parent / was.name) if p.is_file()]
    if not places:
        raise GessoError(
            f"{like} was painted over {was}, which is not there: name the picture with {option}."
        )
    for file in places:
        if _reference(file)["sha256"] == reference["sha256"]:
            return file
    raise GessoError(
        f"{like} was painted over {was}, which has changed since: name a picture with {option} "
        "to repaint it anyway."
    )


def _write(pipe: Pipeline, output: PipelineOutput, out: Path, shared: dict[str, Any]) -> list[Path]:
    """One PNG a picture; a file that is already there with the same name is replaced."""
    n = len(output.images)
    if out.suffix.lower() == ".png":
        out.parent.mkdir(parents=True, exist_ok=True)
        files = [out] if n == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(n)]
    else:
        if out.exists() and not out.is_dir():
            raise GessoError(f"{out} is neither a folder nor a .png file: choose another --out.")
        out.mkdir(parents=True, exist_ok=True)
        named = zip(output.prompts, output.seeds, strict=True)
        files = [out / f"{_slug(prompt)}-{seed}.png" for prompt, seed in named]
    for i, file in enumerate(files):
        save_png(output.images[i], file, _metadata(pipe, output, i) | shared)
    return files


def _slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "anything"


def _metadata(pipe: Pipeline, output: PipelineOutput, i: int) -> dict[str, Any]:
    """What a painted PNG carries, with what all pictures of a call share, to paint it again."""
    return {
        "prompt": output.prompts[i],
        "seed": output.seeds[i],
        "model": pipe.source,
        "fingerprint": pipe.model.description.fingerprint,
        "contract": output.contract.model_dump(),
    }
