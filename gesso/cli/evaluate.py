"""`gesso evaluate` and `gesso compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gesso.cli._app import app
from gesso.cli._options import Device, Json, report


@app.command()
def evaluate(
    benchmark: Annotated[str, typer.Argument(help="scenes, geneval, dsg, ...: docs/evaluation.md")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help="Model, run folder or diffusers pipeline; repeatable."),
    ] = None,
    pictures: Annotated[
        list[Path] | None, typer.Option(help="A folder of pictures to judge; repeatable.")
    ] = None,
    judge: Annotated[
        list[str] | None,
        typer.Option(help="NAME, NAME:PATH or NAME:key=value,...; repeatable."),
    ] = None,
    n: Annotated[
        int | None, typer.Option("--n", "-n", min=1, help="Pictures a prompt; default: published.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many prompts, evenly from the categories.")
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="The prompt file, or its folder.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Metrics: the pictures, or gathered file, to compare with.")
    ] = None,
    level: Annotated[int | None, typer.Option(help="Of scenes; default: the model's.")] = None,
    per_tag: Annotated[int, typer.Option(min=1, help="Scenes: prompts a tag.")] = 20,
    seed: Annotated[int, typer.Option(help="Of pictures, and of scenes' prompts.")] = 0,
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="1: no guidance.")] = None,
    size: Annotated[str | None, typer.Option(help="HxW in pixels, such as 64x96.")] = None,
    grid: Annotated[
        str | None,
        typer.Option(help="Every file of --pictures is a sheet of ROWSxCOLUMNS pictures: 2x2."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; default: evaluations/BENCHMARK.")
    ] = None,
    processes: Annotated[int, typer.Option(min=1, help="That share the work; one a GPU.")] = 1,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Score what is there, and name what is not.")
    ] = False,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Judge models and folders of pictures by a benchmark."""
    from gesso.evals.command import run

    try:
        result = run(
            benchmark,
            models=model or (),
            pictures=pictures or (),
            judges=judge or (),
            n=n,
            limit=limit,
            prompts=prompts,
            reference=reference,
            level=level,
            per_tag=per_tag,
            seed=seed,
            steps=steps,
            guidance_scale=guidance_scale,
            size=size,
            grid=grid,
            out=out,
            processes=processes,
            allow_missing=allow_missing,
            device=device,
            quiet=as_json,
        )
    except KeyboardInterrupt:
        typer.echo("gesso: Interrupted: the same command continues it.", err=True)
        raise typer.Exit(130) from None
    report(result, as_json, "out", _scored)


@app.command()
def compare(
    a: Annotated[Path, typer.Argument(help="A result of gesso evaluate.")],
    b: Annotated[Path, typer.Argument(help="Another.")],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Although judge, prompts or rules differ.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Tell how two results differ, and whether that may be chance."""
    from gesso.evals.compare import compare_files

    report(compare_files(a, b, anyway=anyway), as_json, None, _compared)


def _scored(result: dict[str, Any]) -> str:
    if "say" in result:
        return str(result["say"])
    lines = [f"{result['benchmark']}, judge {result['judge']}"]
    for one in result["results"]:
        lines.append(f"{one['subject']}, {one['n']} pictures")
        rows = [*one["scores"].items(), ("overall", one["overall"])]
        for name, value in rows:
            low, high = one["intervals"].get(name, (None, None))
            between = "" if low is None else f"  {_value(low, one)} to {_value(high, one)}"
            lines.append(f"  {name:<24} {_value(value, one)}{between}")
        if one["abstained"]:
            lines.append(f"  the judge abstained {one['abstained']} times of {one['asked']}")
        if one["missing"]:
            lines.append(f"  without {len(one['missing'])} prompts that have no picture")
    return "\n".join([*lines, f"Open {result['report']}"])


def _value(value: float | None, result: dict[str, Any]) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if result["scale"] == 1 else f"{result['scale'] * value:.2f}"


def _compared(result: dict[str, Any]) -> str:
    lines = [
        f"{result['benchmark']}: A = {result['a']}, B = {result['b']}, "
        f"{result['prompts']} prompts of both"
    ]
    lines += [f"Not measured alike: {'; '.join(result['unlike'])}"] if result["unlike"] else []
    lines.append(f"{'':<24} {'A':>7} {'B':>7} {'A - B':>8}  {'95 % interval':<18} {'p':>7}")
    for name, row in result["scores"].items():
        if row["difference"] is None:
            lines.append(f"{name:<24} {'-':>7}")
            continue
        low, high = row["interval"]
        lines.append(
            f"{name:<24} {row['a']:7.3f} {row['b']:7.3f} {row['difference']:+8.3f}  "
            f"{f'{low:+.3f} to {high:+.3f}':<18} {row['p']:7.4f}"
        )
    return "\n".join(lines)
