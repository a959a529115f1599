"""`gesso caption`: captioners, the caption file, resuming, mixing in training, bad input."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from captioner_fakes import (
    LLAVA_TEMPLATE,
    save_blip,
    save_blip2,
    save_florence,
    save_llava,
)
from data_fakes import FakeImageEncoder, FakeTextEncoder, ListSource, sample, save_picture
from PIL import Image

from gesso.captioners import Captioner, Settings, adapter_of, template_for
from gesso.captioners import chat as chat_adapter
from gesso.captioning import job
from gesso.captioning.file import CaptionFile
from gesso.captioning.job import caption
from gesso.captioning.work import describe
from gesso.config import DataConfig
from gesso.data.dataset import CachedDataset
from gesso.data.encode import encode
from gesso.data.open import beside, data_at, open_data, words_of
from gesso.data.overlay import lay_over
from gesso.data.shards import open_cache
from gesso.data.source import read
from gesso.types import Bad, Caption, GessoError, Sample


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llava(tmp_path_factory.mktemp("llava"))


def pictures(n: int = 3) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (40, 30 + 5 * i, 3), dtype=np.uint8) for i in range(n)]


def save_folder(folder: Path, n: int = 12) -> Path:
    """Noise with captions; every fourth has no caption file."""
    rng = np.random.default_rng(1)
    folder.mkdir(parents=True)
    for i in range(n):
        image = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{i:02d}.png")
        if i % 4:
            (folder / f"{i:02d}.txt").write_text(f"picture {i}")
    return folder


def lines(file: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in file.read_text().splitlines()[1:]]
    assert len({r["key"] for r in rows}) == len(rows)
    return {r["key"]: r["text"] for r in rows}


# Captioners


def test_llava_says_what_transformers_own_calls_say(llava: Path) -> None:
    """Against the processor and `generate` used by hand, one picture at a time."""
    from transformers import AutoProcessor, LlavaForConditionalGeneration

    model = LlavaForConditionalGeneration.from_pretrained(llava).eval()
    processor = AutoProcessor.from_pretrained(llava)
    prompts = ["describe a red star", "describe a blue", "describe"]  # padded to one length
    wanted = []
    for image, prompt in zip(pictures(), prompts, strict=True):
        text = f"user <image> {prompt} assistant"
        inputs = processor(images=Image.fromarray(image), text=text, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        said = ids[0, inputs["input_ids"].shape[1] :]
        wanted.append(processor.decode(said, skip_special_tokens=True))
    captioner = Captioner(Settings(model=str(llava), temperature=0, max_new_tokens=8))
    assert captioner(pictures(), prompts, seed=0) == wanted
    assert len(set(wanted)) == 3


def test_sampling_depends_on_the_seed_and_leaves_torchs_own_alone(llava: Path) -> None:
    captioner = Captioner(Settings(model=str(llava), temperature=2, max_new_tokens=12))
    prompts = ["describe"] * 3
    torch.manual_seed(5)
    one = captioner(pictures(), prompts, seed=1)
    state = torch.rand(1)
    assert captioner(pictures(), prompts, seed=1) == one
    assert captioner(pictures(), prompts, seed=2) != one
    torch.manual_seed(5)
    assert torch.rand(1) == state


def test_without_a_chat_template_the_prompt_is_given_plainly(tmp_path: Path) -> None:
    class Plain:
        image_token = "<image>"

    class Chat:
        chat_template = LLAVA_TEMPLATE

        def apply_chat_template(self, messages, add_generation_prompt):
            assert add_generation_prompt
            return json.dumps(messages)

    assert chat_adapter._ask(Plain(), "describe") == "<image>\ndescribe"
    assert chat_adapter._ask(Plain(), "user <image> describe") == "user <image> describe"
    assert '"describe"' in chat_adapter._ask(Chat(), "describe")
    folder = save_llava(tmp_path / "plain", chat=False)
    captioner = Captioner(Settings(model=str(folder), temperature=0, max_new_tokens=4))
    assert all(captioner(pictures(), ["describe"] * 3, seed=0))


def test_blip_captions_unasked_and_goes_on_from_a_template(tmp_path: Path) -> None:
    from transformers import BlipForConditionalGeneration, BlipProcessor

    folder = save_blip(tmp_path / "blip", seed=1)
    model = BlipForConditionalGeneration.from_pretrained(folder).eval()
    processor = BlipProcessor.from_pretrained(folder, use_fast=False)
    inputs = processor(images=[Image.fromarray(p) for p in pictures()], return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    wanted = processor.batch_decode(ids, skip_special_tokens=True)
    captioner = Captioner(Settings(model=str(folder), temperature=0, max_new_tokens=6))
    assert captioner(pictures(), [""] * 3, seed=0) == [" ".join(w.split()) for w in wanted]
    begun = captioner(pictures(), ["a picture of"] * 3, seed=0)
    assert all(text.startswith("a picture of") for text in begun)


@pytest.mark.parametrize("save", [save_blip2, save_florence])
def test_other_kinds_say_what_transformers_own_calls_say(save: Callable, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder = save(tmp_path / "m", seed=3)
    model = AutoModelForImageTextToText.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder)
    template = adapter_of(str(folder)).TEMPLATE
    wanted = []
    for image in pictures():
        text = {"text": template} if template else {}
        inputs = processor(images=Image.fromarray(image), return_tensors="pt", **text)
        ids = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        wanted.append(" ".join(processor.decode(ids[0], skip_special_tokens=True).split()))
    captioner = Captioner(Settings(model=str(folder), temperature=0, max_new_tokens=8))
    assert captioner(pictures(), [template] * 3, seed=0) == wanted
    assert any(wanted)


def test_what_is_asked_and_when_the_original_is_told(llava: Path, tmp_path: Path) -> None:
    chat = adapter_of(str(llava))
    assert template_for(chat, None, False) == chat.TEMPLATE
    assert "{caption}" in template_for(chat, None, True)
    with pytest.raises(GessoError, match=r"put \{caption\} into it"):
        template_for(chat, "What is it?", True)
    with pytest.raises(GessoError, match="add --with-original"):
        template_for(chat, "More than {caption}?", False)
    blip = adapter_of(str(save_blip(tmp_path / "blip")))
    with pytest.raises(GessoError, match="leave out --with-original"):
        template_for(blip, None, True)


class Parrot:
    """Says its prompt; nothing of a picture whose prompt has "silent", and breaks on "broken"."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.batches: list[tuple[int, int]] = []

    def __call__(self, images: list[np.ndarray], prompts: list[str], seed: int) -> list[str]:
        if any("broken" in p for p in prompts):
            raise ValueError("aspect ratio must be under 200")
        self.batches.append((len(images), seed))
        return ["" if "silent" in p else p for p in prompts]


