"""What metrics over whole sets of pictures are made of: what they gather, and how it is kept.

A metric is one file in `gesso/evals/metrics/`, found by its name, with

    JUDGE = "inception"                     the judge that is taken when none is named
    def build(judge) -> Metric

It gathers something of each picture (never the pictures), in float64 and in a fixed order, so that
a gathering that was interrupted and went on ends with the same digits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from gesso.evals.types import Image, Judge
from gesso.types import GessoError

State = dict[str, np.ndarray]


class Gathered(ABC):
    """What a metric knows of the pictures so far."""

    @abstractmethod
    def add(self, rows: np.ndarray) -> None:
        """Take in rows [B, D], one a picture."""

    @property
    @abstractmethod
    def n(self) -> int:
        """Pictures so far."""

    @abstractmethod
    def state(self) -> State:
        """Everything, as arrays."""

    @classmethod
    @abstractmethod
    def of(cls, state: State) -> Gathered:
        """The inverse of `state`. Raises KeyError for the state of another kind."""


class Moments(Gathered):
    """Count, mean and scatter of rows, in memory that does not grow with their number.

    Chan, Golub & LeVeque, "Algorithms for computing the sample variance" (1983), eq. 2.1, in
    float64: exact to rounding however the rows are parted.
    """

    def __init__(self) -> None:
        self.count = 0
        self.mean = np.zeros(0)
        self.scatter = np.zeros((0, 0))

    @property
    def n(self) -> int:
        return self.count

    def add(self, rows: np.ndarray) -> None:
        rows = np.asarray(rows, np.float64)
        if not np.isfinite(rows).all():
            raise GessoError("A picture has features that are not finite: check the weights.")
        if self.count == 0:
            self.mean = np.zeros(rows.shape[1])
            self.scatter = np.zeros((rows.shape[1], rows.shape[1]))
        b, total = len(rows), self.count + len(rows)
        center = rows.mean(0)
        rows = rows - center
        off = center - self.mean
        self.scatter += rows.T @ rows + np.outer(off, off) * (self.count * b / total)
        self.mean = self.mean + off * (b / total)
        self.count = total

    @property
    def covariance(self) -> np.ndarray:
        """[D, D], unbiased."""
        return self.scatter / max(self.count - 1, 1)

    def state(self) -> State:
        return {"count": np.array([self.count]), "mean": self.mean, "scatter": self.scatter}

    @classmethod
    def of(cls, state: State) -> Moments:
        moments = cls()
        moments.count = int(state["count"][0])
        moments.mean, moments.scatter = state["mean"], state["scatter"]
        return moments


class Rows(Gathered):
    """The rows themselves, [n, D] float32."""

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    @property
    def n(self) -> int:
        return sum(map(len, self._parts))

    @property
    def rows(self) -> np.ndarray:
        """[n, D] float32."""
        if len(self._parts) > 1:
            self._parts = [np.concatenate(self._parts)]
        return self._parts[0] if self._parts else np.zeros((0, 0), np.float32)

    def add(self, rows: np.ndarray) -> None:
        self._parts.append(np.asarray(rows, np.float32))

    def state(self) -> State:
        return {"rows": self.rows}

    @classmethod
    def of(cls, state: State) -> Rows:
        gathered = cls()
        gathered.add(state["rows"])
        return gathered


class Metric(ABC):
    """One metric with its judge.

    Attributes:
        judge: whose features or scores are gathered.
        needs: what the judge must be able to do.
        gathers: `Moments` or `Rows`.
        compares: with a reference set.
        prompts: each picture needs its prompt.
    """

    needs: ClassVar[str]
    gathers: ClassVar[type[Gathered]]
    compares: ClassVar[bool] = True
    prompts: ClassVar[bool] = False

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    def look(self, images: Sequence[Image], texts: Sequence[str]) -> np.ndarray:
        """Rows [B, D] for pictures (and their prompts)."""
        return self.judge.features(images)

    @abstractmethod
    def compute(self, mine: Any, reference: Any) -> dict[str, Any]:
        """The result.

        Args:
            mine, reference: what was gathered, of kind `gathers`; reference None unless `compares`.

        Returns:
            overall, and if there is more to tell scores (name -> value), interval (95 %) and
            notes (sentences).

        Raises:
            GessoError: too few pictures, or features of another size.
        """


class Mean(Metric):
    """The mean of a score of each picture by itself, with its 95 % interval."""

    gathers = Rows
    compares = False

    def compute(self, mine: Rows, reference: None) -> dict[str, Any]:
        values = mine.rows[:, 0].astype(np.float64)
        half = 1.96 * float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else 0.0
        mean = float(values.mean())
        return {"overall": mean, "interval": [mean - half, mean + half]}


def check_alike(mine: Gathered, reference: Gathered, widths: tuple[int, int], least: int) -> None:
    """Whether two sets can be compared.

    Raises:
        GessoError: fewer than `least` pictures in one of them, or features of other widths.
    """
    for what, gathered in (("pictures", mine), ("reference pictures", reference)):
        if gathered.n < least:
            raise GessoError(
                f"There are {gathered.n} {what}, and this metric needs {least} or more: add some."
            )
    if widths[0] != widths[1]:
        raise GessoError(
            f"The reference has features of width {widths[1]} and the pictures of width "
            f"{widths[0]}: gather the reference with the same judge."
        )
