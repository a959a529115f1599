"""GenEval's rules on scenes, worked by hand, and its prompts."""

import numpy as np
import pytest

from gesso.data.scenes import SHAPES, captions, relations_between, sample_scene, vocabulary
from gesso.data.scenes.reader import Detection
from gesso.data.scenes.splits import (
    HELD_OUT_COLORS,
    HELD_OUT_COUNTS,
    HELD_OUT_PAIRS,
    HELD_OUT_TRIPLES,
)
from gesso.evals._scene_prompts import paint_truth
from gesso.evals.scenes import TAGS, check, evaluate, known_level, prompts, score
from gesso.types import GessoError


def seen(shape, confidence=0.95, color="red", box=(0.0, 0.0, 10.0, 10.0)):
    return Detection(shape, color, "medium", "solid", box, np.zeros((1, 1), bool), confidence, 1.0)


def meta(tag, *include, exclude=()):
    return {"tag": tag, "include": list(include), "exclude": list(exclude), "prompt": ""}


ONE = {"class": "circle", "count": 1}
TWO_STARS = meta("counting", {"class": "star", "count": 2}, exclude=[{"class": "star", "count": 3}])


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        # Equal sizes 10: a tenth of both is 2. Offset -20: (20 - 2) / 20 = 0.9.
        ((0, 0, 10, 10), (20, 0, 30, 10), {"left of"}),
        ((20, 0, 30, 10), (0, 0, 10, 10), {"right of"}),
        ((0, 0, 10, 10), (0, 20, 10, 30), {"above"}),
        ((0, 20, 10, 30), (0, 0, 10, 10), {"below"}),
        # Diagonal: 18 / 28.28 = 0.64 on both axes.
        ((0, 0, 10, 10), (20, 20, 30, 30), {"left of", "above"}),
        # 18 / 22.36 = 0.80 across, (10 - 2) / 22.36 = 0.36 down.
        ((0, 0, 10, 10), (20, 10, 30, 20), {"left of"}),
        # Offset 2 is taken off entirely; so is no offset at all.
        ((0, 0, 10, 10), (2, 0, 12, 10), set()),
        ((0, 0, 10, 10), (0, 0, 10, 10), set()),
        # Divided by the original offset: (4 - 2) / 4 = 0.5 is not above one half.
        ((0, 0, 10, 10), (4, 0, 14, 10), set()),
        ((0, 0, 10, 10), (4.1, 0, 14.1, 10), {"left of"}),
        # Sizes differ per axis: 0.1 * (10 + 30) = 4 off 20 across, 0.1 * (10 + 2) off 14 down:
        # 16 / 24.41 = 0.66 and 12.8 / 24.41 = 0.52.
        ((0, 0, 10, 10), (10, 18, 40, 20), {"left of", "above"}),
    ],
)
def test_relations_by_the_rule(a, b, expected):
    assert relations_between(a, b) == expected


def test_counting_needs_n_and_fewer_than_n_plus_1():
    for n, right in ((1, False), (2, True), (3, False)):
        assert check([seen("star")] * n, TWO_STARS)[0] is right
    _, reasons = check([seen("star")] * 3, TWO_STARS)
    assert reasons == ["expected fewer than 3 x star, found 3"]
    assert check([seen("star")] * 2 + [seen("circle")] * 5, TWO_STARS)[0]


def test_counting_keeps_only_confidences_above_nine_tenths():
    assert check([seen("star")] * 2 + [seen("star", 0.9)], TWO_STARS)[0]
    assert not check([seen("star"), seen("star", 0.9)], TWO_STARS)[0]


def test_other_tags_keep_confidences_above_three_tenths():
    assert check([seen("circle", 0.31)], meta("single_object", ONE))[0]
    assert not check([seen("circle", 0.3)], meta("single_object", ONE))[0]
    assert not check([seen("square")], meta("single_object", ONE))[0]
    assert check([seen("circle"), seen("circle")], meta("single_object", ONE))[0]


