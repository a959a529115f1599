"""DSG's published figures from its released answers, by gesso's question graphs.

    python benchmarks/dsg.py FOLDER     # a copy of https://github.com/j-min/DSG

Prints each figure beside the published one (the repository's README and arXiv 2310.18235) and says
how many agree to the printed digit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from gesso.evals.released import (
    JUDGES,
    correlation,
    human_ratings,
    mean_by_kind,
    released_scores,
)

# SD 2.1 judged by PaLI-17B, percent.
BY_KIND = {
    "tifa": 88.1,
    "paragraph": 85.1,
    "relation": 34.4,
    "count": 70.4,
    "real user": 89.7,
    "pose": 89.6,
    "defying": 84.4,
    "text": 83.7,
    "all": 80.5,
}
# Spearman's rho and Kendall's tau with people's ratings of 800 pictures.
CORRELATIONS = {
    ("mplug", "dsg"): (0.463, 0.380),
    ("instructblip", "dsg"): (0.442, 0.364),
    ("pali17b", "dsg"): (0.571, 0.458),
    ("mplug", "vq2a"): (0.212, 0.164),
    ("instructblip", "vq2a"): (0.426, 0.352),
    ("pali17b", "vq2a"): (0.207, 0.157),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    agree = total = 0
    print(f"{'SD 2.1, PaLI-17B':<28} {'published':>10} {'gesso':>10}")
    ours = mean_by_kind(released_scores(folder, "pali17b"), folder, "sd2dot1")
    for kind, published in BY_KIND.items():
        agree, total = agree + (round(ours[kind], 1) == published), total + 1
        print(f"{kind:<28} {published:>10.1f} {ours[kind]:>10.2f}")
    ratings = human_ratings(folder)
    print(f"\n{'with people, rho / tau':<28} {'published':>15} {'gesso':>17}")
    for (judge, questions), published in CORRELATIONS.items():
        found = correlation(released_scores(folder, judge, questions), ratings)
        agree += sum(round(a, 3) == b for a, b in zip(found, published, strict=True))
        total += 2
        name = f"{questions} questions, {JUDGES[judge]}"
        print(
            f"{name:<28} {published[0]:>7.3f} {published[1]:>7.3f} {found[0]:>9.4f} {found[1]:.4f}"
        )
    print(f"\n{agree} of {total} figures agree to the printed digit.")


if __name__ == "__main__":
    main()
