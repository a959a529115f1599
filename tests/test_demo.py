"""The demo in miniature: the same path, a few steps, a page that stands on its own."""

import json
import re

import pytest

from gesso import demo, report
from gesso.types import GessoError


@pytest.fixture
def small_demo(monkeypatch, tiny_recipe, tmp_path):
    """`run_demo` on the tiny recipe, with a budget of seconds."""

    def load(name, overrides):
        assert name == "demo"
        recipe = tiny_recipe.model_copy(deep=True)
        recipe.data.cache = overrides[0].partition("=")[2]
        recipe.train.validate_every = 2
        return recipe

    monkeypatch.setattr(demo, "load_recipe", load)

    def run(**changes):
        options = {"minutes": 0.15, "run": tmp_path / "demo", "quiet": True, "per_tag": 1}
        return demo.run_demo(**{**options, **changes})

    return run


def test_the_demo_ends_with_a_page_that_needs_nothing_else(small_demo, tmp_path):
    result = small_demo()
    assert result["steps"] >= 1 and result["scores"].keys() == set(GENEVAL)
    page = (tmp_path / "demo" / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is fetched
    assert page.count("data:image/png;base64,") >= 8
    assert "<svg" in page and "held out" in page
    for prompt in ("a red circle", "two blue stars"):
        assert prompt in page
    for row in ("encoding", "training", "scoring", "in all"):
        assert f"<td>{row}</td>" in page
    cost = json.loads((tmp_path / "demo" / "cost.json").read_text())
    assert 1 < cost["encoding"] + result_seconds(tmp_path) < 60

    with pytest.raises(GessoError, match=r"finished demo.*--fresh"):
        small_demo()
    assert small_demo(fresh=True)["report"] == result["report"]


GENEVAL = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def result_seconds(tmp_path):
    rows = report.read_metrics(tmp_path / "demo")
    return max(r["seconds"] for r in rows if "seconds" in r)


def test_a_budget_that_is_too_small_is_one_sentence(small_demo):
    with pytest.raises(GessoError, match="leaves no time"):
        small_demo(minutes=0)
    with pytest.raises(GessoError, match="took the whole budget"):
        small_demo(minutes=1e-6)


def test_flops_are_those_of_the_matrix_products(tiny_recipe):
    # A product of [n, a] and [a, b] is 2 n a b; backward costs twice forward.
    n, d, blocks = 64, 32, 2
    text = len(tiny_recipe.validation.prompts[-1].split()) + 1
    self_attention = 2 * n * d * 4 * d + 2 * 2 * n * n * d
    cross_attention = 2 * n * d * 2 * d + 2 * text * d * 2 * d + 2 * 2 * n * text * d
    mlp = 2 * n * d * 8 * d
    backbone = 3 * blocks * (self_attention + cross_attention + mlp)
    flops = demo.training_flops(tiny_recipe)
    assert backbone < flops < 1.2 * backbone  # embeddings, text encoder and last layer on top


def test_durations_read_well():
    said = [report.duration(s) for s in (42.2, 591, 7500)]
    assert said == ["42 s", "9 min 51 s", "2 h 5 min"]


def test_a_metrics_line_cut_short_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')
    assert report.read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
    with pytest.raises(GessoError, match=r"no metrics.jsonl"):
        report.read_metrics(tmp_path / "elsewhere")


def test_text_in_the_page_is_escaped(tmp_path):
    file = tmp_path / "page.html"
    report.write_page(
        file, title="<script>x</script>", about="", cards=[], prompts=[], frames=[], cell=1,
        loss_plot="<svg></svg>", scores=[], failures=[], ledger=[], commands="a & b",
    )  # fmt: skip
    assert "&lt;script&gt;" in file.read_text() and "a &amp; b" in file.read_text()
