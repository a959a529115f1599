"""Opening a cache: stale, foreign and damaged ones are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from data_fakes import FakeImageEncoder, FakeTextEncoder, ListSource, sample
from safetensors.torch import load_file, save_file

from gesso.data.encode import encode
from gesso.data.shard_io import MANIFEST, Features, merge, open_shard, write_shard
from gesso.data.shards import Cache, open_cache
from gesso.types import Caption, GessoError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = ListSource([sample(i, (16, 16 + i % 3 * 24)) for i in range(18)])
    encode(
        source,
        FakeImageEncoder(),
        FakeTextEncoder(),
        tmp_path / "c",
        size=16,
        buckets=True,
        multiple=4,
        shard_size=3,
        limit=18,
    )
    return tmp_path / "c"


def opened(folder: Path, **changed: Any) -> Cache:
    fitting: dict[str, Any] = {
        "image_encoder": FakeImageEncoder(),
        "text_encoder": FakeTextEncoder(),
        "size": 16,
        "buckets": True,
        "source_fingerprint": "list",
    }
    return open_cache(folder, **{**fitting, **changed})


def edit_manifest(folder: Path, **changes: object) -> None:
    file = folder / MANIFEST
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_fitting_cache_opens(folder: Path) -> None:
    cache = opened(folder)
    assert len(cache) == 18
    assert cache.bytes == sum(p.stat().st_size for p in folder.glob("*.safetensors"))
    ratios = [h / w for h, w in cache.groups]
    assert ratios == sorted(ratios) and len(ratios) == 3
    assert len(opened(folder, source_fingerprint=None, limit=18)) == 18


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"image_encoder": FakeImageEncoder(name="x")}, "another image encoder:"),
        ({"text_encoder": FakeTextEncoder(name="x")}, "another text encoder:"),
        ({"source_fingerprint": "x"}, "another source:"),
        ({"size": 32}, r"another size \(16, now 32\):"),
        ({"buckets": False}, r"another buckets \(True, now False\):"),
        ({"limit": 5}, r"another limit \(18, now 5\):"),
        (
            {"size": 8, "text_encoder": FakeTextEncoder(name="x")},
            r"another text encoder and another size \(16, now 8\)",
        ),
    ],
)
def test_a_foreign_cache_is_refused_with_what_differs(
    folder: Path, changed: dict[str, Any], words: str
) -> None:
    with pytest.raises(GessoError, match=words) as error:
        opened(folder, **changed)
    assert "`gesso encode`" in str(error.value)


def test_no_cache_and_an_unfinished_one(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GessoError, match="no feature cache"):
        opened(tmp_path / "gone")
    edit_manifest(folder, complete=False)
    with pytest.raises(GessoError, match="unfinished"):
        opened(folder)


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "[" * 100_000, '{"version": 1}', '{"version": 2}', "\x00\xff"]
)
def test_a_broken_manifest_is_one_sentence(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(GessoError, match=r"cache\.json") as error:
        opened(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "16x16-000000.safetensors/.."])
def test_a_manifest_cannot_name_files_elsewhere(folder: Path, name: str) -> None:
    shards = [{"name": name, "rows": 1, "captions": 1, "bytes": 1}]
    edit_manifest(folder, shards=shards)
    with pytest.raises(GessoError, match="name"):
        opened(folder)


def test_missing_and_truncated_shards_are_named(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[1]
    data = shard.read_bytes()
    shard.write_bytes(data[:-1])
    with pytest.raises(GessoError, match=f"{shard.name} ends early"):
        opened(folder)
    shard.write_bytes(data + bytes(1))
    with pytest.raises(GessoError, match=f"{shard.name} is not the one"):
        opened(folder)
    shard.unlink()
    with pytest.raises(GessoError, match=f"{shard.name} is missing"):
        opened(folder)
    shard.write_bytes(bytes(len(data)))
    with pytest.raises(GessoError, match=f"{shard.name} cannot be read"):
        opened(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("caption_start", torch.tensor([0, 2, 4, 9])),
        ("caption_start", torch.tensor([0, 2])),
        ("text_start", torch.tensor([0, 5, 3, 9, 11, 13, 10**9])),
        ("text_start", torch.tensor([-5, 5, 6, 9, 11, 13, 14])),
        ("latents", torch.zeros(2, 6, 4, 4)),
        ("sizes", torch.zeros(3, 3, dtype=torch.int32)),
        ("labels", torch.zeros(1, dtype=torch.int64)),
        ("index", torch.tensor(list(b'{"keys": [1], "captions": []}'), dtype=torch.uint8)),
        ("index", torch.tensor(list(b"[" * 9000), dtype=torch.uint8)),
        ("index", torch.tensor(list(b"7"), dtype=torch.uint8)),
        ("latents", None),
        ("tokens", None),
        ("tokens", torch.zeros(3)),
    ],
)
def test_a_shard_that_contradicts_itself_is_refused(
    folder: Path, name: str, value: torch.Tensor | None
) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    tensors = {k: v.clone() for k, v in load_file(path).items()}
    del tensors[name]
    save_file(tensors if value is None else {**tensors, name: value}, path)
    with pytest.raises(GessoError, match=path.name):
        open_shard(path)


def test_shards_of_another_cache_are_noticed(folder: Path) -> None:
    first, second = sorted(folder.glob("*.safetensors"))[:2]
    tensors = load_file(second)
    tokens = tensors["tokens"]
    for changed in (
        {"tokens": torch.zeros(len(tokens), 7)},
        {"tokens": tokens.float()},
        {"latents": torch.zeros(3, 2, 4, 4)},
        {"pooled": torch.zeros(6, 2)},
    ):
        save_file({**tensors, **changed}, second)
        manifest = json.loads((folder / MANIFEST).read_text())
        for info in manifest["shards"]:
            info["bytes"] = (folder / info["name"]).stat().st_size
        edit_manifest(folder, shards=manifest["shards"])
        with pytest.raises(GessoError, match=f"{second.name} does not fit {first.name}"):
            opened(folder)


def rows(start: int, n: int) -> list[Features]:
    return [
        Features(
            key=f"k{i}",
            latents=torch.full((2, 3, 3), float(i)),
            size=(i + 8, i + 9),
            label=i,
            captions=[Caption(f"c{i}.{j}") for j in range(i % 3 + 1)],
            text=[torch.arange(i + j + 1.0)[:, None] for j in range(i % 3 + 1)],
            pooled=torch.full((i % 3 + 1, 2), float(i)),
        )
        for i in range(start, start + n)
    ]


def test_merged_shards_are_one_shard(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", rows(0, 4), torch.float32)
    write_shard(tmp_path / "b", rows(4, 3), torch.float32)
    write_shard(tmp_path / "whole", rows(0, 7), torch.float32)
    merged = merge([open_shard(tmp_path / "a"), open_shard(tmp_path / "b")])
    whole = open_shard(tmp_path / "whole")
    assert merged.keys == whole.keys and merged.captions == whole.captions
    for name in ("latents", "sizes", "labels", "caption_start", "text_start", "text", "pooled"):
        assert torch.equal(getattr(merged, name), getattr(whole, name)), name


def test_no_padding_is_stored(tmp_path: Path) -> None:
    write_shard(tmp_path / "a", rows(0, 4), torch.float32)
    expected = sum(len(t) for r in rows(0, 4) for t in r.text)
    assert len(load_file(tmp_path / "a")["tokens"]) == expected
