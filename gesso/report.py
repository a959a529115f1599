"""Self-contained HTML pages, and what they are made of: pictures, loss curves, durations."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from gesso.types import GessoError


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The rows of a run's `metrics.jsonl`; a last line cut short by a kill is left out.

    Raises:
        GessoError: the run has none.
    """
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise GessoError(f"{run} has no metrics.jsonl: it is not a run of gesso train.")
    rows = []
    for line in file.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def data_uri(image: np.ndarray) -> str:
    """[H, W, 3] uint8 -> a PNG as a data URI."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def loss_plot(rows: list[dict[str, Any]]) -> str:
    """Training and validation loss against steps, as inline SVG."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    train = [(r["step"], r["loss"]) for r in rows if r.get("loss") is not None]
    held = [(r["step"], r["validation_loss"]) for r in rows if r.get("validation_loss") is not None]
    with plt.rc_context({"font.family": "serif", "font.size": 11, "svg.fonttype": "none"}):
        figure, axes = plt.subplots(figsize=(9, 3.4))
        if train:
            steps, losses = np.array(train, dtype=float).T
            axes.plot(steps, losses, color="#d9b8a5", linewidth=0.8, label="training")
            window = max(1, len(losses) // 40)
            smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
            axes.plot(steps[window - 1 :], smooth, color="#b3532d", label=f"mean of {window}")
            axes.set_ylim(0, float(np.quantile(losses, 0.97)) * 1.15)
        if held:
            axes.plot(*np.array(held, dtype=float).T, "o-", color="#2d5f73", ms=4, label="held out")
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.tight_layout()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True)
        plt.close(figure)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]


def duration(seconds: float) -> str:
    """ "42 s", "9 min 51 s", "2 h 5 min"."""
    s = round(seconds)
    if s < 60:
        return f"{s} s"
    if s < 3600:
        return f"{s // 60} min {s % 60} s"
    return f"{s // 3600} h {s % 3600 // 60} min"


def file_uri(file: Path) -> str:
    """A PNG file as a data URI, byte for byte."""
    return "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()


def write_page(file: Path, template: str = "report.html.j2", **values: Any) -> None:
    """Fill a template of `templates/`; text is escaped, but `loss_plot` is trusted SVG."""
    from jinja2 import Environment, PackageLoader, select_autoescape
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("gesso"), autoescape=select_autoescape(default=True)
    )
    if "loss_plot" in values:
        values["loss_plot"] = Markup(values["loss_plot"])
    file.write_text(environment.get_template(template).render(**values))
