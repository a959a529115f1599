"""200 faults of ten kinds planted into 600 emoji: what `gesso doctor` finds, and its false alarms.

    python benchmarks/doctor.py EMOJI T5_TOKENIZER [--each 20] [--seeds 3]

EMOJI: folder with annotations.jsonl (columns file, style, annotation). A false alarm is a finding
that was not planted. The emoji hold true near duplicates, so only the exact kinds promise none.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from random import Random

import numpy as np

from gesso.data.images import load_rgb
from gesso.doctor.job import examine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from doctor_faults import EXACT, found_faults, plant


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("emoji", type=Path)
    parser.add_argument("tokenizer")
    parser.add_argument("--each", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    for seed in range(args.seeds):
        with tempfile.TemporaryDirectory() as place:
            one(args, seed, Path(place))


def one(args: argparse.Namespace, seed: int, place: Path) -> None:
    """Plant, examine, and print a table."""
    truth = plant(emoji(args.emoji, 30 * args.each, seed), place / "p", args.each, seed)
    began = time.perf_counter()
    result = examine(
        str(place / "p"), size=128, tokenizer=args.tokenizer, out=place / "d", quiet=True
    )
    took = time.perf_counter() - began
    rows = [json.loads(line) for line in (place / "d" / "findings.jsonl").open()]
    planted = found = 0
    print(f"seed {seed}: {result['pictures'] + result['skipped']} pictures, {took:.1f} s")
    print(f"{'planted':<18}{'faults':>7}{'found':>7}   {'kind':<18}{'false alarms':>13}")
    for name, kinds in truth.items():
        for kind, faults in kinds.items():
            hits = faults & found_faults(rows, kind)
            every = set().union(*(k.get(kind, set()) for k in truth.values()))
            false = len(found_faults(rows, kind) - every)
            exact = "" if kind in EXACT else "  (not exact)"
            print(f"{name:<18}{len(faults):>7}{len(hits):>7}   {kind:<18}{false:>13}{exact}")
            planted, found = planted + len(faults), found + len(hits)
    print(f"{'all':<18}{planted:>7}{found:>7}   {found / planted:.1%}\n")


def emoji(folder: Path, count: int, seed: int) -> list[tuple[np.ndarray, str]]:
    """So many pictures of two styles, no two alike to the pixel, no two of one caption."""
    rows = [json.loads(line) for line in (folder / "annotations.jsonl").open()]
    rows = [row for row in rows if row["style"] in ("noto", "fluent3d")]
    Random(seed).shuffle(rows)
    seen: set[object] = set()
    pictures: list[tuple[np.ndarray, str]] = []
    for row in rows:
        image, caption = load_rgb(folder / row["file"]), row["annotation"]
        if not {caption.casefold(), image.tobytes()} & seen:
            seen |= {caption.casefold(), image.tobytes()}
            pictures.append((image, caption))
        if len(pictures) == count:
            return pictures
    raise SystemExit(f"{folder} has only {len(pictures)} different emoji, not {count}.")


if __name__ == "__main__":
    main()
