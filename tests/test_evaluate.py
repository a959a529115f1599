"""`gesso evaluate` and `gesso compare`, end to end on small models and folders of pictures."""

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gesso.data.scenes import render, sample_scene
from gesso.evals import job, painting
from gesso.evals._scene_prompts import paint_truth, prompts
from gesso.evals.benchmarks.scenes import BENCHMARK as Scenes
from gesso.evals.compare import compare_files
from gesso.evals.job import Request, evaluate, open_benchmark, spread
from gesso.evals.judging import Asker, decode, encode, open_judge, parse_spec
from gesso.evals.painting import Settings
from gesso.evals.stats import intervals, paired, point, tabulate
from gesso.evals.types import (
    Answer,
    Detection,
    Judge,
    Options,
    Picture,
    Prompt,
    Question,
    Rating,
    Read,
)
from gesso.types import GessoError

LEVEL1 = ("evaluate", "scenes", "--level", 1)


@pytest.fixture
def truth(tmp_path):
    """A folder of pictures that fulfil the prompts of scenes, one a tag, two each."""

    def make(name="truth", wrong=()):
        folder = tmp_path / name
        folder.mkdir()
        for i, row in enumerate(prompts(1, 1, 0, "test")):
            for k in range(2):
                pixels = paint_truth(row, 1, 10 * i + k)
                if i in wrong:
                    pixels = np.full_like(pixels, 180)
                Image.fromarray(pixels).save(folder / f"{i:05}_{k}.png")
        return folder

    return make


def scenes(call, *more):
    return call(*LEVEL1, "--per-tag", 1, *more)


# ------------------------------------------------------------------------------ whole commands