def test_only_the_most_confident_boxes_are_asked_for_their_colour():
    red = meta("colors", ONE | {"color": "red"})
    assert check([seen("circle", 0.8, "blue"), seen("circle", 0.9, "red")], red)[0]
    right, reasons = check([seen("circle", 0.9, "blue"), seen("circle", 0.8, "red")], red)
    assert not right and reasons == ["expected red circle, found blue"]
    both = meta("colors", {"class": "circle", "count": 2, "color": "red"})
    assert not check([seen("circle", 0.9, "red"), seen("circle", 0.8, "blue")], both)[0]


def test_of_equal_confidences_the_later_comes_first_as_numpy_sorts_them():
    red = meta("colors", ONE | {"color": "red"})
    assert not check([seen("circle"), seen("circle", color="blue")], red)[0]
    assert check([seen("circle", color="blue"), seen("circle")], red)[0]


def test_at_most_sixteen_of_a_class_are_kept():
    many = meta("single_object", ONE, exclude=[{"class": "circle", "count": 17}])
    assert check([seen("circle")] * 30, many)[0]


def test_position_looks_from_the_later_clause_to_its_target():
    # "a circle left of a square": the square comes first, the circle carries the relation.
    entry = meta("position", {"class": "square", "count": 1}, ONE | {"position": ["left of", 0]})
    left, right = (0.0, 0.0, 10.0, 10.0), (30.0, 0.0, 40.0, 10.0)
    assert check([seen("circle", box=left), seen("square", box=right)], entry)[0]
    wrong, reasons = check([seen("circle", box=right), seen("square", box=left)], entry)
    assert not wrong and reasons == ["expected circle left of square, found it right of square"]


def test_position_is_not_asked_without_its_target_or_itself():
    entry = meta(
        "position",
        {"class": "square", "count": 1, "color": "blue"},
        ONE | {"position": ["left of", 0]},
    )
    _, reasons = check([seen("circle")], entry)
    assert reasons == ["expected 1 x square, found 0", "nothing for circle to be left of"]
    _, reasons = check([seen("circle"), seen("square")], entry)  # the square is red
    assert reasons[1] == "nothing for circle to be left of"
    _, reasons = check([seen("square", color="blue")], entry)
    assert reasons == ["expected 1 x circle, found 0"]


def test_every_chosen_object_must_hold_the_relation_to_every_target():
    entry = meta(
        "position",
        {"class": "square", "count": 2},
        {"class": "circle", "count": 1, "position": ["left of", 0]},
    )
    circle = seen("circle", box=(30, 0, 40, 10))
    right, far = seen("square", box=(60, 0, 70, 10)), seen("square", box=(90, 0, 99, 10))
    assert check([circle, right, far], entry)[0]
    assert not check([circle, right, seen("square", box=(0, 0, 10, 10))], entry)[0]


def test_the_overall_score_is_the_unweighted_mean_of_the_tags():
    metadata = prompts(1, 2, seed=1)
    perfect = [[paint_truth(m, 1, k) for k in range(2)] for m in metadata]
    result = score(perfect, metadata, 1)
    assert result["overall"] == 1 and result["n"] == 24 and result["failures"] == []
    assert set(result["scores"]) == set(TAGS)
    blank = np.full((64, 64, 3), 180, np.uint8)
    perfect[0] = [blank, perfect[0][1]]
    result = score(perfect, metadata, 1)
    assert result["scores"]["single_object"] == 0.75
    assert result["overall"] == pytest.approx((0.75 + 5) / 6)
    assert result["correct"] == pytest.approx(23 / 24) and result["any_correct"] == 1
    (failure,) = result["failures"]
    assert failure["prompt"] == metadata[0]["prompt"] and failure["picture"] == 0
    assert "found 0" in failure["reason"]
    some = score(perfect[:1] + perfect[-1:], metadata[:1] + metadata[-1:], 1)
    assert some["overall"] == pytest.approx((0.5 + 1) / 2)  # over the tags that there are


