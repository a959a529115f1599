"""`gesso caption` and `gesso captions`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gesso.cli._app import app
from gesso.cli._options import Device, Json, report

Pictures = Annotated[
    str,
    typer.Argument(help="A folder, .tar, .parquet or COCO .json of pictures, or a recipe."),
]
Options = Annotated[
    list[str] | None,
    typer.Argument(help="key=value pairs of the source, such as caption_column=text, or recipe."),
]


@app.command()
def caption(
    path: Pictures,
    options: Options = None,
    model: Annotated[
        str,
        typer.Option("--model", "-m", help="LLaVA, Qwen-VL, BLIP, Florence ...: hub id, folder."),
    ] = ...,  # type: ignore[assignment]
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Default: captions.jsonl in the folder.")
    ] = None,
    kind: Annotated[str, typer.Option(help="Of the captions, for caption_weights.")] = "dense",
    template: Annotated[
        str | None, typer.Option(help="What the model is asked; {caption} is the original.")
    ] = None,
    with_original: Annotated[
        bool, typer.Option("--with-original", help="Tell it the picture's own caption.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0, help="0: the likeliest words.")] = 0.2,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest caption.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at a time.")] = 8,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    device: Device = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    seed: Annotated[int, typer.Option(help="Of what is sampled.")] = 0,
    ray: Annotated[int | None, typer.Option(min=1, help="So many workers of Ray.")] = None,
    as_json: Json = False,
) -> None:
    """Let a model write dense captions beside pictures; an interrupted job is continued."""
    from gesso.captioning.job import caption as write_captions

    result = write_captions(
        path,
        model,
        overrides=options,
        out=out,
        kind=kind,
        template=template,
        with_original=with_original,
        temperature=temperature,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        dtype=dtype,
        device=device,
        limit=limit,
        seed=seed,
        ray=ray,
        quiet=as_json,
    )
    report(result, as_json, "out", _captioned)
    if result["interrupted"]:
        raise typer.Exit(130)


def _captioned(result: dict[str, Any]) -> str:
    lines = [f"{result['pictures']} pictures ({result['resumed']} of them earlier)"]
    if result["empty"]:
        lines.append(f"{result['empty']} without a caption: {', '.join(result['empty_keys'])}")
    lines += [f"{count} skipped: {reason}" for reason, count in result["reasons"].items()]
    if result["interrupted"]:
        lines.append("Interrupted: the same command continues it.")
    else:
        weights = f"data.caption_weights={{caption: 0.4, {result['kind']}: 0.6}}"
        lines.append(f"Train: gesso train RECIPE data.captions='[{result['out']}]' '{weights}'")
    return "\n".join(lines)


@app.command()
def captions(
    path: Pictures,
    options: Options = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Of captions; may be given several times. All.")
    ] = None,
    tagger: Annotated[str, typer.Option(help="Finds the nouns: textblob or spacy.")] = "textblob",
    valid: Annotated[int, typer.Option(min=0, help="Valid nouns occur more often.")] = 10,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many.")] = None,
    as_json: Json = False,
) -> None:
    """Tell how much captions say: the concept density of PixArt-alpha, kind by kind."""
    from gesso.captioning.concepts import concepts

    result = concepts(
        path,
        overrides=options,
        tagger=tagger,
        kinds=kind,
        valid=valid,
        limit=limit,
        quiet=as_json,
    )
    report(result, as_json, None, _density)


def _density(result: dict[str, Any]) -> str:
    heads = "kind", "pictures", "captions", "VN", "DN", "VN/DN", "total", "/picture", "/caption"
    lines = [f"{heads[0]:<14}" + "".join(f"{h:>10}" for h in heads[1:])]
    for r in result["kinds"]:
        counts = r["pictures"], r["captions"], r["valid_nouns"], r["distinct_nouns"]
        lines.append(
            f"{r['kind']:<14}"
            + "".join(f"{n:>10,}" for n in counts)
            + f"{r['valid_share']:>10.1%}{r['total_nouns']:>10,}"
            + f"{r['nouns_per_picture']:>10.1f}{r['nouns_per_caption']:>10.1f}"
        )
    return "\n".join(
        [*lines, f"VN: nouns seen more than {result['valid']} times; DN: distinct nouns"]
    )
