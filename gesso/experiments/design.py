"""What an experiment is: arms that differ in one thing, and claims that were fixed beforehand.

A system's module has `claim() -> list[Experiment]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

Numbers = dict[str, float]
"""What one training is measured by: metric -> value."""


@dataclass(frozen=True)
class Job:
    """One arm with one seed. It runs in a process of its own, on one thread.

    Attributes:
        seed: of weights, noise and the order of pictures.
        quick: exercise the path in a few seconds; the numbers mean nothing.
        folder: the job's own. It outlives a kill; the job, called again, continues from it.
        shared: common to all jobs of a reproduction, for caches.
    """

    seed: int
    quick: bool
    folder: Path
    shared: Path


@dataclass(frozen=True)
class Arm:
    """One of the things that are compared.

    Attributes:
        name: short; appears in tables and figures.
        about: what is special about it.
        run: trains and measures it.
        seeds: at most so many; None: as many as the experiment runs.
        line, at: of a sweep: which curve the arm belongs to, and where on the x-axis it lies.
    """

    name: str
    about: str
    run: Callable[[Job], Numbers]
    seeds: int | None = None
    line: str = ""
    at: float | None = None


@dataclass(frozen=True)
class Claim:
    """A contrast of arms that is said to exceed a number.

    Attributes:
        text: the claim, in a sentence.
        metric: what is compared.
        arms: arm -> weight; {"a": 1, "b": -1} is the mean of a minus the mean of b.
        above: what the contrast must exceed. "Not worse by more than 0.05" is -0.05.
    """

    text: str
    metric: str
    arms: dict[str, float]
    above: float = 0.0


@dataclass(frozen=True)
class Experiment:
    """Arms at equal cost, and what is claimed about them.

    Attributes:
        name: for `--only`, in lower case without spaces.
        claim: what the paper claims, in a sentence.
        setting: what is done here: data, sizes, and what is equal between the arms.
        arms: with different names.
        claims: judged by `gesso.experiments.verdict.judge`.
        metrics: key -> label with unit, the columns of the table.
        figure: which metrics are drawn; default: those that a claim names.
        at_label: what `Arm.at` is.
    """

    name: str
    claim: str
    setting: str
    arms: list[Arm]
    claims: list[Claim]
    metrics: dict[str, str]
    figure: list[str] = field(default_factory=list)
    at_label: str = ""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        unknown = {a for c in self.claims for a in c.arms} - set(names)
        unmeasured = {c.metric for c in self.claims} | set(self.figure)
        if len(set(names)) < len(names) or unknown or unmeasured - set(self.metrics):
            raise ValueError(
                f"experiment {self.name!r}: arms {names}, unknown in claims: {sorted(unknown)}, "
                f"without a column: {sorted(unmeasured - set(self.metrics))}"
            )

    def arm(self, name: str) -> Arm:
        """The arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)

    def drawn(self) -> list[str]:
        """The metrics of the figure."""
        return self.figure or list(dict.fromkeys(claim.metric for claim in self.claims))
