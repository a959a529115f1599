"""`gesso evaluate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from gesso.cli._app import app
from gesso.cli._options import Device, Json, ModelPath, report, score_table


@app.command()
def evaluate(
    benchmark: Annotated[str, typer.Argument(help="scenes")],
    model: ModelPath = None,
    level: Annotated[int | None, typer.Option(help="Of the scenes; default: the model's.")] = None,
    per_tag: Annotated[int, typer.Option(min=1, help="Prompts for each of the six tags.")] = 20,
    n: Annotated[int, typer.Option("-n", min=1, help="Pictures a prompt.")] = 4,
    seed: Annotated[int, typer.Option(help="Of prompts and pictures.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="1: no guidance.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the whole result as JSON.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Judge a model."""
    from gesso.config import module

    result = module("evals", benchmark).evaluate_model(
        model,
        level=level,
        per_tag=per_tag,
        n=n,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        device=device,
        quiet=as_json,
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(result, indent=2) + "\n")
    shown = {k: v for k, v in result.items() if k != "failures"}
    report(shown, as_json, None, score_table)
