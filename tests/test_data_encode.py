"""`encode`: what the cache holds, that it survives interruptions, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from data_fakes import SHARED, FakeImageEncoder, FakeTextEncoder, ListSource, sample, save_picture
from torch import Tensor

from gesso.data.encode import EncodeReport, encode
from gesso.data.shard_io import MANIFEST, open_shard
from gesso.data.source import open_source
from gesso.types import Bad, Caption, Cond, GessoError, Sample

SIZES = [(16, 16), (16, 40), (40, 16), (20, 18)]


def mixed(n: int = 30) -> list[Sample | Bad]:
    """Pictures of four shapes, with a bad one after every tenth."""
    items: list[Sample | Bad] = []
    for i in range(n):
        items.append(sample(i, SIZES[i * 7 % 4]))
        if i % 10 == 9:
            items.append(Bad(f"bad{i}", "Broken."))
    return items


def run(source: Any, out: Path, **options: Any) -> EncodeReport:
    defaults = {"size": 16, "buckets": True, "multiple": 4, "shard_size": 4, "batch_size": 3}
    encoders = (
        options.pop("image_encoder", None) or FakeImageEncoder(),
        options.pop("text_encoder", None) or FakeTextEncoder(),
    )
    return encode(source, *encoders, out, **{**defaults, **options})


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_cache_holds_every_picture_with_every_caption(tmp_path: Path) -> None:
    items = mixed()
    report = run(ListSource(items), tmp_path / "c", dtype="float32")
    samples = {s.key: s for s in items if isinstance(s, Sample)}

    assert report["pictures"] == 30 and report["captions"] == 60
    assert report["skipped"] == 3 and report["reasons"] == {"Broken.": 3}
    assert sum(report["buckets"].values()) == 30 and len(report["buckets"]) > 2
    json.dumps(report)

    seen = []
    for path in sorted((tmp_path / "c").glob("*.safetensors")):
        shard = open_shard(path)
        height, width = map(int, path.name.split("-")[0].split("x"))
        assert shard.latents.shape[1:] == (6, height // 4, width // 4)
        for i, key in enumerate(shard.keys):
            s = samples[key]
            assert shard.captions[i] == s.captions
            assert tuple(shard.sizes[i].tolist()) == s.image.shape[:2]
            grey = s.image[0, 0, 0] / 127.5 - 1
            assert torch.allclose(
                shard.latents[i, :3], torch.full_like(shard.latents[i, :3], float(grey)), atol=1e-6
            )
            for j, caption in enumerate(s.captions):
                k = int(shard.caption_start[i]) + j
                tokens = shard.text[int(shard.text_start[k]) : int(shard.text_start[k + 1])]
                assert tokens[:, 0].tolist() == [len(w) for w in caption.text.split()]
        seen += shard.keys
    assert sorted(seen) == sorted(samples)
    manifest = json.loads((tmp_path / "c" / MANIFEST).read_text())
    assert manifest["bad"] == [[f"bad{i}", "Broken."] for i in (19, 29, 9)]


class Stops(ListSource):
    """Is interrupted before picture `at`."""

    def __init__(self, items: list[Sample | Bad], at: int) -> None:
        super().__init__(items)
        self.at = at

    def __iter__(self) -> Iterator[Sample | Bad]:
        yield from self.items[: self.at]
        raise KeyboardInterrupt


@pytest.mark.parametrize("at", [0, 5, 17, 33])
def test_interrupted_encode_continues_to_the_same_bytes(tmp_path: Path, at: int) -> None:
    items = mixed()
    run(ListSource(items), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(Stops(items, at), tmp_path / "cut")
    finished = list((tmp_path / "cut").glob("*.safetensors"))
    (tmp_path / "cut" / "16x16-000000.safetensors.part").write_bytes(b"half")
    image_encoder = FakeImageEncoder()
    report = run(ListSource(items), tmp_path / "cut", image_encoder=image_encoder)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert report["resumed"] == 4 * len(finished)
    assert image_encoder.encoded == 30 - report["resumed"]
    if at >= 17:
        assert finished


def test_damaged_or_deleted_shards_are_made_again(tmp_path: Path) -> None:
    items = mixed()
    run(ListSource(items), tmp_path / "c")
    whole = files(tmp_path / "c")
    shards = sorted((tmp_path / "c").glob("*.safetensors"))
    shards[0].write_bytes(shards[0].read_bytes()[:-10])
    shards[-1].unlink()
    report = run(ListSource(items), tmp_path / "c")
    assert 0 < report["resumed"] < 30
    assert files(tmp_path / "c") == whole


def test_a_complete_cache_is_left_alone(tmp_path: Path) -> None:
    first = run(ListSource(mixed()), tmp_path / "c")
    again = run(Stops(mixed(), 0), tmp_path / "c")  # would raise if it were read
    assert again["resumed"] == 30
    assert {**again, "resumed": 0, "seconds": 0} == {**first, "seconds": 0}


def test_limit_counts_usable_pictures_also_after_an_interruption(tmp_path: Path) -> None:
    items = [Bad("first", "Broken."), *mixed()]
    run(ListSource(items), tmp_path / "whole", limit=12)
    with pytest.raises(KeyboardInterrupt):
        run(Stops(items, 10), tmp_path / "cut", limit=12)
    report = run(ListSource(items), tmp_path / "cut", limit=12)
    assert report["pictures"] == 12 and report["skipped"] == 2
    assert files(tmp_path / "cut") == files(tmp_path / "whole")


def test_limit_beyond_the_source_takes_all(tmp_path: Path) -> None:
    assert run(ListSource(mixed(5)), tmp_path / "c", limit=100)["pictures"] == 5


def test_squares_without_buckets(tmp_path: Path) -> None:
    report = run(ListSource(mixed()), tmp_path / "c", buckets=False)
    assert report["buckets"] == {"16x16": 30}


def test_trainable_text_encoders_are_cached_as_ids_and_labels_are_kept(tmp_path: Path) -> None:
    items = [sample(0), sample(1)]
    items[1].meta["label"] = 7
    run(ListSource(items), tmp_path / "c", text_encoder=FakeTextEncoder(trainable=True))
    [path] = (tmp_path / "c").glob("*.safetensors")
    shard = open_shard(path)
    assert shard.text.dtype == torch.int64
    assert shard.text.tolist() == [1, 1, 3, 1, 1, 1, 3]  # "w" + "a cat", "w w" + "a cat"
    assert shard.labels.tolist() == [-1, 7]


class Pooling(FakeTextEncoder):
    def prepare(self, prompts: list[str]) -> Cond:
        pooled = torch.tensor([[float(len(p))] for p in prompts])
        return super().prepare(prompts).replace(pooled=pooled)


def test_pooled_features_are_kept_per_caption(tmp_path: Path) -> None:
    run(ListSource([sample(2)]), tmp_path / "c", text_encoder=Pooling(), batch_size=1)
    [path] = (tmp_path / "c").glob("*.safetensors")
    pooled = open_shard(path).pooled
    assert pooled is not None and pooled[:, 0].tolist() == [6, 5]  # "w w w ", "a cat"


class Exploding(FakeImageEncoder):
    def encode(self, pixels: Tensor) -> Tensor:
        raw = super().encode(pixels)
        return torch.where(pixels.amax((1, 2, 3), keepdim=True) > 0, raw * 1e6, raw)


def test_features_that_do_not_fit_the_dtype_are_skipped(tmp_path: Path) -> None:
    dim, bright = sample(50), sample(200)
    report = run(ListSource([dim, bright]), tmp_path / "h", image_encoder=Exploding())
    assert report["pictures"] == 1
    assert list(report["reasons"]) == ["Its features are not finite as float16."]
    report = run(
        ListSource([dim, bright]), tmp_path / "f", image_encoder=Exploding(), dtype="float32"
    )
    assert report["pictures"] == 2


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"image_encoder": FakeImageEncoder(name="other")}, "another image encoder"),
        ({"text_encoder": FakeTextEncoder(name="other")}, "another text encoder"),
        ({"size": 32}, r"size \(16, now 32\)"),
        ({"buckets": False}, r"buckets \(True, now False\)"),
        ({"limit": 3}, r"limit \(None, now 3\)"),
        ({"dtype": "float32"}, r"dtype \(float16, now float32\)"),
    ],
)
def test_another_cache_is_not_continued(
    tmp_path: Path, changed: dict[str, Any], words: str
) -> None:
    run(ListSource(mixed(4)), tmp_path / "c")
    before = files(tmp_path / "c")
    with pytest.raises(GessoError, match=words):
        run(ListSource(mixed(4)), tmp_path / "c", **changed)
    assert files(tmp_path / "c") == before


def test_a_folder_of_other_things_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(GessoError, match="choose an empty one"):
        run(ListSource(mixed(4)), tmp_path)
    assert files(tmp_path) == {"thesis.txt": b"mine"}
    with pytest.raises(GessoError, match="cannot be made"):
        run(ListSource(mixed(4)), tmp_path / "thesis.txt")


def test_a_source_of_bad_pictures_is_an_error_that_shows_one(tmp_path: Path) -> None:
    with pytest.raises(GessoError, match=r"2 skipped.*a: Broken\."):
        run(ListSource([Bad("a", "Broken."), Bad("b", "Cut.")]), tmp_path / "c")


def test_a_size_that_does_not_suit_the_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GessoError, match="18 is not a multiple of 4"):
        run(ListSource(mixed(4)), tmp_path / "c", size=18, multiple=None, buckets=False)


def test_progress_counts_up_to_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int | None]] = []
    run(
        ListSource(mixed(9)),
        tmp_path / "c",
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls[0] == (3, 9) and calls[-1] == (9, 9)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)


def test_double_keys_and_odd_text_are_survived(tmp_path: Path) -> None:
    odd = sample(1, captions=[Caption("lone \ud800 surrogate \0 nul", "k\u2028ind")])
    report = run(ListSource([sample(0), odd, sample(0)]), tmp_path / "c")
    assert report["pictures"] == 2 and report["skipped"] == 1
    [path] = (tmp_path / "c").glob("*.safetensors")
    assert open_shard(path).captions[1] == odd.captions


def test_background_reaches_the_pictures(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "p").mkdir()
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / "p" / "a.png")
    (tmp_path / "p" / "a.txt").write_text("clear")
    spec = {"name": "folder", "path": str(tmp_path / "p")}
    run(open_source(spec), tmp_path / "c", background="#000000")
    [path] = (tmp_path / "c").glob("*.safetensors")
    assert (open_shard(path).latents[0, :3] == -1).all()
    manifest = json.loads((tmp_path / "c" / MANIFEST).read_text())
    assert manifest["source"] == open_source(spec, "#000000").fingerprint()


def test_a_folder_of_files_resumes_without_decoding_what_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(8):
        save_picture(tmp_path / "p" / f"{i}.png", value=i * 20, size=(16, 16))
        (tmp_path / "p" / f"{i}.txt").write_text(f"number {i}")
    source = open_source({"name": "folder", "path": str(tmp_path / "p")})
    run(source, tmp_path / "c", buckets=False)
    whole = files(tmp_path / "c")
    sorted((tmp_path / "c").glob("*.safetensors"))[1].unlink()
    decoded = []
    decode = type(source).decode
    monkeypatch.setattr(
        type(source), "decode", lambda self, e: (decoded.append(e.key), decode(self, e))[1]
    )
    run(source, tmp_path / "c", buckets=False)
    assert sorted(decoded) == [f"{i}.png" for i in range(4, 8)]
    assert files(tmp_path / "c") == whole


def test_coco_mini_in_buckets(tmp_path: Path) -> None:
    root = SHARED / "coco_mini"
    if not root.is_dir():
        pytest.skip("shared/data/coco_mini is absent")
    annotations = str(root / "annotations" / "captions_train2017.json")
    spec = {"name": "coco", "annotations": annotations, "images": str(root / "train2017")}
    report = run(open_source(spec), tmp_path / "c", size=64, limit=30, multiple=None)
    assert report["pictures"] == 30 and report["captions"] == 150
    assert len(report["buckets"]) >= 3
