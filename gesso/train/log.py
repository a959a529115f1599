"""What a run tells while it trains: metrics.jsonl, TensorBoard and a progress line."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

METRICS = "metrics.jsonl"
PREVIEW = 96  # columns of a preview in the terminal


class RunLog:
    """Writes one run's metrics and shows its progress on stderr.

    A log that cannot be written (a full disk) is reported once and does not stop the training.

    Args:
        run: the run's folder, existing.
        step: steps done; entries after it, from work that a crash lost, are dropped.
        quiet: show nothing.
    """

    def __init__(self, run: Path, step: int = 0, quiet: bool = False) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.file = run / METRICS
        self.quiet = quiet
        self._broken = False
        if self.file.exists():
            _truncate(self.file, step)
        self._board = SummaryWriter(str(run / "tb"), purge_step=step + 1 if step else None)
        self._console = Console(stderr=True, highlight=False)
        self._bar: Progress | None = None
        if not quiet and self._console.is_terminal:
            self._bar = Progress(
                SpinnerColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:>3.0f}%  {task.description}"),
                TimeElapsedColumn(),
                console=self._console,
            )
            self._task = self._bar.add_task("starting", total=1.0)
            self._bar.start()

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line of metrics, if there are any, and the same to TensorBoard."""
        if not values:
            return
        try:
            with self.file.open("a") as f:
                f.write(json.dumps({"step": step, **_rounded(values)}) + "\n")
            for name, value in values.items():
                self._board.add_scalar(name, value, step)
        except OSError as e:
            if not self._broken:
                self.say(f"Metrics cannot be written ({e}); the training goes on.")
            self._broken = True

    def picture(self, step: int, file: Path) -> None:
        """Show a PNG file in TensorBoard, and small in a terminal that has colours."""
        from PIL import Image

        with Image.open(file) as image:
            picture = image.convert("RGB")
        self._board.add_image("samples", np.asarray(picture), step, dataformats="HWC")
        if self._bar is not None and self._console.color_system == "truecolor":
            columns = min(PREVIEW, self._console.width - 2)
            self._console.print(f"step {step}: {file}", markup=False)
            self._console.print(half_blocks(picture.resize(fit(picture.size, columns))))

    def progress(
        self, share: float, step: int, latest: Mapping[str, float], left: float, *, line: bool
    ) -> None:
        """Show how far the training is.

        Args:
            share: done, 0..1.
            step: steps done.
            latest: the metrics that were logged last.
            left: seconds to go.
            line: print a line where there is no terminal for a bar.
        """
        known = ""
        if "loss" in latest and "images_per_second" in latest:
            known = f"loss {latest['loss']:.4f}  {latest['images_per_second']:.0f} pictures/s  "
        text = f"step {step}  {known}{duration(left)} left"
        if self._bar is not None:
            self._bar.update(self._task, completed=share, description=text)
        elif line and not self.quiet:
            print(f"{share:4.0%}  {text}", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A message that must be seen; shown above the progress bar."""
        if not self.quiet:
            self._console.print(text, markup=False, soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        try:
            self._board.close()
        except OSError:
            if not self._broken:
                self.say("The TensorBoard log could not be finished; metrics.jsonl has it all.")


def fit(size: tuple[int, int], columns: int) -> tuple[int, int]:
    """Width and height that make a picture `columns` wide, with an even number of rows."""
    width, height = size
    return columns, max(2, round(columns * height / width / 2) * 2)


def half_blocks(picture: Image) -> Text:
    """A picture as text: each character shows two pixels, one above the other."""
    pixels = np.asarray(picture)  # [H, W, 3], H even
    text = Text()
    for upper, lower in zip(pixels[::2], pixels[1::2], strict=True):
        for (r, g, b), (x, y, z) in zip(upper, lower, strict=True):
            text.append("▀", f"rgb({r},{g},{b}) on rgb({x},{y},{z})")
        text.append("\n")
    return text


def duration(seconds: float) -> str:
    """`1:02:03` or `2:03`."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02d}:{s:02d}" if hours else f"{m}:{s:02d}"


def _truncate(file: Path, step: int) -> None:
    kept = []
    for line in file.read_text().splitlines(keepends=True):
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line)
        except ValueError:  # the line that a kill cut short
            continue
    temporary = file.with_suffix(".tmp")
    temporary.write_text("".join(kept))
    temporary.replace(file)


def _rounded(values: Mapping[str, float]) -> dict[str, Any]:
    return {name: float(f"{value:.6g}") for name, value in values.items()}


class Meter:
    """Means of metrics over some steps, and the rate of the steps.

    Tensors are kept as they are until `read`, so that recording waits for no device.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor | float]] = {}
        self._pictures, self._seconds, self._waited = 0, 0.0, 0.0

    def record(self, values: Mapping[str, Tensor | float]) -> None:
        """Note metrics of a step or micro-batch."""
        for name, value in values.items():
            kept = value.detach() if isinstance(value, Tensor) else value
            self._values.setdefault(name, []).append(kept)

    def time(self, pictures: int, seconds: float, waited: float) -> None:
        """Note what a step took, and how much of that was waiting for data."""
        self._pictures += pictures
        self._seconds += seconds
        self._waited += waited

    def read(self) -> dict[str, float]:
        """Means of what is finite, with `images_per_second` and `data_wait`; empties the meter.

        `data_wait` is the share of the steps' time that went into waiting for batches.
        """
        finite = {k: [x for x in map(float, v) if isfinite(x)] for k, v in self._values.items()}
        means = {k: fmean(v) for k, v in finite.items() if v}
        if self._seconds:
            means["images_per_second"] = self._pictures / self._seconds
            means["data_wait"] = self._waited / self._seconds
        self._values, self._pictures, self._seconds, self._waited = {}, 0, 0.0, 0.0
        return means
