"""Whether seeds bear a claim out: one rule for all experiments, fixed before any of them ran.

A claim is a contrast c = sum of w_a mean_a over arms. Its 95 % interval is Welch's,

    c +- t(0.975, v) sqrt(sum of w_a^2 s_a^2 / n_a),

with Satterthwaite's degrees of freedom v. An arm with one seed has no spread of its own: it is
given the pooled spread of the arms that have.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import mean, stdev

from gesso.experiments.design import Claim

SHOWN, NOT_SHOWN, CONTRADICTED = "shown", "not shown at this scale", "contradicted"
NOT_JUDGED = "not judged"
LEVEL = 0.95


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
        verdict: `SHOWN` if the whole interval lies above what was claimed, `CONTRADICTED` if it
            lies below, `NOT_SHOWN` between; `NOT_JUDGED` without numbers or without any spread.
        value: the contrast; nan where an arm has no numbers.
        low, high: its 95 % interval.
    """

    text: str
    metric: str
    verdict: str
    value: float
    low: float
    high: float
    above: float


def judge(claim: Claim, values: dict[str, list[float]]) -> Verdict:
    """Judge a claim.

    Args:
        claim: as fixed beforehand.
        values: the claim's metric over the seeds, of every arm of the experiment.
    """
    nan = math.nan
    parts = [(weight, values.get(arm, [])) for arm, weight in claim.arms.items()]
    if not all(seeds for _, seeds in parts):
        return Verdict(claim.text, claim.metric, NOT_JUDGED, nan, nan, nan, claim.above)
    value = sum(weight * mean(seeds) for weight, seeds in parts)
    half = _half_width(parts, [v for v in values.values() if len(v) > 1])
    low, high = value - half, value + half
    if math.isnan(half):
        verdict = NOT_JUDGED
    elif low > claim.above:
        verdict = SHOWN
    elif high < claim.above:
        verdict = CONTRADICTED
    else:
        verdict = NOT_SHOWN
    return Verdict(claim.text, claim.metric, verdict, value, low, high, claim.above)


def _half_width(parts: list[tuple[float, list[float]]], spread: list[list[float]]) -> float:
    """Half of the 95 % interval; nan where nothing has a spread."""
    from scipy.stats import t

    if not spread:
        return math.nan
    pooled_freedom = sum(len(seeds) - 1 for seeds in spread)
    pooled = sum((len(seeds) - 1) * stdev(seeds) ** 2 for seeds in spread) / pooled_freedom
    total = below = 0.0
    for weight, seeds in parts:
        n = len(seeds)
        variance, freedom = (stdev(seeds) ** 2, n - 1) if n > 1 else (pooled, pooled_freedom)
        part = weight**2 * variance / n
        total += part
        below += part**2 / freedom
    if total == 0:
        return 0.0
    return float(t.ppf((1 + LEVEL) / 2, total**2 / below)) * math.sqrt(total)
