"""Finished jobs on disk, and what they come to: means, spread and verdicts."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from gesso.experiments.design import Arm, Experiment
from gesso.experiments.verdict import judge
from gesso.types import GessoError

DONE = "result.json"


def folder_of(out: Path, experiment: str, arm: str, seed: int) -> Path:
    """Where a job works and leaves its result."""
    slug = re.sub(r"[^a-z0-9.]+", "-", arm.lower()).strip("-")
    return out / experiment / slug / f"seed-{seed}"


def definition(experiment: Experiment, arm: Arm, quick: bool) -> str:
    """A short hash of what an arm is said to do: results of another definition do not mix."""
    text = f"{experiment.setting}\n{arm.name}\n{arm.about}\n{quick}"
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read_result(
    out: Path, experiment: Experiment, arm: Arm, seed: int, quick: bool
) -> dict[str, Any] | None:
    """A job's result, or None if it is not finished.

    Raises:
        GessoError: it is not readable, or comes from another definition of the arm.
    """
    file = folder_of(out, experiment.name, arm.name, seed) / DONE
    if not file.is_file():
        return None
    try:
        result: dict[str, Any] = json.loads(file.read_text())
        made_by = result["definition"]
        {k: float(v) for k, v in result["numbers"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise GessoError(f"{file} is not a result: delete it, and the job runs again.") from None
    if made_by != definition(experiment, arm, quick):
        raise GessoError(
            f"{file} was measured when the experiment was defined otherwise: add --fresh, or "
            "choose another folder with --out."
        )
    return result


def summarise(
    experiment: Experiment, results: dict[str, list[dict[str, Any]]], quick: bool
) -> dict[str, Any]:
    """Means and spread of each arm, and the verdict on each claim.

    Args:
        experiment: whose.
        results: arm -> the results of its seeds.
        quick: the numbers mean nothing, and no verdict is given.

    Returns:
        name, claim, setting, metrics, quick; arms: a list of name, about, seeds, seconds, and
        numbers: metric -> {mean, sd (None for one seed), values}; verdicts: a list of text,
        metric, verdict, value, low, high, above.
    """
    arms = []
    for arm in experiment.arms:
        found = results.get(arm.name, [])
        numbers = {}
        for metric in experiment.metrics:
            values = _values(found, metric)
            if values:
                sd = stdev(values) if len(values) > 1 else None
                numbers[metric] = {"mean": mean(values), "sd": sd, "values": values}
        arms.append(
            {
                "name": arm.name,
                "about": arm.about,
                "line": arm.line,
                "at": arm.at,
                "seeds": len(found),
                "seconds": [r["seconds"] for r in found],
                "numbers": numbers,
            }
        )
    verdicts = []
    if not quick:
        for claim in experiment.claims:
            by_arm = {name: _values(found, claim.metric) for name, found in results.items()}
            verdicts.append(asdict(judge(claim, by_arm)))
    return {
        "name": experiment.name,
        "claim": experiment.claim,
        "setting": experiment.setting,
        "metrics": experiment.metrics,
        "figure": experiment.drawn(),
        "at_label": experiment.at_label,
        "quick": quick,
        "arms": arms,
        "verdicts": verdicts,
    }


def _values(results: list[dict[str, Any]], metric: str) -> list[float]:
    values = [r["numbers"].get(metric, math.nan) for r in results]
    return [v for v in values if not math.isnan(v)]


def number(value: float | None, like: float | None = None) -> str:
    """Three decimals, and fewer for large numbers (as many as `like` has): 0.123, 78.9, 1,234."""
    if value is None or math.isnan(value):
        return "–"
    size = abs(value if like is None else like)
    return f"{value:,.{3 if size < 10 else 1 if size < 1000 else 0}f}"


def with_spread(cell: dict[str, Any] | None) -> str:
    """ "0.123 ± 0.004": mean and standard deviation over seeds; one seed has no spread."""
    if cell is None:
        return "–"
    if not cell["sd"]:  # one seed, or a number that does not depend on the seed
        return number(cell["mean"])
    return f"{number(cell['mean'])} ± {number(cell['sd'], cell['mean'])}"


def table(summary: dict[str, Any]) -> list[list[str]]:
    """The header and a row an arm, as text."""
    rows = [["arm", *summary["metrics"].values(), "seeds"]]
    for arm in summary["arms"]:
        cells = [with_spread(arm["numbers"].get(metric)) for metric in summary["metrics"]]
        rows.append([arm["name"], *cells, str(arm["seeds"])])
    return rows


def said(verdict: dict[str, Any]) -> str:
    """A verdict in a sentence."""
    text = f"{verdict['text']}: {verdict['verdict']}"
    if math.isnan(verdict["value"]):
        return text
    interval = f"{number(verdict['low'])} to {number(verdict['high'])}"
    wanted = f", claimed: above {number(verdict['above'])}" if verdict["above"] else ""
    if math.isnan(verdict["low"]):
        return f"{text} ({number(verdict['value'])}; one seed has no spread)"
    return f"{text} ({number(verdict['value'])}, 95 % interval {interval}{wanted})"


def markdown(summary: dict[str, Any]) -> str:
    """An experiment's table and verdicts, readable as they stand and as Markdown."""
    rows = table(summary)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    verdicts = [f"- {said(verdict)}" for verdict in summary["verdicts"]]
    if summary["quick"]:
        verdicts = ["- A quick run only exercises the path: it proves nothing."]
    return "\n".join([f"{summary['name']}: {summary['claim']}", "", *lines, "", *verdicts])
