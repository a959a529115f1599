"""`gesso doctor`: planted faults, feature caches, the page, bad input."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from captioner_fakes import tokenizer
from data_fakes import FakeImageEncoder, FakeTextEncoder, save_picture
from doctor_faults import EXACT, FUZZY, found_faults, plant
from safetensors.torch import load_file, save_file

from gesso.data.encode import encode
from gesso.data.scenes import captions, render, sample_scene
from gesso.data.source import open_source
from gesso.doctor.checks import cache as cache_check
from gesso.doctor.checks.blur import MIN_SHARPNESS, sharpness
from gesso.doctor.checks.duplicates import MAX_BITS, MIN_CORRELATION, correlation, near_pairs
from gesso.doctor.checks.mismatch import Mismatch
from gesso.doctor.job import SHOWN, Found, cuts, examine, make_plan
from gesso.doctor.types import Finding, Plan
from gesso.types import Caption, GessoError, Sample

EACH = 4


def scenes(count: int) -> list[tuple[np.ndarray, str]]:
    """Pictures of 128x128 and captions, all different."""
    pictures: dict[str, np.ndarray] = {}
    index = 0
    while len(pictures) < count:
        scene = sample_scene(index, level=3, seed=0)
        texts = [c.text for c in captions(scene, seed=index) if c.kind == "dense"]
        pictures.setdefault(texts[0], render(scene, 128, 128))
        index += 1
    return [(image, text) for text, image in pictures.items()]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer of one token a word."""
    folder = tmp_path_factory.mktemp("words")
    tokenizer().save_pretrained(folder)
    return folder


def counts(result: dict) -> dict[str, int]:
    return {k["kind"]: k["count"] for k in result["kinds"]}


def test_planted_faults_are_found_and_nothing_exact_is_made_up(
    tmp_path: Path, words: Path, call: Callable
) -> None:
    truth = plant(scenes(14 * EACH), tmp_path / "p", EACH)
    code, out, _ = call(
        *("doctor", tmp_path / "p", "--size", 128, "--tokenizer", words, "--tokens", "120"),
        *("-o", tmp_path / "d", "--json"),
    )
    assert code == 0
    result = json.loads(out)
    rows = [json.loads(line) for line in (tmp_path / "d" / "findings.jsonl").open()]
    planted = {
        kind: set().union(*(kinds.get(kind, set()) for kinds in truth.values()))
        for kind in (*EXACT, *FUZZY)
    }
    assert sum(map(len, planted.values())) == 10 * EACH
    for kind in EXACT:
        assert found_faults(rows, kind) == planted[kind], kind
        assert counts(result)[kind] == len(planted[kind])
    fuzzy = [fault for kind in FUZZY for fault in planted[kind]]
    missed = [f for kind in FUZZY for f in planted[kind] - found_faults(rows, kind)]
    assert len(missed) <= 0.05 * len(fuzzy)
    # The result shows the worst; the page shows them with pictures.
    worst = next(k for k in result["kinds"] if k["kind"] == "cut caption")["worst"]
    assert [f["badness"] for f in worst] == [23, 22, 21, 20]  # 140 to 143 words, 120 fit
    page = (tmp_path / "d" / "report.html").read_text()
    assert page.count("data:image/png;base64,") >= 5 * EACH and "Cropped: 4" in page


def test_a_caption_that_fits_is_not_cut_and_one_word_more_is(tmp_path: Path, words: Path) -> None:
    for name, n in (("fits", 12), ("cut", 13)):
        save_picture(tmp_path / "p" / f"{name}.png", 0 if n == 12 else 255, (64, 64))
        (tmp_path / "p" / f"{name}.txt").write_text(" ".join(["red"] * (n - 1) + ["end"]))
    result = examine(
        str(tmp_path / "p"), tokenizer=str(words), limits=(12,), out=tmp_path / "d", quiet=True
    )
    [cut] = [k["worst"] for k in result["kinds"] if k["kind"] == "cut caption"]
    assert [(f["key"], f["why"]) for f in cut] == [
        ("cut.png", "At 12 tokens it loses 1 words: end"),
    ]


def test_a_recipe_brings_its_size_and_its_limit() -> None:
    overrides = ["data.source.count=3", "text_encoder.max_tokens=5"]
    plan, _ = make_plan("demo", overrides, *[None] * 3, (120,), *[None] * 4)  # type: ignore[misc]
    [(name, lost)] = plan.fits.items()
    assert name == "5 tokens" and lost("a b c d e f") == "e f"  # four words and <eos>
    assert plan.table == {1.0: (64, 64)}


@pytest.mark.parametrize(("size", "step"), [(256, 16), (128, 16), (64, 8), (72, 8)])
def test_buckets_suit_the_latent_grid(size: int, step: int) -> None:
    assert all(h % step == w % step == 0 for h, w in cuts(size, True).values())


