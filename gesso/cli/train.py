"""`gesso train` and `gesso encode`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gesso.cli._app import app
from gesso.cli._options import (
    Clean,
    Device,
    Json,
    ModelPath,
    Overrides,
    Recipe,
    TextEncoder,
    Variant,
    report,
)
from gesso.types import GessoError


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME.")] = None,
    stage: Annotated[str | None, typer.Option(help="Only this stage of the recipe.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model by a recipe, stage by stage where it has several."""
    from gesso.systems import load_stages
    from gesso.train.stages import default_run

    stages = load_stages(recipe, overrides)  # a typing mistake is told before the heavy imports
    from gesso.evals.while_training import scoring
    from gesso.train.stages_run import train_stages

    folder = run or default_run(stages)
    observers = scoring([one.recipe for one in stages])
    result = train_stages(
        stages, folder, only=stage, resume=resume, quiet=as_json, observers=observers
    )
    report(result, as_json, "run", _trained)
    if result["interrupted"]:
        raise typer.Exit(128 + result["signal"])


@app.command()
def encode(
    recipe: Annotated[
        str | None, typer.Argument(help="Name of a recipe or system, or a .yaml file.")
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Default caches/NAME, or NAME.safetensors.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(help="A text file, a prompt a line: make a prompt pack instead.")
    ] = None,
    model: ModelPath = None,
    negative: Annotated[
        str | None, typer.Option(help="A negative prompt that the pack shall hold, too.")
    ] = None,
    variant: Variant = None,
    text_encoder: TextEncoder = None,
    clean: Clean = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Write latents and text features of a recipe's pictures into a cache, or prompts into a pack.

    gesso encode RECIPE, or gesso encode --prompts prompts.txt -o pack.safetensors --model MODEL
    """
    if prompts is not None:
        if recipe is not None:
            raise GessoError(f"Give the recipe {recipe!r} or --prompts, not both.")
        from gesso.prompts import encode_prompts

        pack = encode_prompts(
            prompts,
            out,
            model=model,
            negative=negative,
            device=device,
            variant=variant,
            text_encoder=text_encoder,
            clean=clean,
        )
        report(
            pack,
            as_json,
            None,
            lambda r: (
                f"{r['prompts']} prompts, {r['bytes'] / 2**20:.1f} MiB\n"
                f"Paint them: gesso paint --pack {r['pack']}{f' --model {model}' if model else ''}"
            ),
        )
        return
    if recipe is None:
        raise GessoError("There is nothing to encode: name a recipe, or a file with --prompts.")
    from gesso.systems import load_recipe

    loaded = load_recipe(recipe, overrides)  # a typing mistake is told before the heavy imports
    from gesso.train.run import encode_recipe

    folder = out or Path("caches") / loaded.name
    result = encode_recipe(loaded, folder, quiet=as_json)
    report(
        result,
        as_json,
        "cache",
        lambda r: (
            f"{r['pictures']} pictures, {r['skipped']} skipped\n"
            f"Train from it: gesso train {recipe} data.cache={folder}"
        ),
    )


def _trained(result: dict[str, Any]) -> str:
    said = f"{result['steps']} steps, {result['images_per_second']:.0f} pictures/s"
    said += f", loss {result['loss']:.4f}"
    if "stages" in result:
        said = "\n".join(map(_stage, result["stages"]))
    if result["interrupted"]:
        return f"{said}\nInterrupted: continue with --resume."
    if result["paints"]:
        said += f'\nPaint with it: gesso paint --model {result["run"]} "..."'
    return said


def _stage(stage: dict[str, Any]) -> str:
    done = "was done" if stage["skipped"] else f"{stage['seconds'] / 60:.1f} minutes"
    gate = "".join(f", {name.replace('_', ' ')} {v:.3f}" for name, v in stage["gate"].items())
    return f"{stage['name']}: {stage['steps']} steps, {done}, loss {stage['loss']:.4f}{gate}"