def work(**changes: object) -> job.Work:
    values = {"template": "more than {caption}", "plain": "describe", "batch_size": 4, "seed": 0}
    settings = Settings(model="m")
    return job.Work(DataConfig(), settings, **{**values, **changes})  # type: ignore[arg-type]


def test_the_original_goes_into_the_prompt_and_without_one_the_plain_template() -> None:
    samples = [
        sample(0, captions=[Caption("a {cat}"), Caption("no")]),
        Sample("x", sample(1).image, []),
    ]
    said = describe(Parrot(), samples, work())  # type: ignore[arg-type]
    assert said == [("k000", "more than a {cat}"), ("x", "describe")]


def test_a_picture_that_the_captioner_cannot_take_is_skipped_alone() -> None:
    samples = [sample(i, captions=[Caption("broken" if i == 1 else "fine")]) for i in range(3)]
    said = describe(Parrot(), samples, work())  # type: ignore[arg-type]
    assert [type(s) is Bad for s in said] == [False, True, False]
    assert "aspect ratio" in said[1].reason  # type: ignore[union-attr]


# The job


def test_captions_lie_beside_the_pictures_those_without_a_caption_too(
    tmp_path: Path, llava: Path, call: Callable
) -> None:
    folder = save_folder(tmp_path / "p")
    (folder / "zz.png").write_bytes(b"no picture")
    code, out, err = call(
        *("caption", folder, "--model", llava, "--max-new-tokens", 6, "--temperature", 0, "--json")
    )
    assert code == 0, err
    result = json.loads(out)
    file = folder / "captions.jsonl"
    assert result["out"] == str(file) and result["skipped"] == 1 and result["pictures"] == 12
    told = lines(file)
    assert set(told) == {f"{i:02d}.png" for i in range(12)}
    assert result["empty"] == sum(not t for t in told.values())
    # Laid over the folder, they stand beside its own captions.
    data = data_at(str(folder), [f"data.captions=[{file}]"])
    items = {s.key: s.captions for s in read(open_data(data)) if isinstance(s, Sample)}
    assert items["01.png"] == [Caption("picture 1"), Caption(told["01.png"], "dense")]
    assert items["00.png"] == [Caption(told["00.png"], "dense")]  # it had none of its own