def test_a_model_is_painted_judged_and_reported(call, model_folder):
    code, out, err = scenes(call, "-m", model_folder, "-n", 2, "--out", "e", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["benchmark"] == "scenes-level1-test" and told["judge"] == "reader-level1"
    assert told["n"] == 12 and len(told["scores"]) == 6
    assert told["overall"] == pytest.approx(sum(told["scores"].values()) / 6)
    result = json.loads(Path(told["file"]).read_text())
    assert result["prompts"]["count"] == 6 and len(result["prompts"]["fingerprint"]) == 16
    assert result["subject"]["fingerprint"] and result["judges"][0]["fingerprint"]
    assert result["versions"].keys() >= {"gesso", "torch", "python"}
    assert all(len(v["pictures"]) == 1 for row in result["rows"] for v in row["verdicts"])
    page = Path("e/report.html").read_text()
    assert "GenEval on scenes" in page and "Worst pictures" in page and "expected" in page
    assert 'src="data:image/png' in page and "http" not in page.replace("http-equiv", "")
    # The same numbers as the function that training and experiments call.
    from gesso.evals.scenes import evaluate_model

    again = evaluate_model(str(model_folder), level=1, per_tag=1, n=2, quiet=True)
    assert again["scores"] == told["scores"] and again["n"] == told["n"]


def test_truth_in_a_folder_scores_one_in_each_layout(call, truth, tmp_path):
    flat = truth()
    listed, numbered = tmp_path / "listed", tmp_path / "numbered"
    listed.mkdir()
    lines = []
    for i, row in enumerate(prompts(1, 1, 0, "test")):
        for k in range(2):
            shutil.copy(flat / f"{i:05}_{k}.png", listed / f"any{i}{k}.png")
            lines.append(json.dumps({"file": f"any{i}{k}.png", "prompt": row["prompt"]}))
            place = numbered / f"{i:05}" / "samples"
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(flat / f"{i:05}_{k}.png", place / f"{k:04}.png")
        meta = json.dumps({"prompt": row["prompt"]})
        (numbered / f"{i:05}" / "metadata.jsonl").write_text(meta)
    (listed / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    code, out, err = scenes(
        call, *("--pictures", flat, "--pictures", listed, "--pictures", numbered, "--json")
    )
    assert code == 0, err
    told = json.loads(out)
    assert [one["overall"] for one in told["results"]] == [1, 1, 1]
    assert [one["n"] for one in told["results"]] == [12, 12, 12]
    assert "Leaderboard" in Path(told["report"]).read_text()
    (numbered / "00001" / "metadata.jsonl").write_text('{"prompt": "a dog"}')
    code, _, err = scenes(call, "--pictures", numbered)
    assert code == 2 and "'a dog'" in err and "00001" in err


def test_missing_and_corrupt_pictures_are_listed_and_scored_only_if_allowed(call, truth):
    folder = truth()
    for k in range(2):
        (folder / f"00003_{k}.png").unlink()
    (folder / "00004_1.png").write_bytes((folder / "00004_0.png").read_bytes()[:60])
    args = ("--pictures", folder, "--out", "e")
    code, out, err = scenes(call, *args)
    assert code == 2 and not out and len(err.strip().splitlines()) == 1
    assert "1 of 6 prompts (00003)" in err and "00004_1.png" in err and "--allow-missing" in err
    listed = Path("e/missing-truth.txt").read_text()
    assert "no picture: 00003" in listed and "00004_1.png" in listed
    code, out, err = scenes(call, *args, "--allow-missing", "--json")
    assert code == 0, err
    told = json.loads(out)
    result = json.loads(Path(told["file"]).read_text())
    assert result["missing"] == ["00003"] and result["n"] == 9 and len(result["scores"]) == 5
    assert [Path(c["file"]).name for c in result["corrupt"]] == ["00004_1.png"]
    page = Path("e/report.html").read_text()
    assert "have no picture and are not in the score: 00003" in page and "00004_1.png" in page


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("scene",), "did you mean 'scenes'"),
        (("scenes", "--judge", "raeder"), "did you mean 'reader'"),
        (("scenes", "--judge", "reader:levle=2"), "levle"),
        (("scenes", "--judge", "reader:level=9"), "level = 9"),
        (("scenes", "--judge", "ocr"), "ability detect, which"),
        (("geneval", "--prompts", "nowhere"), "github.com/djghosh13/geneval"),
        (("scenes", "--pictures", "nowhere"), "no folder of pictures 'nowhere'"),
        (("scenes", "-m", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_one_sentence(call, args, says):
    code, out, err = call("evaluate", *args, "--level", 1)
    assert code == 2 and not out and says in err, err
    assert len(err.strip().splitlines()) == 1 and "Traceback" not in err


def test_a_folder_of_other_pictures_and_prompts_of_another_layout(call, truth, tmp_path):
    (tmp_path / "other").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "other" / "holiday.png")
    code, _, err = scenes(call, "--pictures", "other")
    assert code == 2 and "no picture of any of the 6 prompts" in err
    files = {
        "a.jsonl": ("geneval", '{"prompt": "a dog"}\n', "lacks 'tag', 'include'"),
        "b.jsonl": ("geneval", "{broken\n", "line 1 is not JSON"),
        "c.csv": ("dsg", "item_id,text\n", "lacks the columns"),
        "d.json": ("tifa", '{"a": 1}', "no list of questions"),
        "e.tsv": ("partiprompts", "prompt\nx\n", "lacks the columns Prompt"),
    }
    for name, (benchmark, text, says) in files.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(GessoError, match=says):
            open_benchmark(benchmark).prompts(Options(prompts=tmp_path / name))


# ------------------------------------------------------------------------------------- resuming


def test_what_was_painted_and_judged_is_not_done_again(tmp_path, model_folder, monkeypatch):
    request = Request(
        "scenes", tmp_path / "e", (str(model_folder),), options=Options(level=1, per_tag=1),
        n=2, quiet=True,
    )  # fmt: skip
    saved = painting._save
    monkeypatch.setattr(painting, "BATCH", 2)
    painted = []

    def stop_at_six(painter, wanted, image):
        if len(painted) == 6:
            raise KeyboardInterrupt
        saved(painter, wanted, image)
        painted.append(wanted.file)

    monkeypatch.setattr(painting, "_save", stop_at_six)
    with pytest.raises(KeyboardInterrupt):
        evaluate(request)
    before = {file: file.stat().st_mtime_ns for file in painted}
    monkeypatch.setattr(painting, "_save", saved)
    (first,) = evaluate(request)
    assert all(file.stat().st_mtime_ns == when for file, when in before.items())
    assert first["n"] == 12
    # A corrupt picture of the model's own is painted again, and a reply cut short asked again.
    painted[0].write_bytes(painted[0].read_bytes()[:100])
    (replies,) = (tmp_path / "e" / "replies").glob("*/0.jsonl")
    lines = replies.read_bytes()
    replies.write_bytes(lines[:-30])
    (again,) = evaluate(request)
    assert set(replies.read_bytes().splitlines()) >= set(lines.splitlines())
    monkeypatch.setattr(
        "gesso.evals.judges.reader.Reader.detect", lambda *_: pytest.fail("judged again")
    )
    assert evaluate(request)[0] == again
    assert {**again, "rows": 0} == {**first, "rows": 0}
    changed = again["rows"][0]["verdicts"][0]["pictures"][0]  # painted in another batch
    changed["sha256"] = first["rows"][0]["verdicts"][0]["pictures"][0]["sha256"]
    assert again["rows"] == first["rows"]


def test_a_killed_command_continues_and_processes_share_the_work(tmp_path, model_folder):
    command = [
        *(sys.executable, "-m", "gesso", "evaluate", "scenes", "-m", str(model_folder)),
        *("--level", "1", "--per-tag", "20", "-n", "1", "--out", str(tmp_path / "e"), "--json"),
    ]
    victim = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    pictures = tmp_path / "e" / "pictures"
    for _ in range(600):
        if len(list(pictures.glob("*/[0-9]*.png"))) >= 32:
            break
        time.sleep(0.1)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL
    kept = {f: f.stat().st_mtime_ns for f in pictures.glob("*/[0-9]*.png")}
    assert 32 <= len(kept) < 120
    request = Request(
        "scenes", tmp_path / "e", (str(model_folder),), options=Options(level=1, per_tag=20),
        n=1, processes=2, quiet=True,
    )  # fmt: skip
    (shared,) = evaluate(request)
    assert shared["n"] == 120 and all(f.stat().st_mtime_ns == t for f, t in kept.items())
    assert len(list((tmp_path / "e" / "replies").glob("*/*.jsonl"))) == 2


# -------------------------------------------------------------------------------------- judges


class Stub(Judge):
    """Answers from a function, and counts what it was asked."""

    name, fingerprint, abilities, batch_size = "stub", "s" * 16, ("answer", "read"), 2

    def __init__(self, say=lambda question: "yes"):
        self.say, self.calls = say, []

    def answer(self, images, questions, choices):
        self.calls.append(list(questions))
        said = [self.say(question) for question in questions]
        return [
            Answer(text, text if not some or text in some else "")
            for text, some in zip(said, choices, strict=True)
        ]

    def read(self, images):
        return ["" for _ in images]


def grey(value):
    return Picture(pixels=np.full((8, 8, 3), value, np.uint8))


def test_asks_are_batched_asked_once_and_kept(tmp_path):
    def judging(picture):
        first, second = yield [Question(picture, "a"), Question(picture, "a")]
        (word,) = yield [Read(picture)]
        (third,) = yield [Question(picture, "b")]
        return first.text + second.text + third.text + word

    judge = Stub(lambda q: q)
    asker = Asker([judge], tmp_path)
    assert asker.run([judging(grey(1)), judging(grey(2))]) == ["aab", "aab"]
    assert judge.calls == [["a", "a"], ["b", "b"]]  # of two pictures, each question once
    again = Stub(lambda q: pytest.fail("asked again"))
    assert Asker([again], tmp_path).run([judging(grey(1))]) == ["aab"]
    other = Stub(lambda q: q.upper())
    other.fingerprint = "o" * 16
    assert Asker([other], tmp_path).run([judging(grey(1))]) == ["AAB"]


@pytest.mark.parametrize(
    "reply",
    [
        Answer("yes", "yes", 0.1 + 0.2),
        Rating(None, "?"),
        Rating(2.5),
        "two\nlines",
        [0.1 + 0.2, -1.0],
        [],
        np.array([0.5, np.float32(0.1)], np.float32),
        [Detection("dog", 0.3, (0.1, 2.0, 3.5, 4.0), np.eye(5, 7) > 0, "red", "big", "dotted")],
        [Detection("dog", 0.3, (0.1, 2.0, 3.5, 4.0))],
    ],
)
def test_replies_survive_the_disk(reply):
    back = decode(json.loads(json.dumps(encode(reply))))
    assert type(back) is type(reply) and repr(back) == repr(reply)
    if isinstance(reply, np.ndarray):
        assert (back == reply).all() and back.dtype == reply.dtype


def test_abstentions_are_counted_and_shown_never_no(call, tmp_path, monkeypatch):
    table = "item_id,text,proposition_id,dependency,tuple,question_natural_language\n"
    table += "tifa_1,a dog,1,0,entity - whole (dog),Is there a dog?\n"
    table += "tifa_1,a dog,2,1,attribute - color (red),Is it red?\n"
    (tmp_path / "q.csv").write_text(table)
    (tmp_path / "p").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "p" / "tifa_1.png")
    judge = Stub({"Is there a dog?": "", "Is it red?": "yes"}.get)
    monkeypatch.setattr(job, "open_judge", lambda spec, device: judge)
    args = ("evaluate", "dsg", "--prompts", "q.csv", "--pictures", "p", "--json")
    code, out, err = call(*args, "--out", "e")
    assert code == 0, err
    told = json.loads(out)
    assert (told["overall"], told["asked"], told["abstained"]) == (1.0, 2, 1)
    assert "abstained from 1 of 2 questions" in Path("e/report.html").read_text()
    judge.say = lambda question: "10000"
    judge.fingerprint = "n" * 16
    code, out, err = call(*args, "--out", "f")
    assert code == 0 and json.loads(out)["overall"] is None, err
    assert json.loads(out)["abstained"] == 2


def test_specs_of_judges():
    assert parse_spec("clip") == {"name": "clip"}
    assert parse_spec("hf-vqa:a/b") == {"name": "hf-vqa", "path": "a/b"}
    assert parse_spec("x:path=a:b,n=0.5") == {"name": "x", "path": "a:b", "n": 0.5}
    assert open_judge("reader:level=1").name == "reader-level1"
    with pytest.raises(GessoError, match="without a value"):
        parse_spec("x:a=1,b")


# ------------------------------------------------------------------------------------- compare


def test_compare_tells_a_difference_and_refuses_what_is_unlike(call, truth):
    good, bad = truth("good"), truth("bad", wrong=range(6))
    args = ("--pictures", good, "--pictures", bad, "--out", "e", "--json")
    code, out, err = scenes(call, *args)
    assert code == 0, err
    a, b = (one["file"] for one in json.loads(out)["results"])
    code, out, err = call("compare", a, b, "--json")
    assert code == 0, err
    overall = json.loads(out)["scores"]["overall"]
    assert (overall["a"], overall["b"], overall["difference"]) == (1, 0, 1)
    assert overall["interval"] == [1, 1]
    # All six prompts must fall the same way by chance: 2 of 64 exchanges.
    assert overall["p"] == pytest.approx(2 / 64, abs=0.006)
    same = compare_files(Path(a), Path(a))["scores"]["overall"]
    assert same["difference"] == 0 and same["p"] == 1
    code, out, err = call("compare", a, b)
    assert code == 0 and "+1.000" in out

    code, out, err = scenes(
        call, "--pictures", good, "--judge", "reader:level=2", "--out", "f", "--json"
    )
    c = json.loads(out)["file"]
    code, _, err = call("compare", a, c)
    assert code == 2 and "the judge (reader-level1" in err and "--anyway" in err
    code, out, err = call("compare", a, c, "--anyway")
    assert code == 0 and "Not measured alike" in out
    code, out, err = call(*LEVEL1, "--per-tag", 2, "--limit", 6, "--pictures", good, "--out", "g",
                          "--allow-missing", "--json")  # fmt: skip
    assert code == 0, err
    code, _, err = call("compare", a, json.loads(out)["file"])
    assert code == 2 and "the prompts (6, " in err
    Path("broken.json").write_text("{}")
    for file, says in (("broken.json", "lacks 'format'"), ("none.json", "no result")):
        code, _, err = call("compare", a, file)
        assert code == 2 and says in err and len(err.strip().splitlines()) == 1


def rows(*scores, tag="t"):
    return [
        {"id": f"{tag}{i}", "tags": [tag], "verdicts": [{"score": s, "parts": {tag: [s]}}]}
        for i, s in enumerate(scores)
    ]


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(3)
    covered = 0
    for trial in range(100):
        drawn = (generator.random(60) < 0.7).astype(float)
        low, high = intervals(Scenes(), tabulate(rows(*drawn), "prompt"), seed=trial)["overall"]
        covered += low <= 0.7 <= high
    assert 0.88 <= covered / 100 <= 0.99


def test_the_permutation_test_is_level_and_sees_pairs():
    generator = np.random.default_rng(4)
    below = 0
    for trial in range(100):
        a, b = generator.random((2, 30))
        left, right = (tabulate(rows(*x), "prompt") for x in (a, b))
        below += paired(Scenes(), left, right, seed=trial)["overall"]["p"] < 0.05
    assert below <= 12
    # A small gain on each prompt is certain when paired, though prompts differ by far more.
    base = generator.random(30)
    table = [tabulate(rows(*x), "prompt") for x in (base + 0.01, base)]
    result = paired(Scenes(), *table)["overall"]
    assert result["p"] < 0.001 and result["difference"] == pytest.approx(0.01)


def test_pictures_and_prompts_weigh_as_the_benchmark_says():
    uneven = [
        {"id": "a", "tags": [], "verdicts": [{"score": 1, "parts": {}}]},
        {"id": "b", "tags": [], "verdicts": [{"score": 0, "parts": {}}] * 3},
        {"id": "c", "tags": [], "verdicts": [{"score": None, "parts": {}}]},
    ]
    benchmark = open_benchmark("drawbench")
    assert point(benchmark, tabulate(uneven, "prompt"))["overall"] == 0.5
    assert point(benchmark, tabulate(uneven, "picture"))["overall"] == 0.25


def test_a_limit_takes_evenly_from_the_categories():
    entries = [Prompt(str(i), "", {}, ("ab"[i >= 8],)) for i in range(10)]
    assert [p.id for p in spread(entries, 4)] == ["0", "1", "8", "9"]
    assert [p.id for p in spread(entries, 5)] == ["0", "1", "2", "8", "9"]
    assert spread(entries, None) == entries


# -------------------------------------------------------------------------- scenes, diffusers


@pytest.mark.parametrize("name", ["scenes_skills", "scenes_long", "scenes_text"])
def test_truth_scores_high_on_every_kind_of_scenes(name):
    benchmark, level = open_benchmark(name), 3 if name == "scenes_text" else 2
    options = Options(level=level, per_tag=3)
    entries = benchmark.prompts(options)
    judges = [open_judge(spec) for spec in benchmark.default_judges(options)]
    if name == "scenes_skills":
        kept = [
            r for r in prompts(level, 3) if r["tag"] in ("single_object", "counting", "position")
        ]
        images = [paint_truth(row, level, i) for i, row in enumerate(kept)]
    else:
        found = (sample_scene(i, level=level, split="test") for i in range(1000))
        found = (s for s in found if s.word or name != "scenes_text")
        images = [render(scene, 64, 64) for _, scene in zip(entries, found, strict=False)]
    asker = Asker(judges)
    pairs = list(zip(entries, images, strict=True))
    verdicts = asker.run([benchmark.judge(p, [Picture(pixels=x)]) for p, x in pairs])
    assert np.mean([v.score for v in verdicts]) >= 0.95
    shuffled = asker.run([benchmark.judge(p, [Picture(pixels=x)]) for p, (_, x) in
                          zip(entries, pairs[1:] + pairs[:1], strict=True)])  # fmt: skip
    assert np.mean([v.score for v in shuffled]) < 0.6


def test_any_diffusers_pipeline_paints(tmp_path, shared):
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from diffusers import UNet2DConditionModel as UNet
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(
        shared / "weights" / "tokenizers" / "sd1_tokenizer", model_max_length=77
    )
    width = {"block_out_channels": (32, 32), "norm_num_groups": 8}
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4, **width,
        ),
        text_encoder=CLIPTextModel(CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
            num_attention_heads=2, projection_dim=16,
        )),
        tokenizer=tokenizer,
        unet=UNet(
            sample_size=16, layers_per_block=1, down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2, cross_attention_dim=16,
            attention_head_dim=8, **width,
        ),
        scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(tmp_path / "pipe")
    painter = painting.open_painter(str(tmp_path / "pipe"), Settings(steps=2, device="cpu"))
    assert painter.settings["pipeline"] == "StableDiffusionPipeline"
    one, two = painter.paint(["a dog", "a cat"], [5, 6])
    assert one.shape == (32, 32, 3) and one.dtype == np.uint8 and (one != two).any()
    alone = painter.paint(["a dog"], [5])[0]
    assert np.abs(alone.astype(int) - one).max() <= 1
    again = painting.open_painter(str(tmp_path / "pipe"), Settings(steps=2, device="cpu"))
    assert again.fingerprint == painter.fingerprint


