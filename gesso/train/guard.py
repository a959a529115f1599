"""Watches losses and gradients, so that a broken batch cannot ruin a run."""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gesso.types import GessoError

BROKEN = "nan.json"
"""One line of JSON for each step that was skipped or stopped the run."""

HISTORY = 101
FEWEST = 20
FACTOR = 10.0
MARGIN = 1.0


class Guard:
    """Judges each step before its update is applied.

    A loss explodes if it is above 10 times the median of its phase's last 101, plus 1; and above
    that median by 20 times their median deviation, which counts for losses that have a sign.

    Args:
        run: the run's folder.
        max_skipped: so many broken steps are left out before the run stops.
        records: write them into the run's folder; one process does.

    Attributes:
        skipped: broken steps so far.
    """

    def __init__(self, run: Path, max_skipped: int, records: bool = True) -> None:
        self.file = run / BROKEN
        self.records = records
        self.max_skipped = max_skipped
        self.skipped = 0
        self._losses: dict[str, deque[float]] = {}

    def problem(self, phase: str, loss: float, grad_norm: float, warm: bool) -> str | None:
        """What is wrong with a step, or None; a healthy loss joins the history.

        Args:
            warm: the warm-up is over; before, losses may move as they like.
        """
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the gradient norm is {grad_norm} (loss {loss:.4g})"
        losses = self._losses.setdefault(phase, deque(maxlen=HISTORY))
        if warm and len(losses) >= FEWEST:
            median = statistics.median(losses)
            deviation = statistics.median(abs(x - median) for x in losses)
            if loss > max(FACTOR * abs(median), median + 2 * FACTOR * deviation) + MARGIN:
                return f"the loss jumped to {loss:.4g} from a median of {median:.4g}"
        losses.append(loss)
        return None

    def skip(self, step: int, problem: str, keys: Sequence[str], saved: Path | None) -> str:
        """Record a broken step; returns a message about it.

        Args:
            step, problem, keys: where, what, and the pictures of the step.
            saved: the newest checkpoint.

        Raises:
            GessoError: more steps were broken than may be skipped.
        """
        if self.records:
            with self.file.open("a") as f:
                f.write(json.dumps({"step": step, "problem": problem, "keys": list(keys)}) + "\n")
        self.skipped += 1
        some = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
        if self.skipped > self.max_skipped:
            again = f"resume from {saved}" if saved else "start again"
            raise GessoError(
                f"In step {step}, {problem}, with the pictures {some} (all are in {self.file}): "
                f"look at them, lower train.lr or raise train.max_skipped, and {again}."
            )
        return f"Skipped step {step}: {problem}, with the pictures {some}."

    def state(self) -> dict[str, Any]:
        """Counters and histories, as JSON values for a checkpoint."""
        return {"skipped": self.skipped, "losses": {k: list(v) for k, v in self._losses.items()}}

    def load_state(self, state: dict[str, Any]) -> None:
        self.skipped = state["skipped"]
        self._losses = {k: deque(v, maxlen=HISTORY) for k, v in state["losses"].items()}
