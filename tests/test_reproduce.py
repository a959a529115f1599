"""`gesso reproduce`: jobs in processes, resumed after kills; verdicts; the experiments."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.stats import t, ttest_ind

from gesso import report
from gesso.data.scenes import has_held_out, render
from gesso.experiments import captions, measure
from gesso.experiments.design import Arm, Claim, Experiment, Job
from gesso.experiments.verdict import judge
from gesso.reproduce import results
from gesso.reproduce.figure import draw
from gesso.reproduce.run import reproduce_claims
from gesso.types import GessoError

TOY = """
import time
from pathlib import Path

from gesso.experiments.design import Arm, Claim, Experiment
from gesso.types import GessoError

PLACE = Path(__file__).parent


def arm(name, base, **options):
    def run(job):
        count = job.folder / "count"  # what a training's checkpoint is
        steps = int(count.read_text()) if count.exists() else 0
        with (PLACE / "sessions").open("a") as sessions:
            sessions.write(f"{name} {job.seed} {steps}\\n")
        while steps < 3:
            steps += 1
            count.write_text(str(steps))
            while name == "slow" and job.seed == 1 and (PLACE / "hold").exists():
                time.sleep(0.02)
        if (PLACE / "broken").exists() and name == "plain":
            raise GessoError("The pictures are gone: put them back.")
        return {"score": base + 0.01 * job.seed, "size": 5000.0}

    return Arm(name, "TOY ABOUT", run, **options)