def test_an_interrupted_job_ends_with_the_captions_of_an_uninterrupted_one(
    tmp_path: Path, llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"batch_size": 4, "max_new_tokens": 6, "temperature": 1.5, "quiet": True}
    folder = save_folder(tmp_path / "p")
    caption(str(folder), str(llava), out=tmp_path / "whole.jsonl", **settings)  # type: ignore[arg-type]
    inner = job.describe
    calls = []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return inner(*arguments)

    monkeypatch.setattr(job, "describe", interrupted)
    first = caption(str(folder), str(llava), out=tmp_path / "two.jsonl", **settings)  # type: ignore[arg-type]
    assert first["interrupted"] and first["pictures"] == 4
    with (tmp_path / "two.jsonl").open("ab") as file:  # and a kill in the middle of a write
        file.write(b'{"key": "04.png", "te')
    rest = caption(str(folder), str(llava), out=tmp_path / "two.jsonl", **settings)  # type: ignore[arg-type]
    assert (rest["resumed"], rest["pictures"]) == (4, 12)
    assert lines(tmp_path / "two.jsonl") == lines(tmp_path / "whole.jsonl")


def test_a_kill_loses_at_most_the_batch_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    before = 0
    for turn in range(5):
        process = os.fork()
        if process == 0:
            with CaptionFile(path, {"model": "m"}, "dense") as file:
                while True:
                    n = len(file.done)
                    file.add([(str(n + i), "a red star " * 5000) for i in range(8)])
        while not path.exists() or path.stat().st_size < (turn + 1) * 2_000_000:
            time.sleep(0.001)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        with CaptionFile(path, {"model": "m"}, "dense") as left:
            keys = sorted(map(int, left.done))
            assert keys == list(range(len(keys))) and len(keys) > before
            before = len(keys)


def test_a_file_that_was_made_otherwise_or_is_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    with CaptionFile(path, {"model": "one"}, "dense") as file:
        file.add([("a", "text")])
        with pytest.raises(GessoError, match="Another job"):
            CaptionFile(path, {"model": "one"}, "dense")
    before = path.read_bytes()
    with pytest.raises(GessoError, match="model 'one', now 'two'"):
        CaptionFile(path, {"model": "two"}, "dense")
    assert path.read_bytes() == before
    other = tmp_path / "metadata.jsonl"
    other.write_text('{"file_name": "a.png"}\n')
    with pytest.raises(GessoError, match="no file that `gesso caption` began"):
        CaptionFile(other, {"model": "one"}, "dense")
    assert other.read_text() == '{"file_name": "a.png"}\n'


def test_pictures_without_a_word_are_reported_and_keep_their_caption(
    tmp_path: Path, llava: Path, monkeypatch: pytest.MonkeyPatch, call: Callable
) -> None:
    monkeypatch.setattr(job, "Captioner", Parrot)
    folder = save_folder(tmp_path / "p")
    (folder / "01.txt").write_text("a silent picture")
    code, out, _ = call("caption", folder, "-m", llava, "--with-original")
    assert code == 0 and "1 without a caption: 01.png" in out
    data = data_at(str(folder), [f"data.captions=[{folder / 'captions.jsonl'}]"])
    items = {s.key: s.captions for s in read(open_data(data)) if isinstance(s, Sample)}
    assert items["01.png"] == [Caption("a silent picture")]
    # Nothing at all is an error, and leaves nothing behind.
    code, _, err = call("caption", folder, "-m", llava, "--template", "silent", "-o", "none.jsonl")
    assert code == 2 and "said nothing of any of the 12 pictures" in err
    assert not Path("none.jsonl").exists()


