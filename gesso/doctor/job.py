"""The job behind `gesso doctor`: one pass over a source, all checks fed from it, and a report."""

from __future__ import annotations

import heapq
import json
import time
from collections import Counter
from collections.abc import Iterable, Sized
from pathlib import Path
from typing import Any

from gesso.config import Recipe, module, modules, recipes
from gesso.data.buckets import Size, bucket_table
from gesso.data.open import data_at, open_data
from gesso.data.source import first, read
from gesso.doctor.lengths import LIMITS, by_recipe, by_tokenizer
from gesso.doctor.page import write
from gesso.doctor.types import Check, Finding, Plan
from gesso.progress import steps_bar
from gesso.types import Bad

ORDER = ("error", "warning", "note")
SHOWN = 12  # worst findings of a kind that the page and the result show
SIZE = 256  # of buckets, where a path is examined and no size is given


class Found:
    """Counts findings, writes each to a file, and keeps the worst of every kind.

    Args:
        file: an open text file for one JSON line each.
    """

    def __init__(self, file: Any) -> None:
        self._file = file
        self._heaps: dict[str, list[tuple[float, int, Finding]]] = {}
        self.counts: Counter[str] = Counter()

    def take(self, findings: Iterable[Finding]) -> None:
        """Add findings."""
        for finding in findings:
            self._file.write(json.dumps(finding._asdict(), ensure_ascii=False) + "\n")
            self.counts[finding.kind] += 1
            heap = self._heaps.setdefault(finding.kind, [])
            entry = finding.badness, -self.counts[finding.kind], finding  # of equals, the first
            (heapq.heappush if len(heap) < SHOWN else heapq.heappushpop)(heap, entry)

    def worst(self, kind: str) -> list[Finding]:
        """The worst of a kind, worst first."""
        return [f for _, _, f in sorted(self._heaps.get(kind, ()), reverse=True)]


def examine(
    path: str,
    *,
    overrides: list[str] | None = None,
    size: int | None = None,
    buckets: bool | None = None,
    tokenizer: str | None = None,
    limits: tuple[int, ...] = LIMITS,
    clip: str | None = None,
    cache: str | None = None,
    out: Path | None = None,
    limit: int | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Look for everything that is wrong with a set of captioned pictures.

    Args:
        path, overrides: a recipe or a path, see `gesso.data.open.data_at`.
        size, buckets: what pictures are cut to; None: as the recipe says, or buckets of 256.
        tokenizer: measures captions (folder, `package:NAME` or hub id); None: the recipe's.
        limits: in tokens, for `tokenizer`.
        clip: CLIP or SigLIP, to tell whether captions fit.
        cache: a feature cache to examine; None: the recipe's `data.cache`.
        out: folder of `report.html` and `findings.jsonl`; None: doctor/NAME.
        limit: only the first so many usable pictures.
        device: of `clip`.
        quiet: show no progress.

    Returns:
        out, page; pictures (looked at) and skipped; kinds: name, severity, about, count, worst (the
        first few findings) or why it was not looked for; notes; seconds.

    Raises:
        GessoError: bad input.
    """
    started = time.monotonic()
    plan, limit = make_plan(
        path, overrides, size, buckets, tokenizer, limits, clip, cache, limit, device
    )
    checks: list[Check] = [module("doctor.checks", n).build(plan) for n in modules("doctor.checks")]
    folder = out or Path("doctor") / Path(path).stem
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "findings.jsonl.part"
    pictures = skipped = 0
    with part.open("w", encoding="utf-8") as file, steps_bar("examining", quiet) as show:
        found = Found(file)
        total = limit or (len(plan.source) if isinstance(plan.source, Sized) else None)
        for item in first(read(plan.source), limit):
            for check in checks:
                found.take(check.bad(item) if isinstance(item, Bad) else check.look(item))
            skipped += isinstance(item, Bad)
            pictures += not isinstance(item, Bad)
            if (pictures + skipped) % 50 == 0:
                show(pictures + skipped, total)
        for check in checks:
            found.take(check.end())
    part.replace(folder / "findings.jsonl")
    kinds = [
        {
            "kind": kind.name,
            "severity": kind.severity,
            "about": kind.about,
            "count": None if check.skipped else found.counts[kind.name],
            "skipped": check.skipped,
            "worst": [f._asdict() for f in found.worst(kind.name)],
        }
        for check in checks
        for kind in check.kinds
    ]
    kinds.sort(key=lambda k: (ORDER.index(str(k["severity"])), k["kind"]))
    result = {
        "path": path,
        "out": str(folder),
        "page": str(folder / "report.html"),
        "pictures": pictures,
        "skipped": skipped,
        "kinds": kinds,
        "notes": [note for check in checks for note in check.notes],
        "seconds": time.monotonic() - started,
    }
    write(folder / "report.html", result, plan.source)
    return result


def make_plan(
    path: str,
    overrides: list[str] | None,
    size: int | None,
    buckets: bool | None,
    tokenizer: str | None,
    limits: tuple[int, ...],
    clip: str | None,
    cache: str | None,
    limit: int | None,
    device: str | None,
) -> tuple[Plan, int | None]:
    """The plan of `examine`, and how many pictures to look at."""
    recipe: Recipe | None = None
    if path.endswith((".yaml", ".yml")) or (path in recipes() and not Path(path).exists()):
        from gesso.systems import load_recipe

        recipe = load_recipe(path, overrides)
        data = recipe.data
        fits = by_recipe(recipe) if tokenizer is None else by_tokenizer(tokenizer, limits)
        size, buckets = size or data.size, data.buckets if buckets is None else buckets
    else:
        data = data_at(path, overrides)
        fits = {} if tokenizer is None else by_tokenizer(tokenizer, limits)
        size, buckets = size or SIZE, True if buckets is None else buckets
    plan = Plan(
        open_data(data),
        cuts(size, buckets),
        fits,
        clip,
        cache or data.cache,
        recipe,
        device,
    )
    return plan, data.limit if limit is None else limit


def cuts(size: int, buckets: bool) -> dict[float, Size]:
    """The sizes that training cuts to, by ratio.

    Sides of buckets are multiples of 16 (factor 8, patches of 2), or of 8 where the size is not.
    """
    if not buckets:
        return {1.0: (size, size)}
    return bucket_table(size, 16 if size % 16 == 0 and size >= 128 else 8)
