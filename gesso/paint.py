"""The job behind `gesso paint`: prompts to PNG files that can be repainted."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import Any

from gesso.loading import load
from gesso.pipeline import Pipeline, PipelineOutput
from gesso.png import read_png, save_png
from gesso.progress import steps_bar
from gesso.types import GessoError


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
    out: Path = Path("paintings"),
    like: Path | None = None,
    dtype: str | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Paint `n` pictures of a prompt into PNG files.

    Args:
        prompt: what to paint; may be left out with `like`.
        size: "HxW" in pixels.
        out: a folder, made when absent, or a `.png` file (numbered when n > 1).
        like: a picture that gesso painted; its prompt, seed, contract and model are the defaults.
        quiet: no progress bar.
        For the rest see `gesso.pipeline.Pipeline.__call__`; None means the model's contract.

    Returns:
        images (file names), seconds (of painting, loading excluded), seed (of the first picture).

    Raises:
        GessoError: no prompt, a broken size, a foreign picture, or a model that is not the one
            that painted `like`.
    """
    height, width = _size(size)
    contract: dict[str, Any] = {}
    if like is not None:
        made = read_png(like)
        prompt = made["prompt"] if prompt is None else prompt
        negative = made.get("negative_prompt") if negative is None else negative
        seed = made["seed"] if seed is None else seed
        contract = made["contract"]
        pipe = load(model or made["model"], dtype=dtype or contract["dtype"], device=device)
        found = pipe.model.description.fingerprint
        if model is None and found != made["fingerprint"]:
            raise GessoError(
                f"{like} was painted by model {made['fingerprint']}, but {made['model']} is now "
                f"{found}: name a model with --model to repaint it anyway."
            )
        pipe.model.sample = pipe.model.sample.model_validate(
            contract | {"dtype": pipe.model.sample.dtype}
        )
    else:
        pipe = load(model, dtype=dtype, device=device)
    if prompt is None:
        raise GessoError('There is no prompt: write gesso paint "a red circle".')

    started = time.perf_counter()
    with steps_bar("painting", quiet) as show:
        output = pipe(
            prompt,
            negative,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            num_images_per_prompt=n or 1,
            seed=seed,
            callback=show,
        )
    seconds = time.perf_counter() - started
    files = _write(pipe, output, out, negative)
    return {
        "images": [str(f) for f in files],
        "seconds": round(seconds, 3),
        "seed": output.seeds[0],
    }


def _size(size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return None, None
    match = re.fullmatch(r"(\d+)(?:[xX](\d+))?", size.strip())
    if match is None:
        raise GessoError(f"The size {size!r} is not of the form HxW: write 64x96.")
    height = int(match[1])
    return height, int(match[2] or height)


def _write(pipe: Pipeline, output: PipelineOutput, out: Path, negative: str | None) -> list[Path]:
    """One PNG a picture; a file that is already there with the same name is replaced."""
    n = len(output.images)
    if out.suffix.lower() == ".png":
        out.parent.mkdir(parents=True, exist_ok=True)
        files = [out] if n == 1 else [out.with_stem(f"{out.stem}-{i}") for i in range(n)]
    else:
        if out.exists() and not out.is_dir():
            raise GessoError(f"{out} is neither a folder nor a .png file: choose another --out.")
        out.mkdir(parents=True, exist_ok=True)
        slug = re.sub(r"[^a-z0-9]+", "-", output.prompts[0].lower()).strip("-")[:60] or "anything"
        files = [out / f"{slug}-{seed}.png" for seed in output.seeds]
    for i, file in enumerate(files):
        save_png(output.images[i], file, _metadata(pipe, output, i, negative))
    return files


def _metadata(
    pipe: Pipeline, output: PipelineOutput, i: int, negative: str | None
) -> dict[str, Any]:
    """What a painted PNG carries: all that is needed to paint it again."""
    return {
        "prompt": output.prompts[i],
        "negative_prompt": negative,
        "seed": output.seeds[i],
        "model": pipe.source,
        "fingerprint": pipe.model.description.fingerprint,
        "contract": output.contract.model_dump(),
    }