def test_only_the_first_pictures_and_then_the_rest_in_the_same_batches(
    tmp_path: Path, llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parrot = Parrot()
    monkeypatch.setattr(job, "Captioner", lambda settings: parrot)
    folder = save_folder(tmp_path / "p")
    result = caption(str(folder), str(llava), limit=6, batch_size=4, quiet=True)
    assert result["pictures"] == 6 and [n for n, _ in parrot.batches] == [4, 2]
    result = caption(str(folder), str(llava), limit=6, batch_size=4, quiet=True)
    assert result["pictures"] == 6 and len(parrot.batches) == 2
    result = caption(str(folder), str(llava), batch_size=4, quiet=True)
    assert result["pictures"] == 12 and [n for n, _ in parrot.batches] == [4, 2, 4, 2]
    assert len({seed for _, seed in parrot.batches}) == 4  # what is sampled differs by batch


# Mixing in training


def overlay(file: Path, rows: list[dict]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_cache_holds_both_kinds_and_its_fingerprint_follows_the_overlay(tmp_path: Path) -> None:
    inner = ListSource([sample(i, captions=[Caption("short one")]) for i in range(40)])
    rows = [{"key": f"k{i:03d}", "text": "long " * 7, "kind": "dense"} for i in range(39)]
    file = overlay(tmp_path / "a.jsonl", rows)
    source = lay_over(inner, [file])
    image, text = FakeImageEncoder(), FakeTextEncoder()
    encode(source, image, text, tmp_path / "cache", size=16, multiple=4)
    options = {"image_encoder": image, "text_encoder": text, "size": 16, "buckets": False}
    cache = open_cache(
        tmp_path / "cache",
        **options,  # type: ignore[arg-type]
        source_fingerprint=source.fingerprint(),
    )
    weights = {"caption": 0.4, "dense": 0.6}
    dataset = CachedDataset(cache, image, caption_weights=weights)
    lengths = [
        n for step in range(60) for n in dataset.batch(step, 20, 0).cond.mask.sum(1).tolist()
    ]
    assert set(lengths) == {2, 7}
    assert lengths.count(7) / len(lengths) == pytest.approx(0.6 * 39 / 40, abs=0.04)
    rows[3]["text"] = "another text"
    other = lay_over(inner, [overlay(tmp_path / "b.jsonl", rows)])
    assert other.fingerprint() != source.fingerprint() != inner.fingerprint()
    with pytest.raises(GessoError, match="another source"):
        open_cache(
            tmp_path / "cache",
            **options,  # type: ignore[arg-type]
            source_fingerprint=other.fingerprint(),
        )
    moved = tmp_path / "moved.jsonl"
    file.rename(moved)
    assert lay_over(inner, [moved]).fingerprint() == source.fingerprint()


def spec_of(name: str, folder: Path) -> dict:
    """The same two pictures as each source reads them; the first has a caption."""
    for key in "ab":
        save_picture(folder / f"{key}.png", ord(key), (16, 16))
    data = {k: (folder / f"{k}.png").read_bytes() for k in "ab"}
    if name == "folder":
        (folder / "a.txt").write_text("own")
        return {"name": name, "path": str(folder)}
    if name == "table":
        (folder / "metadata.jsonl").write_text(
            '{"file_name": "a.png", "text": "own"}\n{"file_name": "b.png", "text": ""}\n'
        )
        return {"name": "folder", "path": str(folder)}
    if name == "coco":
        images = [{"id": i, "file_name": f"{k}.png"} for i, k in enumerate("ab")]
        notes = [{"image_id": 0, "caption": "own"}]
        file = folder / "c.json"
        file.write_text(json.dumps({"images": images, "annotations": notes}))
        return {"name": name, "annotations": str(file), "images": str(folder)}
    if name == "webdataset":
        import io
        import tarfile

        with tarfile.open(folder / "t.tar", "w") as tar:
            for member, content in (("a.png", data["a"]), ("a.txt", b"own"), ("b.png", data["b"])):
                info = tarfile.TarInfo(member)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        return {"name": name, "path": str(folder / "t.tar")}
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    rows = {"image": [data["a"], data["b"]], "caption": ["own", ""]}
    (folder / "set").mkdir()
    pq.write_table(pa.table(rows), folder / "set" / "t.parquet")
    return {"name": name, "path": str(folder / "set")}


@pytest.mark.parametrize("name", ["folder", "table", "coco", "webdataset", "parquet", "hf"])
def test_every_source_takes_captions_by_key(name: str, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    spec = spec_of(name, tmp_path / "p")
    bare = open_data(DataConfig(source=spec))
    [one, two] = [s.key for s in read(bare, captioned=False)]
    assert [s.key for s in read(bare) if isinstance(s, Sample)] == [one]
    rows = [{"key": k, "text": f"of {k}", "kind": "dense"} for k in (one, two)]
    file = overlay(tmp_path / "o.jsonl", rows)
    source = open_data(DataConfig(source=spec, captions=[str(file)]))
    items = {s.key: s.captions for s in read(source) if isinstance(s, Sample)}
    assert items == {
        one: [Caption("own"), Caption(f"of {one}", "dense")],
        two: [Caption(f"of {two}", "dense")],
    }
    assert source.fingerprint() != bare.fingerprint()


def test_scenes_take_captions_too_and_their_words_join_the_vocabulary(tmp_path: Path) -> None:
    spec = {"name": "scenes", "level": 1, "count": 3}
    rows = [{"key": "scene-0-1", "text": "Zebra stripes", "kind": "llm"}]
    file = overlay(tmp_path / "o.jsonl", rows)
    source = open_data(DataConfig(source=spec, captions=[str(file)]))
    told = [[c.text for c in s.captions if c.kind == "llm"] for s in read(source)]
    assert told == [[], ["Zebra stripes"], []] and len(source) == 3
    words = words_of(source, lambda text: text.lower().split())
    assert {"zebra", "stripes", "circle"} <= set(words) and words == sorted(words)


def test_where_captions_are_kept(tmp_path: Path) -> None:
    assert beside({"name": "folder", "path": "p"}) == Path("p/captions.jsonl")
    tar = beside({"name": "webdataset", "path": str(tmp_path / "x.tar")})
    assert tar == tmp_path / "x.tar.captions.jsonl"
    coco = {"name": "coco", "annotations": str(tmp_path / "c.json"), "images": "i"}
    assert beside(coco) == tmp_path / "c.json.captions.jsonl"
    assert beside({"name": "hf", "path": "user/set"}) == Path("set.captions.jsonl")
    assert beside({"name": "scenes"}) == Path("scenes.captions.jsonl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"key": "a.png"}\n', "without the texts 'key' and 'text'"),
        ("[1]\n", "line 1, is not a JSON object"),
        ('{"key": "elsewhere.png", "text": "x"}\n', "none of the first 1 pictures"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_overlay_is_one_sentence(content: str | None, message: str, tmp_path: Path) -> None:
    save_picture(tmp_path / "p" / "a.png")
    if content is not None:
        (tmp_path / "o.jsonl").write_text(content)
    with pytest.raises(GessoError, match=message):
        open_data(data_at(str(tmp_path / "p"), [f"data.captions=[{tmp_path / 'o.jsonl'}]"]))


# The commands


def test_raw_and_dense_captions_stand_side_by_side(tmp_path: Path, call: Callable) -> None:
    folder = tmp_path / "p"
    for i in range(12):
        save_picture(folder / f"{i:02d}.png", i)
        (folder / f"{i:02d}.txt").write_text("a dog" if i else "a cat")
    rows = [
        {"key": f"{i:02d}.png", "text": "a dog and a cat by a house", "kind": "dense"}
        for i in range(11)
    ]
    overlay(folder / "captions.jsonl", [{"about": {}}, *rows])
    code, out, err = call("captions", folder, "--json")
    assert code == 0, err
    raw, dense = json.loads(out)["kinds"]
    assert (raw["kind"], raw["pictures"], raw["total_nouns"]) == ("caption", 12, 12)
    assert (raw["valid_nouns"], raw["distinct_nouns"], raw["valid_share"]) == (1, 2, 0.5)
    assert (dense["kind"], dense["total_nouns"], dense["nouns_per_picture"]) == ("dense", 33, 3.0)
    assert (dense["valid_nouns"], dense["distinct_nouns"]) == (3, 3)
    code, out, _ = call("captions", folder, "--kind", "dense", "--valid", 11)
    assert code == 0 and "caption " not in out.splitlines()[1] and "0.0%" in out
    code, _, err = call("captions", folder, "--kind", "short")
    assert code == 2 and "no captions of the kind 'short'" in err


def test_the_density_of_scenes_is_that_of_their_truth(call: Callable) -> None:
    """A dense caption of a scene of level 1 names each object, its place and the background."""
    code, out, _ = call("captions", "scenes", "data.source.count=40", "--json")
    rows = {r["kind"]: r for r in json.loads(out)["kinds"]}
    assert code == 0 and rows["short"]["captions"] > rows["short"]["pictures"] == 40
    assert rows["dense"]["nouns_per_caption"] > rows["short"]["nouns_per_caption"]
    assert rows["noisy"]["nouns_per_caption"] < rows["short"]["nouns_per_caption"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("caption", "gone", "-m", "m/m"), "no file, folder or recipe 'gone'"),
        (("caption", "p", "-m", "gone"), "There is no captioner 'gone'"),
        (("caption", "p", "-m", "bert"), "is a bert, which does not turn pictures and text into"),
        (("caption", "p", "-m", "llava", "--dtype", "int3"), "dtype = 'int3' is not valid"),
        (("caption", "p", "-m", "llava", "--device", "tpu9"), "device 'tpu9' cannot be used"),
        (("caption", "p", "-m", "llava", "-o", "p/a.png/x.jsonl"), "Could not write"),
        (("caption", "p", "-m", "broken"), "captioner 'broken' could not be loaded"),
        (("caption", "p/a.png", "-m", "llava"), "no set of captioned pictures"),
        (("caption", "empty", "-m", "llava"), "holds no files"),
        (("caption", "text", "-m", "llava"), "No picture could be captioned (1 skipped)"),
        (("captions", "gone"), "no file, folder or recipe 'gone'"),
        (("captions", "p"), "None of the 1 pictures of p has a caption"),
        (("captions", "p", "--tagger", "x"), "no taggers called 'x'"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: tuple[str, ...], message: str, tmp_path: Path, llava: Path, call: Callable
) -> None:
    save_picture(tmp_path / "p" / "a.png")
    (tmp_path / "llava").symlink_to(llava)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.png").write_text("no picture")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_bytes((llava / "config.json").read_bytes())
    code, _, err = call(*arguments)
    assert code == 2 and message in err and err.count("\n") == 1, err
    assert not list(tmp_path.rglob("*captions.jsonl"))


@pytest.mark.slow
def test_two_workers_of_ray_say_what_one_process_says(
    tmp_path: Path, llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    folder = save_folder(tmp_path / "p", 24)
    (folder / "zz.png").write_bytes(b"no picture")
    settings = {"batch_size": 4, "max_new_tokens": 6, "temperature": 0, "quiet": True}
    alone = caption(str(folder), str(llava), out=tmp_path / "one.jsonl", **settings)  # type: ignore[arg-type]
    ray.init(num_cpus=2, log_to_driver=False)
    try:
        with pytest.raises(GessoError, match="the cluster has 2"):
            caption(str(folder), str(llava), out=tmp_path / "two.jsonl", ray=3, **settings)  # type: ignore[arg-type]
        out = tmp_path / "two.jsonl"
        part = caption(str(folder), str(llava), out=out, ray=2, limit=6, **settings)  # type: ignore[arg-type]
        both = caption(str(folder), str(llava), out=out, ray=2, **settings)  # type: ignore[arg-type]
    finally:
        ray.shutdown()
    assert part["pictures"] == 6 and (both["resumed"], both["pictures"]) == (6, 24)
    assert both["skipped"] == alone["skipped"] == 1
    assert lines(tmp_path / "two.jsonl") == lines(tmp_path / "one.jsonl")
