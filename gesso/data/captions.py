"""Which of a picture's captions is learned from: a kind by weight, then any of that kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from gesso.config import nearest
from gesso.types import GessoError


def check_weights(weights: Mapping[str, float] | None, kinds: Iterable[str]) -> None:
    """Refuse weights that cannot be meant.

    Raises:
        GessoError: a kind that no caption has, a negative weight, or no weight above 0.
    """
    present = sorted(set(kinds))
    for kind, weight in (weights or {}).items():
        if kind not in present:
            raise GessoError(
                f"caption_weights names a kind {kind!r} that no caption has "
                f"(there are {', '.join(present)}): {nearest(kind, present)}"
            )
        if not 0 <= weight < float("inf"):
            raise GessoError(f"caption_weights gives {kind!r} the weight {weight}: use 0 or more.")
    if weights is not None and not any(weights.values()):
        raise GessoError("caption_weights has no weight above 0: give at least one kind a weight.")


def probabilities(kinds: Sequence[str], weights: Mapping[str, float] | None) -> np.ndarray:
    """How likely each caption of one picture is: [n] float64 that sums to 1.

    A kind is chosen by weight among those that the picture has, then a caption uniformly within
    it. Kinds that `weights` does not name have weight 0; weights None makes all captions alike.

    Raises:
        GessoError: none of the picture's captions has a weight above 0.
    """
    if weights is None:
        return np.full(len(kinds), 1 / len(kinds))
    counts = Counter(kinds)
    p = np.array([weights.get(kind, 0.0) / counts[kind] for kind in kinds])
    if not p.any():
        raise GessoError(
            f"A picture has only captions of kinds without weight ({', '.join(sorted(counts))}): "
            f"give one of them a weight above 0 in caption_weights."
        )
    return p / p.sum()


def edges(p: np.ndarray) -> np.ndarray:
    """Where each caption's share of 0..1 ends: [n], the last exactly 1."""
    sums = np.cumsum(p)
    return sums / sums[-1]


def choose(edges: np.ndarray, u: float) -> int:
    """The caption whose share holds u (0 <= u < 1); never one with an empty share."""
    return int(edges.searchsorted(u, side="right"))
