"""What several verbs share: options, and how a result is told."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one machine-readable line.")]
Recipe = Annotated[str, typer.Argument(help="Name of a recipe or system, or a .yaml file.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value pairs, such as train.lr=1e-4 data.size=128.")
]
ModelPath = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Model or run folder, shipped name, or published PixArt weights."
    ),
]
Variant = Annotated[
    str | None, typer.Option(help="Of published weights that do not tell: xl-512, sigma-1024, ...")
]
Vae = Annotated[str | None, typer.Option(help="Autoencoder of published weights without one.")]
TextEncoder = Annotated[str | None, typer.Option(help="Their T5 encoder: folder or hub id.")]
Clean = Annotated[str | None, typer.Option(help="Captions: none, lower or alpha.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: CUDA if there.")]


def score_table(result: dict[str, Any]) -> str:
    rows = [*result["scores"].items(), ("overall", result["overall"])]
    lines = [f"{tag:<16} {value:.3f}" for tag, value in rows]
    return "\n".join(
        [f"{result['benchmark']}, judge {result['judge']}, {result['n']} pictures", *lines]
    )


def report(result: dict[str, Any], as_json: bool, place: str | None, say: Any) -> None:
    """One JSON line, or a human summary that ends by naming what was made."""
    if as_json:
        print(json.dumps(result, default=str))
        return
    print(say(result))
    if place in ("run", "cache", "out"):
        print(f"In {result[place]}")
