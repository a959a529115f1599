"""An experiment's figure: every seed a dot, every arm its mean, in gesso's colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gesso.reproduce.results import number

INK, SOFT, LINE, PAPER = "#22201c", "#6f6a60", "#e3ddd0", "#fbf9f4"
COLORS = ("#b3532d", "#2d5f73", "#8a9a5b", "#c99a2e", "#7b4b6e", "#5c6b73")
STYLE: Any = {
    "font.family": "serif",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "xtick.color": SOFT,
    "ytick.color": INK,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
COLUMNS = {1: 1, 2: 2, 3: 3, 4: 2}  # of as many panels
MOST_COLUMNS = 3


def draw(summary: dict[str, Any], file: Path) -> None:
    """Write the figure of a summary (see `gesso.reproduce.results.summarise`) as PNG.

    One panel a metric. A sweep is drawn as curves over `at`; arms outside of it are dashed lines.
    """
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    metrics = summary["figure"]
    columns = COLUMNS.get(len(metrics), MOST_COLUMNS)
    rows = -(-len(metrics) // columns)
    sweep = any(arm["line"] for arm in summary["arms"])
    height = 3.0 if sweep else 0.75 + 0.5 * len(summary["arms"])
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows,
            columns,
            figsize=(1.6 + 3.0 * columns, height * rows + 0.2),
            squeeze=False,
            sharey=not sweep,
        )
        for panel, metric in zip(axes.flat, metrics, strict=False):
            (_curves if sweep else _dots)(panel, summary, metric)
        for panel in axes.flat[len(metrics) :]:
            panel.set_visible(False)
        if sweep:
            handles, labels = axes.flat[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1, wspace=0.03)
        figure.savefig(file, dpi=110)
        plt.close(figure)


def _dots(panel: Any, summary: dict[str, Any], metric: str) -> None:
    """Arms from top to bottom."""
    arms = summary["arms"]
    for row, arm in enumerate(arms):
        cell = arm["numbers"].get(metric)
        if cell is None:
            continue
        color = COLORS[row % len(COLORS)]
        panel.axhline(row, color=LINE, linewidth=0.8, zorder=0)
        panel.plot(cell["values"], [row] * len(cell["values"]), "o", color=color, alpha=0.4, ms=5)
        if cell["sd"]:
            panel.errorbar(
                cell["mean"], row, xerr=cell["sd"], color=color, capsize=3, linewidth=1.6
            )
        panel.plot(cell["mean"], row, "D", color=color, ms=6.5)
        panel.annotate(
            number(cell["mean"]),
            (cell["mean"], row),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=9.5,
            color=color,
        )
    panel.set_yticks(range(len(arms)), [arm["name"] for arm in arms])
    panel.set_ylim(len(arms) - 0.5, -0.7)
    panel.locator_params(axis="x", nbins=5)
    panel.margins(x=0.12)
    panel.set_xlabel(summary["metrics"][metric])
    panel.tick_params(axis="y", length=0)
    panel.spines["left"].set_visible(False)
    low, high = panel.get_xlim()
    lowest = min(
        (min(a["numbers"][metric]["values"]) for a in arms if metric in a["numbers"]), default=0
    )
    if lowest >= 0 and low < 0.5 * high:  # what starts near zero reads better from zero
        panel.set_xlim(left=0)


def _curves(panel: Any, summary: dict[str, Any], metric: str) -> None:
    """Arms along `at`, a curve a line."""
    measured = [arm for arm in summary["arms"] if metric in arm["numbers"]]
    lines = dict.fromkeys(arm["line"] for arm in measured if arm["line"])
    for turn, line in enumerate(lines):
        color = COLORS[turn % len(COLORS)]
        arms = sorted((a for a in measured if a["line"] == line), key=lambda a: a["at"])
        means = [arm["numbers"][metric]["mean"] for arm in arms]
        panel.plot([arm["at"] for arm in arms], means, "D-", color=color, ms=5, label=line)
        for arm in arms:
            values = arm["numbers"][metric]["values"]
            panel.plot([arm["at"]] * len(values), values, "o", color=color, alpha=0.35, ms=4)
    for turn, arm in enumerate(a for a in measured if not a["line"]):
        cell, color = arm["numbers"][metric], COLORS[(len(lines) + turn) % len(COLORS)]
        panel.axhline(cell["mean"], color=color, linestyle="--", linewidth=1.4, label=arm["name"])
        if cell["sd"]:
            low, high = cell["mean"] - cell["sd"], cell["mean"] + cell["sd"]
            panel.axhspan(low, high, color=color, alpha=0.12, linewidth=0)
    panel.set_xlabel(summary["at_label"])
    panel.set_title(summary["metrics"][metric], fontsize=11)
