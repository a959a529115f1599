"""`gesso demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gesso.cli._app import app
from gesso.cli._options import Json, report, score_table


@app.command()
def demo(
    budget: Annotated[float, typer.Option(help="Minutes of training.")] = 10.0,
    run: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    fresh: Annotated[bool, typer.Option("--fresh", help="Replace an earlier demo.")] = False,
    as_json: Json = False,
) -> None:
    """Train a small PixArt-alpha from nothing, score it and write a report."""
    from gesso.demo import run_demo

    result = run_demo(budget, run, fresh=fresh, quiet=as_json)
    if result.get("interrupted"):
        report(result, as_json, "run", lambda r: "Interrupted: the same command continues it.")
        raise typer.Exit(128 + result["signal"])
    report(result, as_json, None, _demo_done)


def _demo_done(result: dict[str, Any]) -> str:
    scores = score_table(result)
    return (
        f"{scores}\n{result['steps']} steps, {result['images_per_second']:.0f} pictures/s\n"
        f'Paint with it: gesso paint --model {result["run"]} "a red star above a blue square"\n'
        f"Open {result['report']}"
    )
