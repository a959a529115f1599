"""The command line: parse, call, print. No logic; heavy imports happen inside the verbs."""

from __future__ import annotations

import errno
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from gesso import __version__
from gesso.types import GessoError

UNWRITABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG),
)

app = typer.Typer(
    name="gesso",
    help="Train, speed up, steer and judge text-to-image transformers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

CHATTY = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")
"""Loggers that tell at import, where torchao is installed, what it does without on a processor."""

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


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


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
    out: Annotated[Path, typer.Option(help="A folder, or a .png file.")] = Path("paintings"),
    like: Annotated[Path | None, typer.Option(help="Repaint a picture that gesso made.")] = None,
    pack: Annotated[
        Path | None, typer.Option(help="A prompt pack in place of the text encoder.")
    ] = None,
    variant: Variant = None,
    vae: Vae = None,
    text_encoder: TextEncoder = None,
    clean: Clean = None,
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
        out=out,
        like=like,
        pack=pack,
        variant=variant,
        vae=vae,
        text_encoder=text_encoder,
        clean=clean,
        lora=lora or (),
        dtype=dtype,
        device=device,
        low_memory=low_memory,
        quantize=quantize,  # type: ignore[arg-type]
        tiling=tiling,
        quiet=as_json,
    )
    _report(result, as_json, "images", lambda r: "\n".join(r["images"]))


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
    _report(result, as_json, None, _quantized)


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="Run folder; default runs/NAME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run.")] = False,
    as_json: Json = False,
) -> None:
    """Train a model by a recipe."""
    from gesso.systems import load_recipe

    loaded = load_recipe(recipe, overrides)  # a typing mistake is told before the heavy imports
    from gesso.train.run import train_recipe

    result = train_recipe(loaded, run or Path("runs") / loaded.name, resume=resume, quiet=as_json)
    _report(result, as_json, "run", _trained)
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
        _report(
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
    _report(
        result,
        as_json,
        "cache",
        lambda r: (
            f"{r['pictures']} pictures, {r['skipped']} skipped\n"
            f"Train from it: gesso train {recipe} data.cache={folder}"
        ),
    )


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
    _report(result, as_json, "out", _converted)


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
    _report(shown, as_json, None, _score_table)


@app.command()
def systems(
    name: Annotated[str | None, typer.Argument(help="Explain one system.")] = None,
    as_json: Json = False,
) -> None:
    """List the published systems, or explain one."""
    from gesso.systems import describe, table

    rows = [describe(name)] if name else table()
    if as_json:
        print(json.dumps(rows[0] if name else rows))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, show_header=not name)
    for key in rows[0]:
        shown.add_column(key)
    if name:
        shown = Table.grid(padding=(0, 2))
        for key, value in rows[0].items():
            shown.add_row(key, "\n".join(value) if isinstance(value, list) else str(value))
    else:
        for row in rows:
            shown.add_row(*map(str, row.values()))
    Console().print(shown)


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
        _report(result, as_json, "run", lambda r: "Interrupted: the same command continues it.")
        raise typer.Exit(128 + result["signal"])
    _report(result, as_json, None, _demo_done)


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


def _trained(result: dict[str, Any]) -> str:
    said = f"{result['steps']} steps, {result['images_per_second']:.0f} pictures/s"
    said += f", loss {result['loss']:.4f}"
    if result["interrupted"]:
        return f"{said}\nInterrupted: continue with --resume."
    if result["paints"]:
        said += f'\nPaint with it: gesso paint --model {result["run"]} "..."'
    return said


def _converted(result: dict[str, Any]) -> str:
    count = f"{result['layers']} layers" if "layers" in result else f"{result['tensors']} tensors"
    proof = f"{result['from']} -> {result['to']}, {count}, largest difference "
    return "\n".join([f"{proof}{result['largest_difference']:.1e}", *result["notes"]])


def _demo_done(result: dict[str, Any]) -> str:
    scores = _score_table(result)
    return (
        f"{scores}\n{result['steps']} steps, {result['images_per_second']:.0f} pictures/s\n"
        f'Paint with it: gesso paint --model {result["run"]} "a red star above a blue square"\n'
        f"Open {result['report']}"
    )


def _score_table(result: dict[str, Any]) -> str:
    rows = [*result["scores"].items(), ("overall", result["overall"])]
    lines = [f"{tag:<16} {value:.3f}" for tag, value in rows]
    return "\n".join(
        [f"{result['benchmark']}, judge {result['judge']}, {result['n']} pictures", *lines]
    )


def _report(result: dict[str, Any], as_json: bool, place: str | None, say: Any) -> None:
    """One JSON line, or a human summary that ends by naming what was made."""
    if as_json:
        print(json.dumps(result, default=str))
        return
    print(say(result))
    if place in ("run", "cache", "out"):
        print(f"In {result[place]}")


def main() -> None:
    """Entry point: bad input is one sentence on stderr and exit code 2, never a traceback."""
    warnings.showwarning = lambda message, *_: print(f"gesso: {message}", file=sys.stderr)
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        app()
    except GessoError as e:
        print(f"gesso: {e}", file=sys.stderr)
        sys.exit(2)
    except OSError as e:
        if e.errno not in UNWRITABLE:
            raise
        where = f" at {e.filename}" if e.filename else ""
        print(
            f"gesso: Could not write{where}: {e.strerror}; free room or choose another place.",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
