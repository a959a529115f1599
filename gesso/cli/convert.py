"""`gesso convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gesso.cli._app import app
from gesso.cli._options import Json, TextEncoder, Vae, Variant, report


@app.command()
def convert(
    source: Annotated[str, typer.Argument(help="Weights: a file, a folder or a hub id; a LoRA.")],
    out: Annotated[Path, typer.Argument(help="The file or folder to write.")],
    to: Annotated[str, typer.Option(help="original, diffusers, comfyui, gesso; a LoRA's format.")],
    variant: Variant = None,
    vae: Vae = None,
    text_encoder: TextEncoder = None,
    as_json: Json = False,
) -> None:
    """Convert weights or a LoRA into another format, and prove the result."""
    from gesso.convert.job import convert as convert_weights

    result = convert_weights(source, out, to, variant=variant, vae=vae, text_encoder=text_encoder)
    report(result, as_json, "out", _converted)


def _converted(result: dict[str, Any]) -> str:
    count = f"{result['layers']} layers" if "layers" in result else f"{result['tensors']} tensors"
    proof = f"{result['from']} -> {result['to']}, {count}, largest difference "
    return "\n".join([f"{proof}{result['largest_difference']:.1e}", *result["notes"]])
