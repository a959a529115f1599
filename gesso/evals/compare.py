"""`gesso compare`: two results of one benchmark, prompt by prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gesso.config import module
from gesso.evals.prompt_files import check_keys, read_json
from gesso.evals.stats import paired, tabulate
from gesso.types import GessoError

ALIKE = {
    "benchmark": "the benchmark",
    "revision": "the benchmark's rules",
    "judges": "the judge",
    "prompts": "the prompts",
    "missing": "the prompts without pictures",
}
"""What must be the same for scores to be comparable."""


def compare_files(a: Path, b: Path, *, anyway: bool = False) -> dict[str, Any]:
    """How two results differ, and how likely that is by chance.

    Args:
        a, b: files that `gesso evaluate` wrote.
        anyway: compare what was not measured alike, on the prompts that both have.

    Returns:
        benchmark, a, b (subjects), prompts (how many both have), unlike (what was not measured
        alike) and scores: "overall" and each category, with a, b, difference, interval and p as
        `gesso.evals.stats.paired` tells them; None where one has no value.

    Raises:
        GessoError: a file that is no result, another benchmark, or measured otherwise.
    """
    first, second = _read(a), _read(b)
    if first["file"] != second["file"]:
        raise GessoError(
            f"{a} is of {first['benchmark']} and {b} of {second['benchmark']}: compare results of "
            "one benchmark."
        )
    unlike = [
        f"{what} ({_told(first[key])} in {a}, {_told(second[key])} in {b})"
        for key, what in ALIKE.items()
        if _essence(first[key]) != _essence(second[key])
    ]
    if unlike and not anyway:
        raise GessoError(
            f"These were not measured alike: {'; '.join(unlike)} differ; measure both alike, or "
            "add --anyway."
        )
    benchmark = module("evals.benchmarks", first["file"]).BENCHMARK()
    second_ids = {(row["id"], row["prompt"]) for row in second["rows"]}
    common = [r["id"] for r in first["rows"] if (r["id"], r["prompt"]) in second_ids]
    if not common:
        raise GessoError(f"{a} and {b} have no prompt in common: there is nothing to compare.")
    tables = [tabulate(result["rows"], benchmark.weight) for result in (first, second)]
    left, right = (table.rows(common, table.names) for table in tables)
    scores = {
        name: {key: None if value != value else value for key, value in row.items()}
        for name, row in paired(benchmark, left, right).items()
    }
    return {
        "benchmark": first["benchmark"],
        "a": first["subject"]["name"],
        "b": second["subject"]["name"],
        "prompts": len(common),
        "unlike": unlike,
        "scores": scores,
    }


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise GessoError(f"There is no result {str(file)!r}: give a file that gesso evaluate made.")
    needed = ("format", "file", "subject", "rows", *ALIKE)
    return check_keys(read_json(file), needed, str(file))


def _essence(value: Any) -> Any:
    """What counts of a value: of a judge or prompts their fingerprint."""
    if isinstance(value, dict):
        return value["fingerprint"]
    if isinstance(value, list):
        return [_essence(v) for v in value]
    return value


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value.get('name') or value.get('count')}, {value['fingerprint']}"
    if isinstance(value, list):
        return " + ".join(map(_told, value[:4])) or "none"
    return str(value)
