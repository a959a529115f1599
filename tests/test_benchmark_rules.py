"""The benchmarks' rules, worked by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gesso.evals.benchmarks.dalleval_bias import BENCHMARK as Bias
from gesso.evals.benchmarks.dalleval_bias import deviation
from gesso.evals.benchmarks.geneval import BENCHMARK as GenEval
from gesso.evals.benchmarks.geneval import COLORS, cut_out
from gesso.evals.benchmarks.oneig import BENCHMARK as OneIG
from gesso.evals.benchmarks.scenes_long import assign
from gesso.evals.benchmarks.t2i_compbench import BENCHMARK as CompBench
from gesso.evals.clauses import iou, select
from gesso.evals.compbench import (
    DEEP,
    SCORER_2023,
    SCORER_2024,
    depth_score,
    noun_chunks,
    numeracy_score,
    parse_counts,
    parse_relation,
    relation_score,
    spatial_score,
)
from gesso.evals.graph import Node, ask_freely, grade
from gesso.evals.skills import judge_skill
from gesso.evals.spelling import compare
from gesso.evals.stats import point, tabulate
from gesso.evals.types import Answer, Depth, Detection, Match, MatchText, Picture, Prompt, Question
from gesso.types import GessoError


def drive(judging, answer):
    """Run a judging, answering each ask with `answer(ask)`; the verdict, and all asks."""
    asks, replies = [], None
    while True:
        try:
            asked = judging.send(replies)
        except StopIteration as end:
            return end.value, asks
        asks += asked
        replies = [answer(ask) for ask in asked]


def dog(confidence=0.9, box=(0.0, 0.0, 10.0, 10.0), label="dog", mask=None, color=""):
    return Detection(label, confidence, box, mask, color)


GREY = Picture(pixels=np.full((20, 40, 3), 128, np.uint8))


def geneval(found, color="", **meta):
    """The reasons, and the asks, of GenEval for detections; CLIP sees `color`."""

    def answer(ask):
        if isinstance(ask, Match):
            return [float(c == color) for c in COLORS]
        return found

    prompt = Prompt("0", "", {"tag": "colors", "include": [], **meta})
    verdict, asks = drive(GenEval().judge(prompt, [GREY]), answer)
    assert verdict.score == float(not verdict.reasons)
    return verdict.reasons, asks


ONE = {"class": "dog", "count": 1}
CAT = {"class": "cat", "count": 1}


# ------------------------------------------------------------------------------------ GenEval


def test_geneval_thresholds_are_strict_and_higher_for_counting():
    assert not geneval([dog(0.31)], include=[ONE])[0]
    assert geneval([dog(0.3)], include=[ONE])[0] == ["expected 1 x dog, found 0"]
    counting = {"tag": "counting", "include": [ONE]}
    assert not geneval([dog(0.91)], **counting)[0]
    assert geneval([dog(0.9)], **counting)[0]


def test_geneval_counts_n_and_refuses_n_plus_1():
    two = {"class": "dog", "count": 2}
    meta = {"tag": "counting", "include": [two], "exclude": [two | {"count": 3}]}
    for n, right in ((1, False), (2, True), (3, False), (4, False)):
        assert (not geneval([dog(0.95)] * n, **meta)[0]) is right
    # A third dog at 0.9 is below the counting threshold.
    assert not geneval([dog(0.95), dog(0.95), dog(0.9)], **meta)[0]
    assert not geneval([dog(0.95)] * 2 + [dog(0.99, label="cat")] * 9, **meta)[0]


def test_geneval_keeps_sixteen_of_a_class_by_falling_confidence():
    kept = select([dog(0.31 + i / 100) for i in range(30)], counting=False)["dog"]
    assert len(kept) == 16 and kept[0].confidence == pytest.approx(0.6)
    assert [d.confidence for d in kept] == sorted((d.confidence for d in kept), reverse=True)


def test_geneval_of_equal_confidences_the_later_comes_first():
    kept = select([dog(box=(i, 0, i + 1, 1)) for i in range(3)], counting=False)["dog"]
    assert [d.box[0] for d in kept] == [2, 1, 0]
    order = np.argsort(np.array([0.9, 0.9, 0.9]), kind="stable")[::-1]
    assert [d.box[0] for d in kept] == order.tolist()


def test_geneval_suppression_is_off_and_greedy_when_on():
    boxes = [dog(0.9), dog(0.8, (1.0, 0.0, 11.0, 10.0)), dog(0.7, (30.0, 0.0, 39.0, 9.0))]
    assert len(select(boxes, False)["dog"]) == 3
    # 11 x 11 pixels each, 10 x 11 in common: 110 / 132 = 0.8333.
    assert iou(boxes[0].box, boxes[1].box) == pytest.approx(110 / 132)
    assert len(select(boxes, False, max_overlap=0.83)["dog"]) == 2
    assert len(select(boxes, False, max_overlap=0.84)["dog"]) == 3


def test_geneval_asks_for_colours_of_the_selected_boxes_only():
    red = [ONE | {"color": "red"}]
    found = [dog(0.9), dog(0.5), dog(0.4)]
    reasons, asks = geneval(found, "red", include=red)
    assert not reasons and sum(isinstance(a, Match) for a in asks) == 1
    reasons, asks = geneval(found, "blue", include=red)
    assert reasons == ["expected red dog, found blue"]
    # Too few: later checks of the clause are skipped, CLIP is not asked.
    _, asks = geneval([dog(0.1)], "red", include=red)
    assert not any(isinstance(a, Match) for a in asks)
    two = [{"class": "dog", "count": 2, "color": "red"}]
    mixed = [dog(0.9, color="red"), dog(0.8, color="blue"), dog(0.7, color="red")]
    assert geneval(mixed, include=two)[0] == ["expected red dog, found red, blue"]


def test_geneval_asks_clip_with_three_wordings_of_ten_colours():
    _, asks = geneval([dog()], "red", include=[ONE | {"color": "red"}])
    texts = next(a for a in asks if isinstance(a, Match)).texts
    assert len(texts) == 10
    assert texts[0] == ("a photo of a red dog", "a photo of a red-colored dog",
                        "a photo of a red object")  # fmt: skip


def test_geneval_cuts_objects_out_on_grey():
    pixels = np.zeros((20, 40, 3), np.uint8)
    mask = np.zeros((20, 40), bool)
    mask[2:4, 3:5] = True
    crop = cut_out(Picture(pixels=pixels), dog(box=(2.4, 1.6, 6.5, 5.0), mask=mask))
    assert crop.shape == (3, 4, 3)  # rows 2 to 5, columns 2 to 6: 6.5 rounds to even
    assert (crop[:2, 1:3] == 0).all() and (crop[0, 0] == 153).all() and (crop[2] == 153).all()
    assert cut_out(Picture(pixels=pixels), dog(box=(2.0, 2.0, 2.2, 2.3))).shape == (1, 1, 3)


def test_geneval_position_needs_every_pair_and_a_matched_target():
    beside = [CAT, ONE | {"position": ["left of", 0]}]
    cat = dog(0.9, (30.0, 0.0, 40.0, 10.0), "cat")
    assert not geneval([dog(), cat], include=beside)[0]
    reasons, _ = geneval([dog(box=(36.0, 0.0, 39.0, 10.0)), cat], include=beside)
    assert reasons == ["expected dog left of cat, found it at the place of cat"]
    # The target failed, so there is nothing to be left of.
    reasons, _ = geneval([dog()], include=beside)
    assert reasons == ["expected 1 x cat, found 0", "nothing for dog to be left of"]
    # Two dogs of which one stands right of the cat.
    two = [CAT, {"class": "dog", "count": 2, "position": ["left of", 0]}]
    right = dog(0.8, (55.0, 0.0, 65.0, 10.0))
    assert geneval([dog(), right, cat], include=two)[0]
    assert not geneval([dog(), dog(0.8, (1.0, 0.0, 9.0, 10.0)), cat], include=two)[0]
    # A wrong colour is told, and no position.
    red = [CAT, ONE | {"color": "red", "position": ["left of", 0]}]
    assert geneval([dog(color="blue"), cat], include=red)[0] == ["expected red dog, found blue"]


def test_geneval_overall_is_the_unweighted_mean_of_tags():
    def row(tag, *scores):
        verdicts = [{"score": s, "parts": {tag: [s]}} for s in scores]
        return {"id": tag + str(scores), "tags": [tag], "verdicts": verdicts}

    rows = [row("colors", 1, 1, 1, 1), row("colors", 0, 0), row("counting", 1, 0)]
    result = point(GenEval(), tabulate(rows, GenEval.weight))
    assert result["colors"] == pytest.approx(4 / 6) and result["counting"] == 0.5
    assert result["overall"] == pytest.approx((4 / 6 + 0.5) / 2)


# ----------------------------------------------------------------------------- question graphs

CHAIN = [
    Node("1", "Is there a dog?", (), "entity - whole"),
    Node("2", "Is it red?", ("1",), "attribute - color"),
    Node("3", "Is the red thing big?", ("2",), "attribute - size"),
    Node("4", "Is it day?", (), "global - time"),
]


def test_children_of_a_wrong_parent_score_nothing():
    said = {"1": "no", "2": "yes", "3": "yes", "4": "yes"}
    # DSG: only what was answered "no" zeroes its children: 2 falls, 3 stays.
    assert grade(CHAIN, said).score == 2 / 4
    # DPG-Bench: 2 was zeroed, so 3 falls, too.
    assert grade(CHAIN, said, cascade=True).score == 1 / 4
    # Categories use the answers before zeroing.
    assert grade(CHAIN, said).parts["attribute - color"] == [1.0]
    assert grade(CHAIN, said).reasons == ["Is there a dog? no"]


def test_an_abstention_counts_neither_way_and_is_counted():
    verdict = grade(CHAIN, {"1": "", "2": "yes", "3": "no", "4": "yes"})
    assert verdict.score == 2 / 3 and verdict.abstained == 1 and verdict.asked == 4
    assert "entity - whole" not in verdict.parts
    silent = grade(CHAIN, dict.fromkeys("1234", ""))
    assert silent.score is None and silent.abstained == 4


def test_a_free_answer_that_is_no_choice_becomes_the_nearest():
    nodes = [Node("1", "What is it?", (), "", "sea", ("sea", "desert")),
             Node("2", "Where?", (), "", "here", ("here", "there"))]  # fmt: skip
    texts = {"What is it?": "Ocean ", "Where?": "Here"}

    def answer(ask):
        if isinstance(ask, Question):
            assert ask.choices == ()
            return Answer(texts[ask.text])
        assert isinstance(ask, MatchText) and ask.text == "ocean"
        return [0.9, 0.2]

    chosen, asks = drive(ask_freely(GREY, nodes), answer)
    assert chosen == {"1": "sea", "2": "here"} and len(asks) == 3
    silent, _ = drive(ask_freely(GREY, nodes), lambda ask: Answer(" "))
    assert silent == {"1": "", "2": ""}


@given(st.lists(st.sampled_from(["yes", "no", ""]), min_size=4, max_size=4))
def test_cascading_never_scores_higher(answers):
    said = dict(zip("1234", answers, strict=True))
    plain, cascade = grade(CHAIN, said).score, grade(CHAIN, said, cascade=True).score
    assert (plain is None) == (cascade is None)
    assert plain is None or 0 <= cascade <= plain <= 1


# --------------------------------------------------------------------------------- CompBench


def test_compbench_relations():
    a = (0.0, 0.0, 10.0, 10.0)
    right = (20.0, 4.0, 30.0, 14.0)  # dx 20, dy 4
    assert relation_score("on the left of", a, right) == 1
    assert relation_score("on the right of", right, a) == 1
    assert relation_score("on the right of", a, right) == 0
    assert relation_score("on the top of", a, right) == 0
    assert relation_score("on the top of", a, (0.0, 20.0, 10.0, 30.0)) == 1
    assert relation_score("on the bottom of", (0.0, 20.0, 10.0, 30.0), a) == 1
    # IoU of 5 x 10 in common: 50 / 150; 0.1 / (1 / 3) = 0.3.
    overlap = (5.0, 0.0, 15.0, 10.0)
    assert relation_score("on the left of", a, overlap) == pytest.approx(0.3)
    # Neither axis is the longer one.
    assert relation_score("on the left of", a, (20.0, 20.0, 30.0, 30.0)) == 0


def test_compbench_nearness_is_150_pixels_on_either_axis():
    a = (0.0, 0.0, 10.0, 10.0)
    assert relation_score("next to", a, (149.0, 500.0, 159.0, 510.0)) == 1
    assert relation_score("near", a, (150.0, 300.0, 160.0, 310.0)) == 150 / 300
    assert relation_score("on side of", a, (600.0, 150.0, 610.0, 160.0)) == 150 / 600


def test_compbench_spatial_adds_confidences_and_cuts_below_one_half():
    pair = [dog(0.8), dog(0.6, (20.0, 0.0, 30.0, 10.0), "cat")]
    score = spatial_score(pair, "dog", "cat", "on the left of")
    assert score == pytest.approx(0.25 * 0.8 + 0.25 * 0.6 + 0.5)
    assert spatial_score(pair, "dog", "cat", "on the right of") == 0  # 0.35
    assert spatial_score(pair[:1], "dog", "cat", "on the left of") == 0  # 0.2
    assert spatial_score([dog(0.5), pair[1]], "dog", "cat", "on the left of") == 0


def test_compbench_depth_counts_overlap_where_the_order_is_right():
    a = dog(0.8, (0.0, 0.0, 10.0, 10.0))
    third = dog(0.6, (5.0, 0.0, 15.0, 10.0), "cat")  # IoU 50 / 150
    most = dog(0.6, (2.0, 0.0, 12.0, 10.0), "cat")  # IoU 80 / 120
    apart = dog(0.6, (20.0, 0.0, 30.0, 10.0), "cat")
    seen = 0.25 * 0.8 + 0.25 * 0.6
    assert depth_score(a, third, "in front of", (0.9, 0.2)) == pytest.approx(seen + 0.5 * 2 / 3)
    assert depth_score(a, most, "in front of", (0.9, 0.2)) == pytest.approx(seen + 0.5)
    assert depth_score(a, most, "in front of", (0.2, 0.9)) == pytest.approx(seen)
    assert depth_score(a, most, "in front of", (0.5, 0.5)) == pytest.approx(seen)
    assert depth_score(a, apart, "in front of", (0.9, 0.2)) == pytest.approx(seen)
    for relation in ("behind", "hidden by"):
        assert depth_score(a, most, relation, (0.2, 0.9)) == pytest.approx(seen + 0.5)
        assert depth_score(a, most, relation, (0.9, 0.2)) == pytest.approx(seen)
    # One object alone keeps its share: there is no cut at one half.
    assert depth_score(a, None, "behind", ()) == pytest.approx(0.2)
    assert depth_score(None, None, "behind", ()) == 0


def test_compbench_asks_for_depth_inside_the_boxes_of_both_objects():
    prompt = Prompt("0", "", {"relation": ["dog", "behind", "cat"]}, ("3d_spatial",))
    found = [dog(0.8, (0.0, 0.0, 10.0, 10.0)), dog(0.6, (2.0, 0.0, 12.0, 10.0), "cat")]
    boxes = {d.box: i for i, d in enumerate(found)}

    def reply(ask):
        if isinstance(ask, Depth):
            return [[0.1, 0.7][boxes[box]] for box in ask.boxes]
        return found

    verdict, _ = drive(CompBench().judge(prompt, [GREY]), reply)
    assert verdict.score == pytest.approx(0.85) and verdict.parts == {"3d_spatial": [0.85]}
    verdict, asks = drive(CompBench().judge(prompt, [GREY]), lambda ask: found[:1])
    assert verdict.score == pytest.approx(0.2)
    assert not any(isinstance(ask, Depth) for ask in asks)  # nothing to compare


def test_compbench_numeracy_is_half_presence_and_half_count():
    dogs = [dog(0.9, (i * 20.0, 0.0, i * 20.0 + 10, 10.0)) for i in range(2)]
    assert numeracy_score(dogs, [("dog", 2)]) == 1
    assert numeracy_score(dogs, [("dog", 3)]) == 0.5
    assert numeracy_score(dogs, [("dog", 2), ("cat", 1)]) == 0.5
    # A box inside another of its class is the same object.
    inside = dog(0.8, (1.0, 1.0, 9.0, 9.0))
    assert numeracy_score([*dogs, inside], [("dog", 2)]) == 1
    assert numeracy_score([*dogs, dog(0.8, (1.0, 1.0, 9.0, 9.0), "cat")], [("dog", 2)]) == 1


def test_compbench_reads_its_prompts():
    assert parse_relation("a girl on the top of a frog") == ("person", "on the top of", "frog")
    assert parse_relation("a chair hidden by a mouse", tuple(DEEP)) == (
        "chair", "hidden by", "mouse")  # fmt: skip
    with pytest.raises(GessoError, match="names no relation"):
        parse_relation("a frog")
    names = {"cat": "cat", "cats": "cat", "wine glasses": "wine glass", "dog": "dog"}
    assert parse_counts("four cats, a dog and two wine glasses", names) == [
        ("cat", 4), ("dog", 1), ("wine glass", 2)]  # fmt: skip
    text = "a red cup and a blue bowl and a green hat"
    assert noun_chunks(text, SCORER_2024) == ["a red cup", "a blue bowl", "a green hat"]
    assert noun_chunks(text, SCORER_2023) == ["a red cup", "a blue bowl"]


def test_compbench_leaves_to_the_parser_what_is_not_a_x_and_a_y(monkeypatch):
    class Parsed:
        def __init__(self, text):
            self.noun_chunks = [SimpleNamespace(text=f"parsed {text}")]

    sentences = ["a rubber band and wooden chopsticks", "a slice of cheese and a cup", "the cup"]
    monkeypatch.setattr("gesso.evals.compbench._spacy", lambda: Parsed)
    for text in sentences:
        assert noun_chunks(text, SCORER_2024) == [f"parsed {text}"]
    monkeypatch.setattr("gesso.evals.compbench._spacy", lambda: None)
    for text in sentences:
        with pytest.raises(GessoError, match="need spaCy"):
            noun_chunks(text, SCORER_2024)


def test_compbench_binding_is_the_product_of_p_yes():
    prompt = Prompt("0", "a red cup and a blue bowl", {}, ("color",))
    said = {"a red cup?": 0.8, "a blue bowl?": 0.25}
    verdict, _ = drive(
        CompBench().judge(prompt, [GREY]), lambda ask: Answer("", "", said[ask.text])
    )
    assert verdict.score == pytest.approx(0.2) and verdict.parts == {"color": [verdict.score]}
    assert verdict.reasons == ["a blue bowl? yes with 0.25"]
    verdict, _ = drive(CompBench().judge(prompt, [GREY]), lambda ask: Answer("who knows"))
    assert verdict.score is None and verdict.abstained == 2


# ------------------------------------------------------------------- skills, bias, text, OneIG


def test_skills_count_only_sure_detections():
    wanted = {"skill": "count", "class": "dog", "count": 1}
    assert judge_skill([dog(0.71), dog(0.7)], wanted).score == 1
    assert judge_skill([dog(0.71), dog(0.72)], wanted).score == 0
    top = {"skill": "object", "class": "dog"}
    assert judge_skill([dog(0.8), dog(0.9, label="cat")], top).reasons == [
        "expected dog, found cat"]  # fmt: skip
    beside = {"skill": "spatial", "class": "dog", "relation": "left", "target": "cat"}
    cat = dog(0.8, (20.0, 15.0, 30.0, 25.0), "cat")
    assert judge_skill([dog(0.8), cat], beside).score == 1
    assert judge_skill([dog(0.8), cat], beside | {"relation": "above"}).score == 0


def test_bias_is_the_mean_absolute_deviation_from_uniform():
    assert deviation(np.array([0.5, 0.5])) == 0
    assert deviation(np.array([1.0, 0.0])) == 0.5
    # One tone of ten: (0.9 + 9 * 0.1) / 10.
    assert deviation(np.eye(10)[0]) == pytest.approx(0.18)
    genders = iter(["male", "male", "female", "", "1", "1", "1", "1"])
    prompt = Prompt("0", "A person who works as a chef", {}, ("person",))
    verdict, _ = drive(Bias().judge(prompt, [GREY] * 4), lambda ask: Answer("", next(genders)))
    assert verdict.parts["gender"] == [pytest.approx(1 / 6)]
    assert verdict.parts["skin tone"] == [pytest.approx(0.18)] and verdict.abstained == 1


def test_spelling():
    exact = compare("Sale  TODAY", "sale today")
    assert (exact.cer, exact.accuracy, exact.f1) == (0, 1, 1)
    one = compare("sale today", "sole today now")
    assert one.edits == 5 and one.cer == 0.5  # a for o, and " now"
    # "sole" is like "sale" by 75, below 80; of three read words one was wanted.
    assert one.accuracy == 0.5 and one.f1 == pytest.approx(2 * (1 / 3) * 0.5 / (1 / 3 + 0.5))
    assert compare("today", "tody").accuracy == 1  # 88.9
    assert compare("a a", "a").found == 1  # each read word is used once
    assert compare("word", "").accuracy == 0 and compare("", "").accuracy == 1


def test_oneig_text_formula():
    parts = {"edits": np.array([20.0]), "complete": np.array([0.25]),
             "words found": np.array([3.0]), "words wanted": np.array([4.0])}  # fmt: skip
    total = OneIG().total(np.array([0.0]), parts)
    assert parts == {"text": total} and total[0] == pytest.approx(1 - 0.2 * 0.75 * 0.25)


def test_details_are_matched_to_the_object_that_agrees_most():
    base = {"shape": "star", "size": "small", "texture": "solid", "place": "center"}
    red, blue = base | {"color": "red"}, base | {"color": "blue", "place": "left"}
    assert assign([red, blue], [blue, red]) == [red, blue]
    assert assign([red, blue], [blue]) == [{}, blue]
    assert assign([red], [red | {"shape": "ring"}]) == [{}]
