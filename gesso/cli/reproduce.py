"""`gesso reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gesso.cli._app import app
from gesso.cli._options import Json, report


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help="A system: see `gesso systems`.")],
    quick: Annotated[
        bool, typer.Option("--quick", help="A few steps: exercises the path, proves nothing.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(help="For each arm; default 3, or 1 with --quick.")
    ] = None,
    only: Annotated[str | None, typer.Option(help="One experiment of it.")] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Default runs/reproduce/NAME.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Run finished jobs again.")] = False,
    workers: Annotated[
        int | None, typer.Option(help="Jobs at a time, a thread each; default: one a core.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the small experiments behind a system's claims; the same command continues a stopped one.

    gesso reproduce pixart-alpha --only captions
    """
    from gesso.reproduce.results import markdown
    from gesso.reproduce.run import reproduce as run

    result = run(
        name,
        quick=quick,
        seeds=seeds,
        only=only,
        out=out,
        fresh=fresh,
        workers=workers,
        quiet=as_json,
    )
    if result["interrupted"]:
        report(result, as_json, "out", lambda r: "Interrupted: the same command continues.")
        raise typer.Exit(128 + result["signal"])
    tables = "\n\n".join(markdown(experiment) for experiment in result["experiments"])
    report(result, as_json, "out", lambda r: f"{tables}\n\nReport: {r['report']}")