def claim():
    arms = [arm("plain", 0.2), arm("slow", 0.5), arm("once", 0.3, seeds=1)]
    return [
        Experiment(
            "toy",
            "Slow arms score more.",
            "nothing is trained",
            arms,
            [
                Claim("slow beats plain", "score", {"slow": 1, "plain": -1}),
                Claim("plain beats slow", "score", {"plain": 1, "slow": -1}),
                Claim("once is near slow", "score", {"once": 1, "slow": -1}, -0.21),
            ],
            {"score": "score", "size": "parameters"},
        )
    ]
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A module with a `claim()` that trains nothing; returns a function that reproduces it."""
    place = tmp_path / "claims"
    place.mkdir()
    (place / "toy_claims.py").write_text(TOY)
    paths = [str(place), str(Path(__file__).parents[1])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.delitem(sys.modules, "toy_claims", raising=False)

    def run(**options):
        out = {"out": tmp_path / "out", "title": "Toy", "quiet": True}
        return reproduce_claims("toy_claims", **{**out, **options})

    run.place = place
    run.sessions = lambda: (place / "sessions").read_text().splitlines()
    return run


def test_arms_times_seeds_are_run_once_and_judged(toy, tmp_path):
    result = toy()
    (summary,) = result["experiments"]
    cells = {arm["name"]: arm["numbers"]["score"] for arm in summary["arms"]}
    assert cells["slow"]["values"] == [0.5, 0.51, 0.52] and cells["once"]["values"] == [0.3]
    assert cells["slow"]["mean"] == pytest.approx(0.51)
    assert cells["slow"]["sd"] == pytest.approx(0.01) and cells["once"]["sd"] is None
    assert [v["verdict"] for v in summary["verdicts"]] == [
        "shown",
        "contradicted",
        "not shown at this scale",
    ]
    assert len(toy.sessions()) == 7  # two arms of three seeds and one of one

    text = (tmp_path / "out" / "results.md").read_text()
    assert "| slow  | 0.510 ± 0.010 | 5,000      | 3     |" in text
    page = Path(result["report"]).read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is fetched
    assert "slow beats plain: shown" in page and "0.510 ± 0.010" in page
    assert re.findall('class="verdict ([^"]*)"', page) == ["shown", "contradicted", "not"]

    toy()
    assert len(toy.sessions()) == 7  # nothing ran again
    toy(seeds=4)
    assert toy.sessions()[7:] in (["plain 3 0", "slow 3 0"], ["slow 3 0", "plain 3 0"])
    toy(fresh=True)
    assert len(toy.sessions()) == 16


def test_a_quick_run_gives_no_verdict(toy, monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    result = toy(quick=True, quiet=False)
    shown = capsys.readouterr().err
    assert "of 3 jobs" in shown and "toy · slow · seed 0: score 0.500" in shown
    (summary,) = result["experiments"]
    assert summary["verdicts"] == [] and summary["arms"][0]["seeds"] == 1
    assert "proves nothing" in results.markdown(summary)
    assert "prove nothing" in Path(result["report"]).read_text()


def start(tmp_path, *signals):
    """`reproduce_claims` in a process of its own."""
    code = (
        "import sys; from pathlib import Path; from gesso.reproduce.run import reproduce_claims; "
        "r = reproduce_claims('toy_claims', title='Toy', out=Path(sys.argv[1]), workers=2); "
        "print(r)"
    )
    return subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")])


def wait_for(condition, seconds=30):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_stopped_run_continues_where_it_was(toy, tmp_path, number):
    (toy.place / "hold").touch()
    held = tmp_path / "out" / "toy" / "slow" / "seed-1"
    process = start(tmp_path)
    wait_for(lambda: (held / "count").exists() and (held / "count").read_text() == "1")
    lock = held / "lock"
    process.send_signal(number)
    process.wait(timeout=30)
    before = toy.sessions()
    (toy.place / "hold").unlink()
    done = list((tmp_path / "out").rglob("result.json"))
    assert done and not (held / "result.json").exists() and lock.exists()

    toy()
    again = toy.sessions()[len(before) :]
    assert "slow 1 1" in again  # its first step was not repeated
    assert len(again) == 7 - len(done)  # and what was finished did not run again


def test_a_failed_job_is_one_sentence_and_the_rest_stays(toy, tmp_path):
    (toy.place / "broken").touch()
    with pytest.raises(GessoError, match=r"toy · plain · seed 0 failed.*log\.txt: The pictures"):
        toy(workers=1)
    (toy.place / "broken").unlink()
    assert toy()["experiments"][0]["arms"][0]["seeds"] == 3


def test_results_of_another_definition_do_not_mix(toy, tmp_path):
    toy()
    source = toy.place / "toy_claims.py"
    source.write_text(TOY.replace("TOY ABOUT", "another width"))
    del sys.modules["toy_claims"]
    with pytest.raises(GessoError, match=r"defined otherwise.*--fresh"):
        toy()
    file = tmp_path / "out" / "toy" / "plain" / "seed-0" / "result.json"
    file.write_text("{")
    with pytest.raises(GessoError, match=r"is not a result: delete it"):
        toy()


def test_bad_requests_are_one_sentence(toy, call):
    with pytest.raises(GessoError, match="did you mean 'toy'"):
        toy(only="toi")
    with pytest.raises(GessoError, match="--seeds 0"):
        toy(seeds=0)
    code, _, err = call("reproduce", "pixart-alfa")
    assert code == 2 and "did you mean 'pixart-alpha'" in err
    assert "Traceback" not in err and len(err.strip().splitlines()) == 1


def test_numbers_read_well():
    said = [results.number(v) for v in (0.1234, 4.5678, 78.91, 1234.5, None)]
    assert said == ["0.123", "4.568", "78.9", "1,234", "–"]
    assert results.with_spread({"mean": 253.1, "sd": 2.345}) == "253.1 ± 2.3"
    assert results.with_spread({"mean": 0.5, "sd": None}) == "0.500"


A_BEATS_B = Claim("a beats b", "score", {"a": 1, "b": -1})


@pytest.mark.parametrize(
    ("a", "b", "above", "verdict"),
    [
        ([0.50, 0.52, 0.51], [0.30, 0.29, 0.31], 0.0, "shown"),
        ([0.30, 0.29, 0.31], [0.50, 0.52, 0.51], 0.0, "contradicted"),
        ([0.50, 0.30, 0.40], [0.35, 0.45, 0.38], 0.0, "not shown at this scale"),
        ([0.50, 0.52, 0.51], [0.50, 0.51, 0.52], -0.05, "shown"),  # not worse by more than 0.05
        ([0.50, 0.52, 0.51], [0.30, 0.29, 0.31], 0.5, "contradicted"),
        ([5.0, 5.0], [4.0, 4.0], 0.0, "shown"),  # numbers that do not depend on the seed
        ([5.0, 5.0], [5.0, 5.0], 0.0, "not shown at this scale"),
        ([0.5], [0.3], 0.0, "not judged"),
        ([0.5, 0.6], [], 0.0, "not judged"),
    ],
)
def test_verdicts_on_made_up_numbers(a, b, above, verdict):
    found = judge(Claim("a beats b", "score", {"a": 1, "b": -1}, above), {"a": a, "b": b})
    assert found.verdict == verdict


def test_the_interval_is_welchs():
    a, b = [0.50, 0.55, 0.47, 0.52], [0.30, 0.41, 0.33]
    found = judge(A_BEATS_B, {"a": a, "b": b})
    expected = ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert found.value == pytest.approx(np.mean(a) - np.mean(b))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_contrasts_of_four_arms_and_arms_with_one_seed():
    values = {"a": [0.5, 0.6], "b": [0.2, 0.3], "c": [0.4, 0.5], "d": [0.4, 0.3]}
    gap = Claim("the gap grows", "score", {"a": 1, "b": -1, "c": -1, "d": 1})
    found = judge(gap, values)
    # Equal spread s = 0.1 / sqrt(2) in four arms of two: s^2 / 2 each, four degrees of freedom.
    half = 2.7764451 * math.sqrt(4 * 0.005 / 2)
    assert found.value == pytest.approx(0.2)
    assert found.high - found.low == pytest.approx(2 * half)
    # One seed: the spread of the other arms, with all of their degrees of freedom.
    single = judge(A_BEATS_B, {**values, "a": [0.55]})
    freedom = 0.0075**2 / (0.005**2 / 3 + 0.0025**2)
    assert single.high - single.value == pytest.approx(t.ppf(0.975, freedom) * 0.0075**0.5)


def test_an_experiment_names_only_arms_and_metrics_that_it_has():
    arm = Arm("a", "", lambda job: {})
    with pytest.raises(ValueError, match="unknown in claims"):
        Experiment("e", "", "", [arm], [A_BEATS_B], {"score": "score"})
    with pytest.raises(ValueError, match="without a column"):
        Experiment("e", "", "", [arm], [Claim("", "loss", {"a": 1})], {"score": "score"})


@pytest.mark.parametrize("sweep", [False, True])
def test_figures_are_small_pngs(tmp_path, sweep):
    arms = [
        {
            "name": f"arm {i}",
            "line": ("deferred", "naive", "")[i % 3] if sweep else "",
            "at": 0.25 * i if sweep else None,
            "numbers": {"score": {"mean": 0.1 * i, "sd": 0.02, "values": [0.1 * i, 0.11 * i]}},
        }
        for i in range(6)
    ]
    summary = {
        "figure": ["score"],
        "arms": arms,
        "metrics": {"score": "score"},
        "at_label": "ratio",
    }
    draw(summary, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as image:
        assert image.width > 400 and len(np.unique(np.asarray(image.convert("L")))) > 20
    assert (tmp_path / "figure.png").stat().st_size < 150_000


def test_captions_judge_what_was_asked_for():
    scenes = captions.test_scenes(6)
    assert all(has_held_out(scene) and scene.relation for scene in scenes)
    right = captions.judge([render(scene, 64, 64) for scene in scenes], scenes)
    assert right == {"attributes": 1.0, "relations": 1.0}
    turned = [np.ascontiguousarray(render(s, 64, 64)[::-1, ::-1]) for s in scenes]
    assert captions.judge(turned, scenes)["relations"] == 0.0
    others = captions.judge([render(s, 64, 64) for s in scenes[1:] + scenes[:1]], scenes)
    assert others["attributes"] < 0.6


def test_an_arms_training_continues_and_is_not_repeated(tiny_recipe, tmp_path):
    job = Job(seed=3, quick=False, folder=tmp_path / "job", shared=tmp_path / "shared")
    tiny_recipe.train.steps, tiny_recipe.train.processes = 2, 1
    first = measure.train(job, tiny_recipe)
    assert first.steps == 2 and first.loss > 0
    assert measure.train(job, tiny_recipe) == first  # at once, from its summary
    (first.run / "trained.json").unlink()  # a kill after the checkpoint of step 2
    tiny_recipe.train.steps = 3
    longer = measure.train(job, tiny_recipe)
    assert longer.steps == 3 and longer.flops == pytest.approx(1.5 * first.flops)
    steps = [row["step"] for row in report.read_metrics(first.run) if "loss" in row]
    assert steps == sorted(set(steps))  # nothing was done twice
    assert len(list((tmp_path / "shared").glob("cache-*/"))) == 1


def test_quick_through_the_command_line(call, tmp_path):
    args = ("reproduce", "pixart-alpha", "--only", "captions", "--quick", "--json")
    code, out, err = call(*args)
    assert code == 0, err
    result = json.loads(out)
    (summary,) = result["experiments"]
    for arm in summary["arms"]:
        numbers = arm["numbers"]
        assert numbers["tflop"]["mean"] > 0 and 0 <= numbers["attributes_short"]["mean"] <= 1
    assert len({arm["numbers"]["tflop"]["mean"] for arm in summary["arms"]}) == 1  # equal cost
    assert (tmp_path / result["report"]).is_file()
