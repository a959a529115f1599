"""`report.html` of an evaluation: leaderboard, categories, pictures with the judge's reasons."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gesso import report
from gesso.evals.types import Benchmark, Picture, Tile
from gesso.types import GessoError

SHOWN = 8  # pictures in a gallery
THUMBNAIL = 256  # pixels; larger pictures are shown smaller
COLORS = ("#b3532d", "#2d5f73", "#5d8a4a", "#8a6bb0", "#c99a2e", "#6f6a60")


def write(file: Path, benchmark: Benchmark, results: Sequence[dict[str, Any]], own: bool) -> None:
    """Write the page.

    Args:
        results: of one benchmark, a subject each.
        own: they were judged by the benchmark's own judges, as the published scores were.
    """
    first = results[0]
    names = list(dict.fromkeys(name for r in results for name in r["scores"]))
    subjects = [
        {
            "name": r["subject"]["name"],
            "color": COLORS[i % len(COLORS)],
            "kind": _kind(r),
            "overall": _cell(r, "overall"),
            "notes": _notes(r),
            "worst": _gallery(r, best=False),
            "best": _gallery(r, best=True),
            "result": r,
        }
        for i, r in enumerate(results)
    ]
    report.write_page(
        file,
        "evaluation.html.j2",
        title=benchmark.title,
        about=_about(first),
        subjects=subjects,
        board=_board(subjects, benchmark, names, own),
        columns=names if len(names) <= 10 else [],
        cards=_cards(first) if len(results) == 1 else [],
        categories=[
            {"name": name.replace("_", " "), "cells": [_cell(r, name) for r in results]}
            for name in names
        ],
        prompts=first["prompts"],
        judges=first["judges"],
        versions=first["versions"],
    )


def _about(result: dict[str, Any]) -> str:
    judge, published = result["judge"], result["published_judge"]
    asked = f" The published protocol asks for {published}." if published else ""
    return (
        f"{result['benchmark']}: {result['prompts']['count']} prompts, judged by {judge}; rules: "
        f"{result['protocol']}.{asked} Bars show 95 % bootstrap intervals over prompts."
    )


def _kind(result: dict[str, Any]) -> str:
    if result["subject"]["kind"] == "pictures":
        rows, columns = result["subject"].get("grid", (1, 1))
        sheets = f" on sheets of {rows} x {columns}" if (rows, columns) != (1, 1) else ""
        return f"a folder of {result['n']} pictures{sheets}"
    settings = result["subject"]["settings"]
    steps, scale = settings.get("num_inference_steps"), settings.get("guidance_scale")
    how = [f"{result['n']} pictures painted"]
    how += [f"{steps} steps"] if steps else []
    how += [f"guidance {scale:g}"] if scale else []
    return ", ".join(how)


def _cards(result: dict[str, Any]) -> list[dict[str, str]]:
    cell = _cell(result, "overall")
    cards = [{"name": f"overall, {cell['range']}", "value": cell["text"]}]
    cards += [{"name": "pictures judged", "value": f"{result['n']:,}"}]
    if result["correct"]:
        cards.append({"name": "pictures fully right", "value": f"{100 * result['correct']:.0f} %"})
        share = f"{100 * result['any_correct']:.0f} %"
        cards.append({"name": "prompts with a right picture", "value": share})
    return cards


def _notes(result: dict[str, Any]) -> list[str]:
    notes = []
    if result["abstained"]:
        share = 100 * result["abstained"] / max(result["asked"], 1)
        notes.append(
            f"The judge abstained from {result['abstained']} of {result['asked']} questions "
            f"({share:.1f} %); they count neither as yes nor as no."
        )
    if result["missing"]:
        notes.append(
            f"{len(result['missing'])} prompts have no picture and are not in the score: "
            + ", ".join(result["missing"][:20])
            + (", ..." if len(result["missing"]) > 20 else "")
        )
    if result["corrupt"]:
        files = ", ".join(c["file"] for c in result["corrupt"][:5])
        notes.append(f"{len(result['corrupt'])} files cannot be read: {files}")
    return notes


def _cell(result: dict[str, Any], name: str) -> dict[str, Any]:
    """A score as text, and its bar and interval in percent of the scale."""
    value = result["overall"] if name == "overall" else result["scores"].get(name)
    if value is None:
        return {"text": "–", "bar": None, "range": ""}
    scale = result["scale"]
    low, high = (v if v is not None else value for v in result["intervals"][name])
    return {
        "text": shown(value, scale),
        "value": value,
        "range": f"{shown(low, scale)} to {shown(high, scale)}",
        "bar": _percent(value),
        "low": _percent(low),
        "width": _percent(high) - _percent(low),
    }


def shown(value: float, scale: int) -> str:
    """A score as it is printed: 0.533, or 53.30 on a scale of 100."""
    return f"{value:.3f}" if scale == 1 else f"{scale * value:.2f}"


def _as_published(value: float | None, scale: int) -> str:
    """With two decimals, or three where so many were published."""
    if value is None:
        return "–"
    text = f"{scale * value:.3f}"
    return text.removesuffix("0")


def _percent(value: float) -> float:
    return round(100 * min(max(value, 0.0), 1.0), 2)


def _board(
    subjects: list[dict[str, Any]],
    benchmark: Benchmark,
    names: list[str],
    own: bool,
) -> list[dict[str, Any]]:
    """Rows of ours and of published scores, best first; empty where there is nothing to rank."""
    published, scale = benchmark.published, benchmark.scale
    if len(subjects) < 2 and not published:
        return []
    rows = []
    for subject in subjects:
        scores = [_cell(subject["result"], name) for name in names]
        rows.append(
            {
                "name": subject["name"],
                "color": subject["color"],
                "overall": subject["overall"],
                "scores": scores,
                "judge": subject["result"]["judge"],
                "mark": "measured here",
            }
        )
    for row in published:
        cells = [row.scores.get(name) for name in names]
        value = row.scores.get("overall")
        rows.append(
            {
                "name": row.model,
                "color": "",
                "overall": {"text": _as_published(value, scale), "value": value},
                "scores": [{"text": _as_published(v, scale)} for v in cells],
                "judge": row.judge,
                "mark": f"published{'' if own else ', other judge'}",
            }
        )
    sign = 1 if benchmark.lower_is_better else -1
    return sorted(rows, key=lambda r: sign * (r["overall"].get("value") or 0.0))


def _gallery(result: dict[str, Any], best: bool) -> list[dict[str, str]]:
    """The best or worst pictures, from as many categories as there are."""
    entries = [
        (row, verdict)
        for row in result["rows"]
        for verdict in row["verdicts"]
        if verdict["score"] is not None and (verdict["reasons"] or best)
    ]
    entries.sort(key=lambda e: -e[1]["score"] if best else e[1]["score"])
    if entries and best:
        entries = [e for e in entries if e[1]["score"] > 0]
    turns: dict[str, int] = {}
    ranked = []
    for place, (row, verdict) in enumerate(entries):
        tag = row["tags"][0] if row["tags"] else ""
        turns[tag] = turns.get(tag, -1) + 1
        ranked.append((turns[tag], place, row, verdict))
    shown_entries = sorted(ranked, key=lambda e: e[:2])[:SHOWN]
    gallery = []
    for _, _, row, verdict in shown_entries:
        image = _thumbnail(verdict["pictures"][0])
        if image:
            gallery.append(
                {
                    "prompt": _short(row["prompt"]),
                    "reason": _short("; ".join(verdict["reasons"])),
                    "score": f"{verdict['score']:.2f}",
                    "image": image,
                }
            )
    return gallery


def _short(text: str, most: int = 160) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def _thumbnail(told: dict[str, Any]) -> str:
    """A data URI of a result's picture, at most 256 pixels a side; "" where the file is gone."""
    from PIL import Image

    picture = Picture(Path(told["file"]))
    if "tile" in told:
        picture = Tile(picture, tuple(told["tile"]), tuple(told["grid"]))
    try:
        pixels = picture.pixels
    except (GessoError, OSError):
        return ""
    if max(pixels.shape[:2]) <= THUMBNAIL // 2:
        return report.data_uri(pixels)
    image = Image.fromarray(pixels)
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