def test_pipelines_that_only_diffusers_runs_are_told_apart(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert painting._foreign(str(tmp_path)) and not painting._foreign("scenes")
    assert painting._foreign("stabilityai/sdxl") and not painting._foreign("PixArt-alpha/XL")
    with pytest.raises(GessoError, match="cannot be loaded as a pipeline of diffusers"):
        painting.open_painter(str(tmp_path), Settings(device="cpu"))


# -------------------------------------------------------------------------------------- sheets


def test_a_sheet_of_pictures_scores_what_its_pictures_score(call, truth, tmp_path):
    """DPG-Bench's and OneIG-Bench's pictures are published as 2x2 sheets."""
    single, sheets = truth(wrong=(1, 2)), tmp_path / "sheets"
    sheets.mkdir()
    for i in range(6):
        first, second = (np.asarray(Image.open(single / f"{i:05}_{k}.png")) for k in range(2))
        grey = np.full_like(first, 180)
        whole = np.concatenate(
            [np.concatenate([first, grey], 1), np.concatenate([second, grey], 1)]
        )
        Image.fromarray(np.pad(whole, ((0, 1), (0, 1), (0, 0)))).save(sheets / f"{i:05}.png")
    expected = json.loads(scenes(call, "--pictures", single, "--json")[1])
    code, out, err = scenes(call, "--pictures", sheets, "--grid", "2x2", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["n"] == 24 and told["overall"] == pytest.approx(expected["overall"] / 2)
    rows = json.loads(Path(told["file"]).read_text())["rows"]
    assert "24 pictures on sheets of 2 x 2" in Path(told["report"]).read_text()
    (told_of,) = rows[0]["verdicts"][2]["pictures"]
    assert told_of["tile"] == [1, 0] and told_of["grid"] == [2, 2]
    # Each picture has a digest of its own; the two wrong sheets are the same file.
    assert len({v["pictures"][0]["sha256"] for row in rows for v in row["verdicts"]}) == 20
    assert [v["score"] for v in rows[0]["verdicts"]] == [1, 0, 1, 0]
    # The first three of each sheet, and again without a judge that has anything left to say.
    code, out, err = scenes(call, "--pictures", sheets, "--grid", "2x2", "-n", 3, "--json")
    assert json.loads(out)["n"] == 18
    assert scenes(call, "--pictures", sheets, "--json")[0] == 0  # as one picture each: other scores


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("--pictures", "truth", "--grid", "2"), "ROWSxCOLUMNS"),
        (("--pictures", "truth", "--grid", "0x2"), "ROWSxCOLUMNS"),
        (("--grid", "2x2"), "--pictures"),
        (("--pictures", "truth", "--grid", "999x2"), "999x2"),
    ],
)
def test_a_grid_that_is_none_is_one_sentence(call, truth, tmp_path, monkeypatch, args, told):
    truth()
    monkeypatch.chdir(tmp_path)
    code, out, err = scenes(call, *args)
    assert code == 2 and not out and told in err and len(err.strip().splitlines()) == 1
