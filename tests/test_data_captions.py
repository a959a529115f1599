"""Mixing captions by kind."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gesso.data.captions import check_weights, choose, edges, probabilities
from gesso.types import GessoError


def test_a_kind_is_chosen_by_weight_and_then_any_of_it() -> None:
    p = probabilities(["short", "dense", "dense", "noisy"], {"short": 1, "dense": 3, "noisy": 0})
    assert p == pytest.approx([0.25, 0.375, 0.375, 0])


def test_weights_are_shared_among_the_kinds_that_are_there() -> None:
    weights = {"short": 1, "dense": 1, "long": 2}
    assert probabilities(["short", "long"], weights) == pytest.approx([1 / 3, 2 / 3])


def test_without_weights_all_captions_are_alike() -> None:
    assert probabilities(["a", "a", "b"], None) == pytest.approx([1 / 3] * 3)


def test_a_picture_without_a_weighted_kind_is_refused() -> None:
    with pytest.raises(GessoError, match="noisy"):
        probabilities(["noisy"], {"short": 1.0})


@given(
    st.floats(0, 1, exclude_max=True) | st.sampled_from([0.5, 1 - 2**-53]),
    st.lists(st.sampled_from("abc"), min_size=1),
)
def test_choose_never_takes_a_caption_of_weight_zero(u: float, kinds: list[str]) -> None:
    kinds = [*kinds, "a"]
    p = probabilities(kinds, {"a": 1.0, "b": 0.5})
    assert p[choose(edges(p), u)] > 0


def test_choose_follows_the_probabilities() -> None:
    p = np.array([0.5, 0.0, 0.25, 0.25])
    drawn = [choose(edges(p), u) for u in (np.arange(1000) + 0.5) / 1000]
    assert np.bincount(drawn, minlength=4).tolist() == [500, 0, 250, 250]


@pytest.mark.parametrize(
    ("weights", "word"),
    [
        ({"dens": 1.0}, "there are dense, short.*did you mean 'dense'"),
        ({"dense": -1.0}, "use 0 or more"),
        ({"dense": float("nan")}, "use 0 or more"),
        ({"dense": 0.0}, "no weight above 0"),
        ({}, "no weight above 0"),
    ],
)
def test_weights_that_cannot_be_meant(weights: dict[str, float], word: str) -> None:
    with pytest.raises(GessoError, match=word):
        check_weights(weights, ["short", "dense", "dense"])


def test_fitting_weights_pass() -> None:
    check_weights({"short": 1.0}, ["short", "dense"])
    check_weights(None, ["short"])
