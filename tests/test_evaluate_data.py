"""Benchmarks against the published files: prompts are read, figures are reproduced."""

import csv
import importlib.util
import re
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from gesso.evals.benchmarks.geneval import BENCHMARK as GenEval
from gesso.evals.compbench import SCORER_2024, noun_chunks
from gesso.evals.job import open_benchmark
from gesso.evals.released import (
    correlation,
    human_ratings,
    mean_by_kind,
    released_answers,
    released_scores,
)
from gesso.evals.stats import point, tabulate
from gesso.evals.types import Detection, Options, Picture


@pytest.fixture(scope="module")
def files(shared):
    """The folder with every benchmark's prompt files."""
    return shared / "benchmarks"


@pytest.mark.parametrize(
    ("name", "count", "categories"),
    [
        ("geneval", 553, {"single_object": 80, "two_object": 99, "counting": 80, "colors": 94,
                          "position": 100, "color_attr": 100}),
        ("dsg", 1060, {"tifa": 160, "paragraph": 200, "real user": 200, "relation": 100}),
        ("partiprompts", 1632, {"Abstract": 51, "World Knowledge": 214}),
        ("drawbench", 200, {}),
        ("t2i_compbench", 2100, {"color": 300, "spatial": 300, "complex": 300}),
        ("t2i_compbench_2023", 2100, {"numeracy": 300}),
        ("oneig", 1120, {"Anime_Stylization": 245, "Text_Rendering": 200}),
        ("oneig_zh", 1320, {"Multilingualism": 200}),
        ("detailmaster", 800, {"person": 96}),
        ("longbench_t2i", 500, {}),
        ("bizeval", 411, {"slides": 329}),
        ("dalleval_bias", 252, {"man": 84, "woman": 84, "person": 84}),
        ("dalleval_skills", 2960, {"object": 400}),
    ],
)  # fmt: skip
def test_the_published_prompts_are_read(files, name, count, categories):
    prompts = open_benchmark(name).prompts(Options(prompts=files))
    assert len(prompts) == count == len({p.id for p in prompts})
    found = Counter(p.tags[0] for p in prompts if p.tags)
    assert {key: found[key] for key in categories} == categories


def test_relations_in_depth_are_asked_about_where_a_judge_tells_depth(files):
    benchmark = open_benchmark("t2i_compbench")
    benchmark.abilities = frozenset({"depth"})
    prompts = benchmark.prompts(Options(prompts=files))
    deep = [p for p in prompts if p.tags == ("3d_spatial",)]
    assert len(prompts) == 2400 and len(deep) == 300
    assert deep[0].meta == {"relation": ("dog", "in front of", "desk")}
    assert Counter(p.meta["relation"][1] for p in deep).keys() == {
        "in front of", "behind", "hidden by"}  # fmt: skip


def test_questions_of_dsg_and_oneig_are_all_there(files):
    dsg = open_benchmark("dsg").prompts(Options(prompts=files))
    questions = [q for p in dsg for q in p.meta["questions"]]
    assert len(questions) == 8182 - 1 or len(questions) == 8182
    assert sum(bool(q["parents"]) for q in questions) > 4000
    oneig = open_benchmark("oneig").prompts(Options(prompts=files))
    kinds = Counter(key for p in oneig for key in p.meta)
    assert kinds == {"questions": 695, "text": 200, "answer": 225}


def test_most_attribute_prompts_of_compbench_need_no_parser(files):
    prompts = open_benchmark("t2i_compbench").prompts(Options(prompts=files))
    simple = [p.text for p in prompts if p.tags[0] in ("color", "shape", "texture")]
    two = [t for t in simple if re.fullmatch(r"an? [a-z ]+ and an? [a-z ]+", t)]
    two = [t for t in two if t.count(" and ") == 1 and not re.search(r"\b(of|with|for|on|in)\b", t)]
    assert len(two) > 600 and all(len(noun_chunks(text, SCORER_2024)) == 2 for text in two)