@pytest.mark.parametrize("level", [1, 2, 3])
def test_renders_of_the_prompts_are_judged_right(level):
    metadata = prompts(level, 6, seed=2, split="all")
    result = score([[paint_truth(m, level, i)] for i, m in enumerate(metadata)], metadata, level)
    assert result["correct"] >= 0.97, result["failures"]


def test_evaluate_paints_every_prompt_n_times_with_its_own_seed():
    calls = []

    def paint(texts, seeds):
        calls.extend(zip(texts, seeds, strict=True))
        return [np.full((64, 64, 3), 180, np.uint8)] * len(texts)

    shown = []
    result = evaluate(paint, level=1, per_tag=3, n=2, seed=5, progress=lambda *a: shown.append(a))
    assert result["benchmark"] == "scenes-level1" and result["judge"] == "reader"
    assert result["n"] == len(calls) == 36 and result["overall"] == 0
    assert len({seed for _, seed in calls}) == 36
    assert shown[-1] == (36, 36)
    by_seed = {seed: text for text, seed in calls}
    assert all(by_seed[f["seed"]] == f["prompt"] for f in result["failures"])
    with pytest.raises(GessoError, match="per_tag"):
        evaluate(paint, level=1, per_tag=0)
    with pytest.raises(GessoError, match="level"):
        evaluate(paint, level=7)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_test_prompts_hold_one_new_combination_and_training_prompts_none(level):
    for split in ("test", "train"):
        for entry in prompts(level, 20, seed=3, split=split):
            if entry["tag"] != "single_object":
                assert (new_combinations(entry) == 1) == (split == "test"), entry


def new_combinations(entry):
    include = entry["include"]
    shapes = [clause["class"] for clause in include]
    new = sum((c.get("color"), c["class"]) in HELD_OUT_COLORS for c in include)
    new += sum((c["count"], c["class"]) in HELD_OUT_COUNTS for c in include)
    new += frozenset(shapes) in HELD_OUT_PAIRS
    for clause in include:
        if "position" in clause:
            relation, target = clause["position"]
            new += (clause["class"], relation, shapes[target]) in HELD_OUT_TRIPLES
    return new


def test_prompts_are_reproducible_balanced_and_distinct():
    first = prompts(2, 12, seed=1)
    assert first == prompts(2, 12, seed=1) != prompts(2, 12, seed=2)
    assert [e["tag"] for e in first] == [tag for tag in TAGS for _ in range(12)]
    assert len({e["prompt"] for e in first}) == len(first)
    assert all(e["prompt"].startswith("a photo of ") for e in first if e["tag"] == "colors")
    counting = [e for e in first if e["tag"] == "counting"]
    assert all(e["exclude"][0]["count"] == e["include"][0]["count"] + 1 for e in counting)


def test_the_prompts_wordings_are_those_of_training_captions():
    metadata = prompts(1, 20, seed=0, split="train")
    wanted = {e["prompt"] for e in metadata if e["tag"] in ("single_object", "counting")}
    read = set()
    for i in range(4000):
        read |= {c.text for c in captions(sample_scene(i, level=1), seed=i) if c.kind == "short"}
    assert wanted <= read
    known = set(vocabulary(1, "en"))
    for entry in prompts(1, 40, seed=0):
        assert set(entry["prompt"].split()) <= known


def test_the_level_of_a_model_is_the_highest_whose_words_it_knows():
    assert known_level(vocabulary(1)) == 1
    assert known_level(vocabulary(3, "en")) == 3
    assert known_level(["dog"]) == 1
    assert known_level(()) == 2


def test_score_refuses_lists_that_do_not_match():
    with pytest.raises(GessoError, match="metadata"):
        score([], prompts(1, 1))
    assert set(SHAPES[:4]) >= {c["class"] for e in prompts(1, 9) for c in e["include"]}
