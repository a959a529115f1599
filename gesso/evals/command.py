"""What a name after `gesso evaluate` means: a benchmark, a metric, or the judging of judges."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gesso.config import modules, nearest
from gesso.evals.job import Request, evaluate_and_report
from gesso.evals.painting import Settings
from gesso.evals.types import Grid, Options
from gesso.types import GessoError


def run(
    name: str,
    *,
    models: Sequence[str] = (),
    pictures: Sequence[Path] = (),
    judges: Sequence[str] = (),
    n: int | None = None,
    limit: int | None = None,
    prompts: Path | None = None,
    reference: Path | None = None,
    level: int | None = None,
    per_tag: int = 20,
    seed: int = 0,
    steps: int | None = None,
    guidance_scale: float | None = None,
    size: str | None = None,
    grid: str | None = None,
    out: Path | None = None,
    processes: int = 1,
    allow_missing: bool = False,
    device: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Evaluate by name; see `gesso.evals.job.Request` and `gesso.evals.types.Options`.

    A benchmark judges pictures of its prompts, a metric whole folders (`gesso.evals.measure`).
    "judges" judges the judges (`gesso.evals.judge_judges`), "human" asks people (`.human`).

    Raises:
        GessoError: no such benchmark, with the nearest; and as the job does.
    """
    file = name.replace("-", "_")
    if file in modules("evals.metrics"):
        from gesso.evals.measure import measure

        return measure(
            *(file, pictures),
            reference=reference,
            judges=judges,
            limit=limit,
            out=out,
            device=device,
            quiet=quiet,
        )
    if file == "judges":
        from gesso.evals.judge_judges import judge_judges

        return judge_judges(
            judges,
            coco=reference,
            ratings=prompts,
            limit=limit,
            out=out,
            device=device,
            quiet=quiet,
        )
    if file == "human":
        from gesso.evals.human import ask_people

        return ask_people(pictures, out=out, quiet=quiet)
    known = modules("evals.benchmarks")
    if file not in known:
        names = [
            n.replace("_", "-") for n in (*known, *modules("evals.metrics"), "judges", "human")
        ]
        raise GessoError(f"There is no benchmark called {name!r}: {nearest(name, names)}")
    request = Request(
        benchmark=file,
        out=out or Path("evaluations") / file.replace("_", "-"),
        models=tuple(models),
        pictures=tuple(pictures),
        judges=tuple(judges),
        options=Options(prompts=prompts, limit=limit, seed=seed, level=level, per_tag=per_tag),
        settings=Settings(steps, guidance_scale, size, device),
        n=n,
        grid=_grid(grid, pictures),
        allow_missing=allow_missing,
        processes=processes,
        quiet=quiet,
    )
    return evaluate_and_report(request)


def _grid(text: str | None, pictures: Sequence[Path]) -> Grid | None:
    """(rows, columns) of "ROWSxCOLUMNS"."""
    if text is None:
        return None
    if not pictures:
        raise GessoError("--grid tells how files in a folder are divided: give --pictures, too.")
    rows, x, columns = text.lower().partition("x")
    if not x or not (rows.isdecimal() and columns.isdecimal()) or "0" in (rows, columns):
        raise GessoError(f"The grid {text!r} is not of the form ROWSxCOLUMNS: write 2x2.")
    return int(rows), int(columns)