def test_dsg_figures_agree_with_the_published_ones_to_the_digit(files):
    spec = importlib.util.spec_from_file_location(
        "dsg_figures", Path(__file__).parents[1] / "benchmarks" / "dsg.py"
    )
    figures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(figures)
    folder = files / "dsg"
    ours = mean_by_kind(released_scores(folder, "pali17b"), folder, "sd2dot1")
    assert {kind: round(value, 1) for kind, value in ours.items()} == figures.BY_KIND
    ratings = human_ratings(folder)
    for (judge, questions), published in figures.CORRELATIONS.items():
        found = correlation(released_scores(folder, judge, questions), ratings)
        assert tuple(round(v, 3) for v in found) == published, (judge, questions)


def test_released_nonsense_is_not_taken_for_yes(files):
    answers = released_answers(files / "dsg", "instructblip", "dsg")
    said = Counter(text for some in answers.values() for text in some.values())
    assert any(text.startswith("1000000") for text in said)  # it is there, and scores nothing
    scores = released_scores(files / "dsg", "instructblip")
    strange = [k for k, some in answers.items() if any(t.startswith("1000") for t in some.values())]
    assert all(scores[key] < 1 for key in strange)


def test_geneval_aggregates_human_annotations_as_counted_by_hand(files):
    """People's counts and colours, as detections through the rules, against a plain count.

    Position is left out: people told where things are in the picture, not boxes.
    """
    benchmark = GenEval()
    by_id = {int(p.id): p for p in benchmark.prompts(Options(prompts=files))}
    rows, plain = [], defaultdict(list)
    for model in ("clip", "if-xl", "sdv2"):
        pictures = defaultdict(list)
        with (files / "geneval" / "annotations" / f"annotations_{model}.csv").open() as file:
            for line in csv.DictReader(file):
                if line["Input.prompt_id"].isdigit():  # a few lines are cut in two by a newline
                    pictures[int(line["Input.prompt_id"]), line["Input.image_id"]].append(line)
        for (number, picture), lines in pictures.items():
            prompt = by_id[number]
            if prompt.meta["tag"] == "position":
                continue
            names = [lines[0]["Input.object_0_name"], lines[0]["Input.object_1_name"]]
            seen = []  # (class, median count, colours that most people named)
            for i, name in enumerate(names):
                told = [number_of(x[f"Answer.task-count-{i}"]) for x in lines]
                colors = Counter(c for x in lines for c in x[f"Answer.task-color-{i}"].split("|"))
                most = {c for c, n in colors.items() if 2 * n > len(lines)}
                seen.append((name, int(np.median(told)), most))
            found = []
            for clause in prompt.meta["include"]:
                for name, count, colors in seen:
                    if name == clause["class"]:
                        color = clause.get("color", "")
                        told = color if color in colors else "none"
                        found += [Detection(name, 0.95, (0, 0, 1, 1), None, told)] * count
            verdict = judged(benchmark, prompt, found)
            row = {"id": f"{model}-{number}-{picture}", "tags": list(prompt.tags)}
            score = {"score": verdict.score, "parts": verdict.parts}
            rows.append({**row, "verdicts": [score]})
            right = True
            for clause in prompt.meta["include"]:
                _, count, colors = next(s for s in seen if s[0] == clause["class"])
                right &= count >= clause["count"] and clause.get(
                    "color", next(iter(colors), "")
                ) in (colors or {""})
                if prompt.meta["tag"] == "counting":
                    right &= count == clause["count"]
            plain[prompt.meta["tag"]].append(right)
    result = point(benchmark, tabulate(rows, benchmark.weight))
    expected = {tag: float(np.mean(values)) for tag, values in plain.items()}
    assert len(rows) > 500 and len(expected) == 5
    assert {tag: result[tag] for tag in expected} == pytest.approx(expected, abs=1e-12)
    assert result["overall"] == pytest.approx(np.mean(list(expected.values())), abs=1e-12)


def number_of(text):
    """A count; a few lines hold a place there ("below")."""
    return int(float(text)) if text.replace(".", "").isdigit() else 0


def judged(benchmark, prompt, found):
    judging = benchmark.judge(prompt, [Picture(pixels=np.zeros((8, 8, 3), np.uint8))])
    next(judging)
    try:
        judging.send([found])
    except StopIteration as end:
        return end.value
    raise AssertionError("colours were told: nothing more is asked")
