"""`gesso paint` and `gesso quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gesso.cli._app import app
from gesso.cli._options import Clean, Device, Json, ModelPath, TextEncoder, Vae, Variant, report


@app.command()
def paint(
    prompt: Annotated[str | None, typer.Argument(help='What to paint; "" for anything.')] = None,
    model: ModelPath = None,
    n: Annotated[int | None, typer.Option("-n", min=1, help="Pictures; default 1.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first picture; default: random.")] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="1: no guidance.")] = None,
    negative: Annotated[str | None, typer.Option(help="What to stay away from.")] = None,
    size: Annotated[str | None, typer.Option(help="HxW in pixels, such as 64x96.")] = None,
    image: Annotated[Path | None, typer.Option(help="A picture to paint over.")] = None,
    strength: Annotated[float | None, typer.Option(help="How far, in (0, 1]; 0.8.")] = None,
    mask: Annotated[Path | None, typer.Option(help="Its white parts are painted over.")] = None,
    control: Annotated[
        Path | None, typer.Option(help="A control picture, for a model with a control branch.")
    ] = None,
    control_from: Annotated[
        Path | None, typer.Option(help="A picture whose edges, or the like, are the control.")
    ] = None,
    control_scale: Annotated[
        float | None, typer.Option(help="How strongly; default 1, 0 is without.")
    ] = None,
    out: Annotated[Path, typer.Option(help="A folder, or a .png file.")] = Path("paintings"),
    like: Annotated[Path | None, typer.Option(help="Repaint a picture that gesso made.")] = None,
    pack: Annotated[
        Path | None, typer.Option(help="A prompt pack in place of the text encoder.")
    ] = None,
    variant: Variant = None,
    vae: Vae = None,
    text_encoder: TextEncoder = None,
    clean: Clean = None,
    controlnet: Annotated[
        str | None, typer.Option(help="Control branch for published PixArt weights.")
    ] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="FILE or FILE:WEIGHT; may be given several times.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32 or bfloat16.")] = None,
    device: Device = None,
    low_memory: Annotated[
        bool | None,
        typer.Option(help="Text encoder and denoiser in turn; default: where memory is short."),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(help="int8 or bfloat16: smaller weights; see gesso quantize.")
    ] = None,
    tiling: Annotated[
        bool, typer.Option("--tiling", help="Decode in overlapping tiles: for 2K on little memory.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Paint a prompt."""
    from gesso.paint import paint_to_files

    result = paint_to_files(
        prompt,
        model=model,
        n=n,
        seed=seed,
        steps=steps,
        guidance_scale=guidance_scale,
        negative=negative,
        size=size,
        image=image,
        mask=mask,
        strength=strength,
        control=control,
        control_from=control_from,
        control_scale=control_scale,
        out=out,
        like=like,
        pack=pack,
        variant=variant,
        vae=vae,
        text_encoder=text_encoder,
        clean=clean,
        controlnet=controlnet,
        lora=lora or (),
        dtype=dtype,
        device=device,
        low_memory=low_memory,
        quantize=quantize,  # type: ignore[arg-type]
        tiling=tiling,
        quiet=as_json,
    )
    report(result, as_json, "images", lambda r: "\n".join(r["images"]))


@app.command(name="quantize")
def quantize_(
    prompt: Annotated[
        str, typer.Argument(help="What to paint for the comparison.")
    ] = "a red circle left of a blue square",
    model: ModelPath = None,
    to: Annotated[str, typer.Option(help="int8 or bfloat16.")] = "int8",
    n: Annotated[int, typer.Option("-n", min=1, help="Pictures.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the first picture.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    size: Annotated[str | None, typer.Option(help="HxW in pixels, such as 64x96.")] = None,
    variant: Variant = None,
    vae: Vae = None,
    text_encoder: TextEncoder = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Tell what smaller weights cost: PSNR of same-seed pictures, error of every layer."""
    from gesso.paint import parse_size
    from gesso.quality import measure_quantization

    result = measure_quantization(
        to,  # type: ignore[arg-type]
        prompt,
        model=model,
        n=n,
        seed=seed,
        steps=steps,
        size=parse_size(size),
        variant=variant,
        vae=vae,
        text_encoder=text_encoder,
        device=device,
        quiet=as_json,
    )
    report(result, as_json, None, _quantized)


def _quantized(result: dict[str, Any]) -> str:
    lines = [f"{'relative error of layers':<48} {'mean':>8} {'worst':>8}"]
    for kind, (mean, worst) in result["kinds"].items():
        lines.append(f"{kind:<48} {mean:8.5f} {worst:8.5f}")
    lines.append(f"{'all':<48} {result['error_mean']:8.5f} {result['error_worst']:8.5f}")
    for part, size in result["bytes_before"].items():
        after = result["bytes_after"][part]
        lines.append(f"{part}: {size / 2**20:.1f} MiB -> {after / 2**20:.1f} MiB")
    psnr = result["psnr"]
    lines.append(
        f"Same-seed pictures against float32 ({result['pictures']}): "
        + ("equal" if psnr is None else f"PSNR {psnr:.1f} dB, worst {result['psnr_worst']:.1f} dB")
    )
    return "\n".join(lines)
