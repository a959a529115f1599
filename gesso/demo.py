"""`gesso demo`: train a small PixArt-alpha from nothing, score it, write a report."""

from __future__ import annotations

import json
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from gesso import report
from gesso.config import Recipe, load_recipe
from gesso.evals.job import Request, evaluate
from gesso.evals.types import Options
from gesso.train.flops import training_flops
from gesso.train.run import encode_recipe, grid_columns, train_recipe
from gesso.types import GessoError

COST = "cost.json"
MOST_FRAMES = 6


def run_demo(
    minutes: float, run: Path, *, fresh: bool = False, quiet: bool = False, per_tag: int = 20
) -> dict[str, Any]:
    """Encode and train within a budget, then score on held-out combinations and report.

    An unfinished demo in `run` continues.

    Args:
        minutes: wall-clock budget of encoding and training together; scoring comes on top.
        run: the run's folder.
        fresh: delete an earlier demo there first.
        quiet: show no progress.
        per_tag: prompts for each of GenEval's six tags.

    Returns:
        report (file), run, steps, images_per_second, loss, benchmark, judge, overall, scores, n;
        or what training returned, with `interrupted`.

    Raises:
        GessoError: the budget is not positive, or there is a finished demo in `run`.
    """
    if minutes <= 0:
        raise GessoError(f"The budget of {minutes} minutes leaves no time to train: give more.")
    if fresh and (run / "recipe.yaml").exists():
        shutil.rmtree(run)
    page = run / "report.html"
    if page.exists():
        raise GessoError(f"There is a finished demo in {run}: see {page}, or add --fresh.")
    resume = (run / "recipe.yaml").exists()

    cost = _Cost(run)
    cache = run / "cache"
    recipe = load_recipe("demo", [f"data.cache={cache}"])
    started = time.perf_counter()
    encoded = encode_recipe(recipe, cache, quiet=quiet)
    cost.add("encoding", time.perf_counter() - started)
    left = minutes - cost["encoding"] / 60
    if left <= 0:
        raise GessoError(
            f"Encoding the pictures took the whole budget of {minutes} minutes: give more."
        )
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"minutes": left})})
    trained = train_recipe(recipe, run, resume=resume, quiet=quiet)
    if trained["interrupted"]:
        return trained
    cost["training"] = trained["seconds"]

    started = time.perf_counter()
    request = Request(
        "scenes",
        run / "evaluation",
        models=(str(run),),
        options=Options(per_tag=per_tag),
        quiet=quiet,
    )
    (scores,) = evaluate(request)
    cost.add("scoring", time.perf_counter() - started)
    write_report(recipe, run, trained, scores, cost, encoded["pictures"])
    return {
        "report": str(page),
        "run": str(run),
        "steps": trained["steps"],
        "images_per_second": trained["images_per_second"],
        "loss": trained["loss"],
        **{k: scores[k] for k in ("benchmark", "judge", "overall", "scores", "n")},
    }


class _Cost(dict[str, float]):
    """Seconds by what they were spent on, kept in the run's folder across interruptions."""

    def __init__(self, run: Path) -> None:
        super().__init__()
        self.file = run / COST
        if self.file.is_file():
            self.update(json.loads(self.file.read_text()))

    def add(self, what: str, seconds: float) -> None:
        self[what] = self.get(what, 0.0) + seconds
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self))


