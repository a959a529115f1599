"""Run a system's experiments, judge them, and write table, figures and page."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from gesso import report
from gesso.config import nearest
from gesso.experiments.design import Experiment
from gesso.reproduce import results
from gesso.reproduce.figure import draw
from gesso.reproduce.jobs import Task, run_all
from gesso.systems import find, names
from gesso.types import GessoError

SEEDS = 3
QUICK_NOTE = "A quick run only exercises the path: its numbers prove nothing."


def reproduce(
    name: str,
    *,
    quick: bool = False,
    seeds: int | None = None,
    only: str | None = None,
    out: Path | None = None,
    fresh: bool = False,
    workers: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """`reproduce_claims` for a system by name; the default folder is `runs/reproduce/NAME`.

    Raises:
        GessoError: as there; an unknown system lists the nearest, one without claims those that
            have some.
    """
    system = find(name)
    if not hasattr(system, "claim"):
        known = [n for n in names() if hasattr(find(n), "claim")]
        raise GessoError(f"{name!r} measures no claim yet: {nearest(name, known)}")
    if out is None:
        out = Path("runs/reproduce") / (name.replace("_", "-") + ("-quick" if quick else ""))
    return reproduce_claims(
        system.__name__,
        title=system.SYSTEM.title,
        quick=quick,
        seeds=seeds,
        only=only,
        out=out,
        fresh=fresh,
        workers=workers,
        quiet=quiet,
    )


def reproduce_claims(
    claims: str,
    *,
    title: str,
    out: Path,
    quick: bool = False,
    seeds: int | None = None,
    only: str | None = None,
    fresh: bool = False,
    workers: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run what is not finished of the experiments that `claim()` of a module lists, and report.

    Args:
        claims: the module's import path.
        title: of the page.
        out: a folder; finished jobs in it are not run again, unfinished ones continue.
        quick: a few steps a job; exercises the path and proves nothing.
        seeds: for each arm, 0 .. seeds - 1; default 3, or 1 if quick.
        only: the name of one experiment.
        fresh: run everything again.
        workers: jobs at a time, one thread each; default: one a core.
        quiet: show no progress.

    Returns:
        out, report (an HTML file), quick, interrupted, signal, and experiments: a list of what
        `gesso.reproduce.results.summarise` returns, with `figure_file`. If interrupted, only
        out, interrupted and signal.

    Raises:
        GessoError: no such experiment, seeds or workers below 1, a job that failed, a folder with
            results of another definition.
    """
    experiments = _chosen(claims, only)
    seeds = seeds if seeds is not None else (1 if quick else SEEDS)
    workers = workers if workers is not None else _cores()
    for what, value in (("seeds", seeds), ("workers", workers)):
        if value < 1:
            raise GessoError(f"--{what} {value} leaves nothing to run: give 1 or more.")
    out = out.resolve()
    if fresh:
        for experiment in experiments:
            shutil.rmtree(out / experiment.name, ignore_errors=True)
    tasks = [
        Task(claims, experiment.name, arm.name, seed, out, quick)
        for experiment in experiments
        for seed in range(seeds)
        for arm in experiment.arms
        if seed < (arm.seeds or seeds)
    ]
    by_name = {experiment.name: experiment for experiment in experiments}

    def result(task: Task) -> dict[str, Any] | None:
        experiment = by_name[task.experiment]
        arm = experiment.arm(task.arm)
        return results.read_result(out, experiment, arm, task.seed, quick)

    def say(task: Task) -> str:
        found = result(task)
        if found is None:
            raise GessoError(f"The job {task} ended without a result, see {task.folder}.")
        shown = by_name[task.experiment].drawn()
        numbers = found["numbers"]
        return ", ".join(f"{m} {results.number(numbers[m])}" for m in shown if m in numbers)

    unfinished = [task for task in tasks if result(task) is None]
    signal = run_all(unfinished, workers, quiet, say)
    if signal:
        return {"out": str(out), "interrupted": True, "signal": signal}
    summaries = []
    for experiment in experiments:
        found: dict[str, list[dict[str, Any]]] = {}
        for task in tasks:
            if task.experiment == experiment.name and (one := result(task)) is not None:
                found.setdefault(task.arm, []).append(one)
        summary = results.summarise(experiment, found, quick)
        figure = out / f"{experiment.name}.png"
        draw(summary, figure)
        summaries.append({**summary, "figure_file": str(figure)})
    (out / "results.json").write_text(json.dumps(summaries, indent=2) + "\n")
    tables = "\n\n".join(results.markdown(summary) for summary in summaries)
    (out / "results.md").write_text(tables + "\n")
    page = _page(out, title, summaries, quick)
    return {
        "out": str(out),
        "report": str(page),
        "quick": quick,
        "interrupted": False,
        "signal": None,
        "experiments": summaries,
    }


def _chosen(claims: str, only: str | None) -> list[Experiment]:
    import importlib

    experiments: list[Experiment] = importlib.import_module(claims).claim()
    names = [experiment.name for experiment in experiments]
    if only is None:
        return experiments
    if only not in names:
        raise GessoError(f"There is no experiment {only!r} here: {nearest(only, names)}")
    return [experiment for experiment in experiments if experiment.name == only]


def _page(out: Path, title: str, summaries: list[dict[str, Any]], quick: bool) -> Path:
    page = out / "report.html"
    experiments = [
        {
            **summary,
            "table": results.table(summary),
            "said": [
                {"text": results.said(verdict), "verdict": verdict["verdict"]}
                for verdict in summary["verdicts"]
            ],
            "figure_uri": report.file_uri(Path(summary["figure_file"])),
            "sheets": _sheets(out, summary),
            "time": report.duration(sum(sum(arm["seconds"]) for arm in summary["arms"])),
        }
        for summary in summaries
    ]
    report.write_page(
        page,
        "reproduction.html.j2",
        title=title,
        note=QUICK_NOTE if quick else "",
        experiments=experiments,
    )
    return page


def _sheets(out: Path, summary: dict[str, Any]) -> list[dict[str, str]]:
    """What seed 0 of each arm painted last, where it painted validation prompts."""
    found = []
    for arm in summary["arms"]:
        folder = results.folder_of(out, summary["name"], arm["name"], 0)
        sheets = sorted(folder.glob("**/samples/*.png"), key=lambda f: f.stat().st_mtime)
        if sheets:
            found.append({"name": arm["name"], "image": report.file_uri(sheets[-1])})
    return found


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
