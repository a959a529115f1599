"""From verdicts to scores, their intervals and their differences.

Every rule here is a function of sums and counts a prompt, so a resample of prompts is a product
with a matrix of weights.

Dims: P prompts, K categories, R resamples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gesso.evals.types import Benchmark, Means

RESAMPLES = 1000
PERMUTATIONS = 10_000
LEVEL = 0.95


@dataclass
class Table:
    """Sums and counts of one subject.

    Attributes:
        ids: [P] prompts.
        strata: [P] first category of each: resamples keep the number of prompts of each.
        names: [K] categories.
        sums, counts: [P, 1 + K]; column 0 is the score.
    """

    ids: list[str]
    strata: list[str]
    names: list[str]
    sums: np.ndarray
    counts: np.ndarray

    def rows(self, ids: Sequence[str], names: Sequence[str]) -> Table:
        """These prompts and categories, in this order; categories that it lacks are empty."""
        place = {key: i for i, key in enumerate(self.ids)}
        picked = [place[key] for key in ids]
        column = {name: i + 1 for i, name in enumerate(self.names)}
        columns = [0, *(column.get(name, -1) for name in names)]
        sums, counts = self.sums[picked][:, columns], self.counts[picked][:, columns]
        absent = [i for i, c in enumerate(columns) if c < 0]
        sums[:, absent] = counts[:, absent] = 0.0
        return Table(list(ids), [self.strata[i] for i in picked], list(names), sums, counts)


def tabulate(rows: Sequence[dict[str, Any]], weight: str) -> Table:
    """Sum up judged prompts.

    Args:
        rows: a prompt each: "id", "tags", and "verdicts", each with "score" and "parts".
        weight: "picture" or "prompt", see `Benchmark.weight`.
    """
    names = list(dict.fromkeys(k for row in rows for v in row["verdicts"] for k in v["parts"]))
    column = {name: i + 1 for i, name in enumerate(names)}
    sums = np.zeros((len(rows), 1 + len(names)))
    counts = np.zeros_like(sums)
    for i, row in enumerate(rows):
        for verdict in row["verdicts"]:
            if verdict["score"] is not None:
                sums[i, 0] += verdict["score"]
                counts[i, 0] += 1
            for name, values in verdict["parts"].items():
                sums[i, column[name]] += sum(values)
                counts[i, column[name]] += len(values)
        if weight == "prompt" and counts[i, 0]:
            sums[i, 0] /= counts[i, 0]
            counts[i, 0] = 1
    strata = [row["tags"][0] if row["tags"] else "" for row in rows]
    return Table([row["id"] for row in rows], strata, names, sums, counts)


def scores(
    benchmark: Benchmark, names: Sequence[str], sums: np.ndarray, counts: np.ndarray
) -> Means:
    """Overall and categories from sums and counts [R, 1 + K]; empty: nan. Each value is [R]."""
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / counts
    parts = {name: means[:, i + 1] for i, name in enumerate(names)}
    overall = benchmark.total(means[:, 0], parts)
    return {"overall": overall, **parts}


def point(benchmark: Benchmark, table: Table) -> dict[str, float]:
    """Overall and categories of all prompts."""
    found = scores(
        benchmark,
        table.names,
        table.sums.sum(0, keepdims=True),
        table.counts.sum(0, keepdims=True),
    )
    return {name: float(value[0]) for name, value in found.items()}


def resample(table: Table, count: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """[R, P] how often each prompt is drawn: with replacement, within its category."""
    generator = np.random.default_rng(seed)
    weights = np.zeros((count, len(table.ids)))
    strata = np.array(table.strata)
    for stratum in sorted(set(table.strata)):
        places = np.flatnonzero(strata == stratum)
        even = np.full(len(places), 1 / len(places))
        weights[:, places] = generator.multinomial(len(places), even, size=count)
    return weights


def intervals(benchmark: Benchmark, table: Table, seed: int = 0) -> dict[str, list[float]]:
    """95 % percentile bootstrap intervals over prompts."""
    weights = resample(table, seed=seed)
    drawn = scores(benchmark, table.names, weights @ table.sums, weights @ table.counts)
    return {name: _range(values) for name, values in drawn.items()}


def _range(values: np.ndarray) -> list[float]:
    known = values[~np.isnan(values)]
    if not len(known):
        return [float("nan"), float("nan")]
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def paired(
    benchmark: Benchmark, a: Table, b: Table, seed: int = 0
) -> dict[str, dict[str, float | list[float]]]:
    """How A differs from B on the same prompts.

    Args:
        a, b: of the same prompts in the same order.

    Returns:
        For the overall score and each category: a, b, difference (a - b), interval (95 %, paired
        bootstrap over prompts) and p (two-sided, paired permutation: A's and B's results of a
        prompt are exchanged at random).
    """
    names = list(dict.fromkeys([*a.names, *b.names]))
    a, b = a.rows(a.ids, names), b.rows(a.ids, names)
    weights = resample(a, seed=seed)
    first, second = point(benchmark, a), point(benchmark, b)

    def of(sums: np.ndarray, counts: np.ndarray) -> Means:
        return scores(benchmark, names, sums, counts)

    drawn_a = of(weights @ a.sums, weights @ a.counts)
    drawn_b = of(weights @ b.sums, weights @ b.counts)
    generator = np.random.default_rng(seed)
    swap = (generator.random((PERMUTATIONS, len(a.ids))) < 0.5).astype(float)  # [R, P]
    moved = swap @ (b.sums - a.sums), swap @ (b.counts - a.counts)
    swapped_a = of(a.sums.sum(0) + moved[0], a.counts.sum(0) + moved[1])
    swapped_b = of(b.sums.sum(0) - moved[0], b.counts.sum(0) - moved[1])
    result: dict[str, dict[str, float | list[float]]] = {}
    for name in first:
        difference = first[name] - second[name]
        by_chance = np.abs(swapped_a[name] - swapped_b[name])
        as_large = np.count_nonzero(by_chance >= abs(difference) - 1e-12)
        result[name] = {
            "a": first[name],
            "b": second[name],
            "difference": difference,
            "interval": _range(drawn_a[name] - drawn_b[name]),
            # The observed assignment is one of the permutations (Phipson and Smyth 2010).
            "p": (1 + as_large) / (1 + PERMUTATIONS),
        }
    return result