def write_report(
    recipe: Recipe,
    run: Path,
    trained: dict[str, Any],
    scores: dict[str, Any],
    cost: dict[str, float],
    pictures: int,
) -> Path:
    """Write `report.html` into a finished run; returns the file."""
    seen = trained["steps"] * recipe.train.batch_size
    flops = training_flops(recipe) * seen
    total = sum(cost.values())
    ledger = [
        ("encoding", cost["encoding"], f"{pictures:,} scenes to latents, once"),
        (
            "training",
            cost["training"],
            f"{trained['steps']:,} steps of {recipe.train.batch_size} pictures, "
            f"{trained['images_per_second']:.0f} pictures/s, {flops / 1e12:,.0f} TFLOP, "
            f"{flops / cost['training'] / 1e9:,.0f} GFLOP/s; validation pictures included",
        ),
        ("scoring", cost["scoring"], f"{scores['n']} pictures painted and read"),
        ("in all", total, f"{trained['parameters'] / 1e6:.1f} M trained parameters"),
    ]
    overall = scores["overall"]
    page = run / "report.html"
    report.write_page(
        page,
        title="A text-to-image model, trained on this machine",
        about=f"{recipe.about}. Nothing was pretrained but the small autoencoder between pixels "
        "and latents; text encoder and transformer started from random weights.",
        cards=[
            {"name": "right on held-out combinations", "value": f"{100 * overall:.0f} %"},
            {"name": "training", "value": report.duration(cost["training"])},
            {"name": "pictures seen", "value": f"{seen:,}"},
            {"name": "pictures a second", "value": f"{trained['images_per_second']:.0f}"},
        ],
        prompts=recipe.validation.prompts,
        frames=_frames(run, recipe),
        cell=104,
        loss_plot=report.loss_plot(report.read_metrics(run)),
        score_note="GenEval's six tags and rules, with gesso's reader as the detector, on "
        "combinations of shape, colour, count and relation that training never showed.",
        scores=[{"tag": tag.replace("_", " "), "value": v} for tag, v in scores["scores"].items()]
        + [{"tag": "overall", "value": overall}],
        failures=_failures(scores),
        ledger=[
            {"name": name, "value": report.duration(seconds), "note": note}
            for name, seconds, note in ledger
        ],
        commands=(
            f'gesso paint --model {run} "a red star above a blue square"\n'
            f'gesso paint --model {run} -n 8 "three green triangles"\n'
            f"gesso evaluate scenes --model {run} --per-tag 50\n"
            f"gesso demo --budget 60 --run runs/longer\n"
            "gesso train my-recipe.yaml data.source.path=my-pictures"
        ),
    )
    return page


def _frames(run: Path, recipe: Recipe) -> list[dict[str, Any]]:
    """A few validation sheets through time, cut into their pictures."""
    from PIL import Image

    sheets = sorted((run / "samples").glob("step-*.png"))
    if len(sheets) > MOST_FRAMES:
        # Early training changes most, so the frames are spread evenly in the logarithm.
        places = np.geomspace(1, len(sheets), MOST_FRAMES).round().astype(int) - 1
        sheets = [sheets[i] for i in sorted({0, *places.tolist()})]
    n = len(recipe.validation.prompts)
    columns = grid_columns(n)
    width, height = recipe.sample.width, recipe.sample.height
    frames = []
    for sheet in sheets:
        with Image.open(sheet) as image:
            pixels = np.asarray(image.convert("RGB"))
        cells = [
            pixels[r * height : (r + 1) * height, c * width : (c + 1) * width]
            for r in range(math.ceil(n / columns))
            for c in range(columns)
        ][:n]
        step = int(sheet.stem.removeprefix("step-"))
        frames.append({"label": f"step {step:,}", "images": [report.data_uri(c) for c in cells]})
    return frames


def _failures(scores: dict[str, Any], most: int = 6) -> list[dict[str, str]]:
    """Some pictures that were judged wrong, from different tags, with the judge's reasons."""
    wrong = [
        (row, verdict)
        for row in scores["rows"]
        for verdict in row["verdicts"]
        if verdict["reasons"]
    ]
    seen: dict[str, int] = {}
    turns = []
    for place, (row, _) in enumerate(wrong):
        tag = row["tags"][0]
        seen[tag] = seen.get(tag, -1) + 1
        turns.append((seen[tag], place))
    chosen = [wrong[place] for _, place in sorted(turns)[:most]]
    return [
        {
            "prompt": row["prompt"],
            "reason": "; ".join(verdict["reasons"]),
            "image": report.file_uri(Path(verdict["pictures"][0]["file"])),
        }
        for row, verdict in chosen
    ]
