"""A run that compares itself with its plan: one line after 20 steps."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import torch

from gesso.train.folder import FREE, flat
from gesso.train.observe import Moment, Observer
from gesso.train.plan.text import duration, memory

PLAN = "plan.json"
WARM = 5  # steps that are not counted: the first ones compile and fill caches
STEPS = 20


class AgainstPlan(Observer):
    """Says how a run's steps and memory compare with `plan.json` in its folder, if there is one.

    Nothing is counted or measured for it beside the clock and the peak that the system keeps.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: Path) -> None:
        self._plan = _read(run / PLAN)
        self._seconds: list[float] = []

    def on_step(self, moment: Moment) -> None:
        if self._plan is None or len(self._seconds) >= STEPS:
            return
        self._seconds.append(moment.seconds)
        if len(self._seconds) == WARM:
            _forget_peak(moment.device)
        if len(self._seconds) == STEPS:
            moment.say(self._line(moment, self._plan))

    def _line(self, moment: Moment, plan: dict[str, Any]) -> str:
        if other := _difference(plan["made_for"], moment):
            return f"The plan in {moment.run / PLAN} was made for {other}: it is not compared."
        step = median(self._seconds[WARM:])
        peak = _peak(moment.device) * (plan["devices"] if moment.device.type == "cpu" else 1)
        moment.log({"step_seconds": step, "peak_bytes": peak})
        left = (1 - moment.share) / moment.share if moment.share else 0.0
        config = moment.recipe.train
        seconds = (config.steps - moment.step) * step
        if config.minutes:
            seconds = 60 * config.minutes * moment.share * left
        end = time.localtime(time.time() + seconds)
        day = "" if seconds < 12 * 3600 else time.strftime("%a %d %b, ", end)
        return (
            f"step {duration(step)}, planned {duration(plan['seconds_per_step'])}; "
            f"peak {memory(peak)}, planned {memory(plan['memory']['peak'])}; "
            f"ends at {day}{time.strftime('%H:%M', end)}"
        )


def _read(file: Path) -> dict[str, Any] | None:
    try:
        plan = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    needed = {"made_for", "devices", "seconds_per_step", "memory"}
    return plan if isinstance(plan, dict) and needed <= plan.keys() else None


def _difference(made_for: dict[str, Any], moment: Moment) -> str | None:
    """The first key of the recipe that the plan knows otherwise; None: the plan fits."""
    now = flat(moment.recipe.model_dump(mode="json"))
    for key, value in flat(made_for).items():
        matters = key.startswith(("backbone", "text_encoder", "train.", "data.size", "objective"))
        told = key == "train.compile" or key not in FREE
        same = now.get(key) == value or (key == "train.processes" and value == 0)
        if matters and told and not same:
            return f"{key} = {value!r}"
    return None


def _forget_peak(device: torch.device) -> None:
    """Start the peak anew, so that compiling does not count."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: the peak since the start
        return


def _peak(device: torch.device) -> float:
    """Bytes: what torch held on a GPU, or what this process held besides mapped files."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_reserved(device))
    info = psutil.Process(os.getpid()).memory_info()
    shared = getattr(info, "shared", 0)
    try:
        rows = Path("/proc/self/status").read_text().splitlines()
        highest = next(int(row.split()[1]) * 1024 for row in rows if row.startswith("VmHWM"))
    except (OSError, StopIteration):
        highest = info.rss
    return float(max(highest - shared, 0))