def test_sharpness_depends_on_neither_contrast_nor_size() -> None:
    rng = np.random.default_rng(0)
    small = rng.integers(0, 2, (16, 16, 1)).repeat(3, 2).repeat(8, 0).repeat(8, 1) * 255
    image = small.astype(np.uint8)  # [128, 128, 3], cells of 8 pixels
    faint = (image // 4 + 90).astype(np.uint8)
    large = image.repeat(3, 0).repeat(3, 1)
    assert sharpness(faint) == pytest.approx(sharpness(image), rel=0.05)
    assert sharpness(large) == pytest.approx(sharpness(image), rel=0.05)
    assert sharpness(image) > MIN_SHARPNESS
    assert sharpness(np.full((64, 64, 3), 9, np.uint8)) == 0


def test_near_pairs_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gesso.doctor.checks.duplicates._TILE", 7)
    rng = np.random.default_rng(1)
    centres = rng.integers(0, 2**63, 5, dtype=np.uint64)
    hashes = [int(c) ^ (1 << int(b)) for c in centres for b in rng.integers(0, 60, 6)]
    thumbs = [rng.integers(0, 256, (8, 8, 3)).astype(np.uint8) for _ in range(3)]
    owned = [thumbs[int(i)] for i in rng.integers(0, 3, len(hashes))]
    wanted = {
        (i, j)
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (hashes[i] ^ hashes[j]).bit_count() <= MAX_BITS and owned[i] is owned[j]
    }
    assert {(i, j) for i, j, _ in near_pairs(hashes, owned)} == wanted and wanted


def test_one_outline_in_other_colours_is_no_duplicate() -> None:
    ground = np.full((8, 8, 3), 250, np.uint8)
    red, dark, grey = ground.copy(), ground.copy(), ground.copy()
    red[2:6, 2:6], dark[2:6, 2:6], grey[2:6, 2:6] = (220, 30, 30), 30, 225
    assert correlation(red, red // 2 + 100) < MIN_CORRELATION  # half the contrast
    assert correlation(dark, grey) < MIN_CORRELATION
    assert correlation(red, dark) < MIN_CORRELATION
    assert correlation(red, (red * 0.95).astype(np.uint8)) > MIN_CORRELATION
    assert correlation(ground, ground) == 1 and correlation(ground, ground // 2) == 0


class Judge:
    """Likes a caption that names the picture's grey level."""

    def similarity(self, images, texts):
        return [
            [-abs(int(image[0, 0, 0]) - int(t[0].split()[-1])) for t in some]
            for image, some in zip(images, texts, strict=True)
        ]


def test_captions_of_other_pictures_are_told_from_their_own() -> None:
    check = Mismatch(Judge())  # type: ignore[arg-type]
    wrong = {5: 90, 66: 3}  # the second in the last, smaller batch
    found = []
    for i in range(70):
        image = np.full((8, 8, 3), i, np.uint8)
        said = [Caption(f"grey {wrong.get(i, i)}"), Caption(f"level {wrong.get(i, i)}")]
        found += check.look(Sample(f"k{i}", image, said))
    found += check.end()
    assert [f.key for f in found] == ["k5", "k66"]
    assert "'grey 5'" not in found[0].why and "fit better" in found[0].why


def test_the_file_holds_every_finding_and_memory_only_the_worst() -> None:
    file = io.StringIO()
    found = Found(file)
    found.take(Finding(f"k{i}", "tiny", "Small.", float(i % 50)) for i in range(500))
    assert len(file.getvalue().splitlines()) == 500 == found.counts["tiny"]
    assert [f.badness for f in found.worst("tiny")] == [49.0] * 10 + [48.0] * (SHOWN - 10)


# Feature caches


@pytest.fixture
def cached(tmp_path: Path) -> Plan:
    """A source of 12 pictures and its cache of three shards."""
    for i in range(12):
        save_picture(tmp_path / "p" / f"{i:02d}.png", 20 * i, (16, 16))
        (tmp_path / "p" / f"{i:02d}.txt").write_text(f"picture {'w ' * i}")
    source = open_source({"name": "folder", "path": str(tmp_path / "p")})
    folder = tmp_path / "cache"
    encode(source, FakeImageEncoder(), FakeTextEncoder(), folder, size=16, shard_size=4)
    return Plan(source, {1.0: (16, 16)}, cache=str(folder))


def faults(plan: Plan) -> dict[str, str]:
    return {f.key: f.why for f in cache_check.build(plan).end()}


def test_a_sound_cache_has_no_faults(cached: Plan) -> None:
    assert faults(cached) == {}


def test_each_damaged_shard_is_named(cached: Plan) -> None:
    one, two, three = sorted(Path(cached.cache or "").glob("*.safetensors"))
    one.write_bytes(one.read_bytes()[:-10])
    tensors = load_file(two)
    tensors["latents"][3, 0, 0, 0] = torch.nan
    save_file(tensors, two)
    three.rename(three.with_name("16x16-000007.safetensors"))
    found = faults(cached)
    assert "bytes" in found[one.name]
    assert "not finite" in found[two.name]
    assert "missing" in found[three.name]
    assert "does not list" in found["16x16-000007.safetensors"]
    assert len(found) == 4


def test_a_shard_that_contradicts_itself_or_another_is_named(cached: Plan) -> None:
    one, two, three = sorted(Path(cached.cache or "").glob("*.safetensors"))
    data = bytearray(one.read_bytes())
    data[8:12] = b"\x00\x00\x00\x00"  # the header's JSON; the size stays
    one.write_bytes(data)
    three.write_bytes(two.read_bytes())
    manifest = Path(cached.cache or "") / "cache.json"
    values = json.loads(manifest.read_text())
    values["shards"][2]["bytes"] = two.stat().st_size
    manifest.write_text(json.dumps(values))
    found = faults(cached)
    assert set(found) == {one.name, three.name}
    assert "cannot be read" in found[one.name] and two.name in found[three.name]


def test_a_cache_of_other_pictures_or_an_unfinished_one_is_told(cached: Plan) -> None:
    save_picture(Path(cached.cache or "").parent / "p" / "new.png", 1, (16, 16))
    other = open_source({"name": "folder", "path": str(Path(cached.cache or "").parent / "p")})
    plan = Plan(other, cached.table, cache=cached.cache)
    assert "another source" in faults(plan)["cache"]
    manifest = Path(cached.cache or "") / "cache.json"
    manifest.write_text(manifest.read_text().replace('"complete": true', '"complete": false'))
    assert "unfinished" in faults(cached)["cache"]
    manifest.write_text("{")
    assert "broken" in faults(cached)["cache"]
    manifest.unlink()
    assert "no feature cache" in faults(cached)["cache"]


def test_a_recipes_encoders_are_compared_with_its_cache(tmp_path: Path, call: Callable) -> None:
    recipe = ["demo", "data.source.count=6", "data.source.level=1", f"data.cache={tmp_path / 'c'}"]
    code, _, err = call("encode", *recipe, "-o", tmp_path / "c")
    assert code == 0, err
    _, out, _ = call("doctor", *recipe, "-o", tmp_path / "d", "--json")
    assert counts(json.loads(out))["other cache"] == 0
    _, out, _ = call("doctor", *recipe, "text_encoder.max_tokens=9", "-o", tmp_path / "d", "--json")
    [why] = [
        f["why"] for k in json.loads(out)["kinds"] for f in k["worst"] if k["kind"] == "other cache"
    ]
    assert "another text encoder" in why


# The command


def test_what_is_written_is_escaped_and_what_was_not_looked_for_is_said(
    tmp_path: Path, call: Callable
) -> None:
    for name in ("a", "b"):
        save_picture(tmp_path / "p" / f"{name}.png", ord(name), (300, 40))
        (tmp_path / "p" / f"{name}.txt").write_text("<script>alert(1)</script>")
    code, out, _ = call("doctor", tmp_path / "p", "-o", tmp_path / "d")
    assert code == 0
    assert "repeated caption" in out and "Captions were not measured" in out
    assert "not looked for: give a feature cache" in out and "report.html" in out
    page = (tmp_path / "d" / "report.html").read_text()
    assert "&lt;script&gt;" in page and "<script>" not in page


def test_scenes_are_examined_as_they_are_made(tmp_path: Path) -> None:
    result = examine(
        "scenes", overrides=["data.source.count=8"], out=tmp_path / "d", limit=5, quiet=True
    )
    assert result["pictures"] == 5 and counts(result)["corrupt"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gone",), "no file, folder or recipe"),
        (("p", "--tokens", "many", "--tokenizer", "t"), "no list of numbers"),
        (("p", "--tokens", "0", "--tokenizer", "t"), "no list of numbers"),
        (("p", "--tokenizer", "gone"), "no tokenizer 'gone'"),
        (("p", "--cache", "gone"), "no cache 'gone'"),
        (("p", "--clip", "gone"), "no image-text model 'gone'"),
        (("p", "caption_colum=x"), "caption_column"),
        (("p", "--size", "20"), "not a multiple"),
        (("p", "-o", "p/a.png/d"), "Could not write"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], message: str, tmp_path: Path, call: Callable
) -> None:
    save_picture(tmp_path / "p" / "a.png")
    code, _, err = call("doctor", *arguments)
    assert code == 2 and message in err and err.count("\n") == 1, err


def test_a_clip_that_is_none_is_refused(tmp_path: Path, words: Path) -> None:
    with pytest.raises(GessoError):
        examine("scenes", overrides=["data.source.count=2"], clip=str(words), out=tmp_path)
