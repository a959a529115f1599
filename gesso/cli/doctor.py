"""`gesso doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gesso.cli._app import app
from gesso.cli._options import Device, Json, report
from gesso.types import GessoError


@app.command()
def doctor(
    path: Annotated[
        str, typer.Argument(help="A folder, .tar, .parquet or COCO .json, or a recipe.")
    ],
    options: Annotated[
        list[str] | None,
        typer.Argument(
            help="key=value pairs of the source, such as caption_column=text, or recipe."
        ),
    ] = None,
    size: Annotated[
        int | None, typer.Option(min=8, help="Base size; 256, or the recipe's.")
    ] = None,
    buckets: Annotated[
        bool | None, typer.Option(help="Aspect-ratio buckets or squares; the recipe's, or buckets.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Measures captions: folder or hub id; the recipe's.")
    ] = None,
    tokens: Annotated[str, typer.Option(help="Limits for --tokenizer.")] = "120,300",
    clip: Annotated[
        str | None, typer.Option(help="CLIP or SigLIP: do captions fit their pictures?")
    ] = None,
    cache: Annotated[str | None, typer.Option(help="A feature cache; the recipe's.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Default: doctor/NAME.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Find what is wrong with pictures and captions before a training does."""
    try:
        limits = tuple(int(n) for n in tokens.split(","))
    except ValueError:
        limits = ()
    if not limits or min(limits) < 1:
        raise GessoError(f"--tokens {tokens!r} is no list of numbers above 0: write 120,300.")
    from gesso.doctor.job import examine

    result = examine(
        path,
        overrides=options,
        size=size,
        buckets=buckets,
        tokenizer=tokenizer,
        limits=limits,
        clip=clip,
        cache=cache,
        out=out,
        limit=limit,
        device=device,
        quiet=as_json,
    )
    report(result, as_json, "out", _examined)


def _examined(result: dict[str, Any]) -> str:
    lines = [f"{result['pictures']:,} pictures looked at, {result['skipped']:,} skipped"]
    for k in result["kinds"]:
        count = "-" if k["skipped"] else f"{k['count']:,}"
        about = f"not looked for: {k['skipped']}" if k["skipped"] else k["about"]
        lines.append(f"{k['severity']:<8} {k['kind']:<17} {count:>7}  {about}")
    return "\n".join([*lines, *result["notes"], f"Open {result['page']}"])
