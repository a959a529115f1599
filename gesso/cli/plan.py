"""`gesso plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gesso.cli._app import app
from gesso.cli._options import Json, Overrides, Recipe, report


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None, typer.Option(help="h100, a100, ...; cpu or none: this machine.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(help="How many share every batch; default 1.")] = None,
    price: Annotated[float | None, typer.Option(help="Dollars an hour of one GPU.")] = None,
    run: Annotated[
        Path | None, typer.Option(help="Where `gesso train` looks for it; default runs/NAME.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell what a recipe will cost: memory, time, money, disk.

    gesso plan pixart-alpha --gpus 8 --gpu h200 --price 3.5
    """
    from gesso.systems import load_stages

    stages = load_stages(recipe, overrides)  # a typing mistake is told before the heavy imports
    from gesso.train.plan.job import plan_stages
    from gesso.train.plan.text import tell

    result = plan_stages(stages, run, gpu=gpu, gpus=gpus, price=price, quiet=as_json)
    report(result, as_json, None, tell)
