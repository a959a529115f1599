"""Sources: what they read, what they skip and why, and what they refuse."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import pytest
from data_fakes import SHARED, ListSource, sample, save_picture

from gesso.data.source import caption_texts, open_source, read
from gesso.types import Bad, Caption, GessoError, Sample


def picture_bytes(tmp_path: Path, value: int = 100) -> bytes:
    save_picture(tmp_path / "picture.tmp.png", value)
    return (tmp_path / "picture.tmp.png").read_bytes()


def captions(items: list[Sample | Bad]) -> dict[str, list[Caption]]:
    return {s.key: s.captions for s in items if isinstance(s, Sample)}


def reasons(items: list[Sample | Bad]) -> dict[str, str]:
    return {b.key: b.reason for b in items if isinstance(b, Bad)}


# Folder


def test_folder_reads_sidecars_in_order_and_reports_what_is_broken(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "sub/c.PNG", "no_caption.png", "blank.png", "latin.png"):
        save_picture(tmp_path / name)
        (tmp_path / name).with_suffix(".txt").write_text(f" {name}\nmore \n")
    (tmp_path / "no_caption.txt").unlink()
    (tmp_path / "blank.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "fake.png").write_text("no picture")
    (tmp_path / "fake.txt").write_text("words")
    (tmp_path / "cut.png").write_bytes((tmp_path / "b.png").read_bytes()[:-25])
    (tmp_path / "cut.txt").write_text("words")
    save_picture(tmp_path / "tiny.png", size=(7, 20))
    (tmp_path / "tiny.txt").write_text("words")

    items = list(open_source({"name": "folder", "path": str(tmp_path)}))

    assert captions(items) == {
        "a.jpg": [Caption("a.jpg\nmore")],
        "b.png": [Caption("b.png\nmore")],
        "sub/c.PNG": [Caption("sub/c.PNG\nmore")],
    }
    assert list(captions(items)) == ["a.jpg", "b.png", "sub/c.PNG"]
    bad = reasons(items)
    assert set(bad) == {
        "blank.png",
        "cut.png",
        "fake.png",
        "latin.png",
        "no_caption.png",
        "tiny.png",
    }
    assert "no caption" in bad["blank.png"]
    assert "decoded" in bad["cut.png"]
    assert "not a picture" in bad["fake.png"]
    assert "UTF-8" in bad["latin.png"]
    assert "no_caption.txt" in bad["no_caption.png"]
    assert "7x20" in bad["tiny.png"]


def test_folder_lines_of_a_sidecar_can_be_captions(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    [item] = open_source({"name": "folder", "path": str(tmp_path), "caption_lines": True})
    assert isinstance(item, Sample)
    assert item.captions == [Caption("one"), Caption("two")]


def test_folder_finds_a_csv_and_joins_rows_of_a_picture(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png")
    save_picture(tmp_path / "b.png")
    (tmp_path / "metadata.csv").write_text(
        'file_name,text,label\na.png,"one, with\na line",3\nb.png,two,4\na.png,three,3\nb.png,\n'
    )
    items = list(open_source({"name": "folder", "path": str(tmp_path)}))
    assert captions(items) == {
        "a.png": [Caption("one, with\na line"), Caption("three")],
        "b.png": [Caption("two")],
    }
    assert items[0].meta == {"label": "3"}  # type: ignore[union-attr]


def test_folder_reads_kinds_lists_and_filters_from_jsonl(tmp_path: Path) -> None:
    rows = [
        {"img": "a.png", "short": "cat", "dense": ["a cat", " "], "style": "x", "tags": ["p", "q"]},
        {"img": "b.png", "short": "dog", "dense": None, "style": "y", "tags": ["q"]},
        {"img": "c.png", "short": "hen", "style": "z"},
    ]
    for row in rows:
        save_picture(tmp_path / str(row["img"]))
    # U+2028 is a line to Python's splitlines but plain text to JSON.
    rows[1]["short"] = "dog\u2028bone"
    lines = "\n".join(json.dumps(r, ensure_ascii=False) for r in rows)
    (tmp_path / "list.jsonl").write_text(lines)
    spec = {
        "name": "folder",
        "path": str(tmp_path),
        "metadata": "list.jsonl",
        "file_column": "img",
        "caption_column": ["short", "dense"],
    }
    items = list(open_source({**spec, "where": {"style": ["x", "y"]}}))
    assert captions(items) == {
        "a.png": [Caption("cat", "short"), Caption("a cat", "dense")],
        "b.png": [Caption("dog\u2028bone", "short")],
    }
    assert items[0].meta == {"style": "x", "tags": ["p", "q"]}  # type: ignore[union-attr]
    assert list(captions(list(open_source({**spec, "where": {"tags": "p"}})))) == ["a.png"]


def test_folder_skips_hostile_rows(tmp_path: Path) -> None:
    root = tmp_path / "data"
    save_picture(root / "a.png")
    save_picture(tmp_path / "secret.png")
    deep = "[" * 100_000
    lines = [
        '{"file": "a.png", "text": "ok"}',
        '{"file": "../secret.png", "text": "out"}',
        json.dumps({"file": str(tmp_path / "secret.png"), "text": "out"}),
        '{"file": 5, "text": "number"}',
        '{"file": "gone.png", "text": "none"}',
        '{"file": "a\\u0000.png", "text": "nul"}',
        "not json",
        "[1]",
        deep,
    ]
    (root / "metadata.jsonl").write_text("\n".join(lines))
    items = list(open_source({"name": "folder", "path": str(root)}))
    assert list(captions(items)) == ["a.png"]
    bad = reasons(items)
    assert "leaves the folder" in bad["../secret.png"]
    assert "leaves the folder" in bad[str(tmp_path / "secret.png")]
    assert "does not exist" in bad["gone.png"]
    assert {"5", "a\0.png", "metadata.jsonl:7", "metadata.jsonl:8", "metadata.jsonl:9"} <= set(bad)


@pytest.mark.parametrize(
    ("files", "options", "words"),
    [
        (None, {}, ["no folder"]),
        ({}, {}, ["no files"]),
        ({"a.txt": "x", "b.txt": "y"}, {}, ["2 files (.txt)", "no pictures"]),
        ({"a.txt": "x"}, {"metadata": "m.jsonl"}, ["no table 'm.jsonl'"]),
        ({"m.xlsx": "x"}, {"metadata": "m.xlsx"}, ["neither"]),
        ({"metadata.jsonl": ""}, {}, ["no file column"]),
        ({"metadata.csv": "file,caption\n"}, {}, ["no file column"]),
        (
            {"metadata.jsonl": '{"file": "a.png", "annotation": "x"}'},
            {"caption_column": "anotation"},
            ["file, annotation", "did you mean 'annotation'"],
        ),
        (
            {"metadata.jsonl": '{"file": "a.png", "words": "x"}'},
            {},
            ["caption_column", "file, words"],
        ),
        (
            {"metadata.jsonl": '{"file": "a.png", "text": "x", "style": "noto"}'},
            {"where": {"stile": "noto"}},
            ["did you mean 'style'"],
        ),
        (
            {"metadata.jsonl": '{"file": "a.png", "text": "x", "style": "noto"}'},
            {"where": {"style": "nota"}},
            ["matches nothing"],
        ),
        ({"a.png": "x"}, {"where": {"style": "noto"}}, ["needs a table"]),
        ({"a.png": "x"}, {"background": "whit"}, ["'whit' is not a colour"]),
        ({"a.png": "x"}, {"caption_colum": "x"}, ["did you mean 'caption_column'"]),
    ],
)
def test_folder_refuses_in_one_sentence(
    tmp_path: Path, files: dict[str, str] | None, options: dict[str, object], words: list[str]
) -> None:
    root = tmp_path / "data"
    if files is not None:
        root.mkdir()
        for name, text in files.items():
            (root / name).write_text(text)
    with pytest.raises(GessoError) as error:
        open_source({"name": "folder", "path": str(root), **options})
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)


def test_folder_fingerprint_follows_pictures_captions_and_options(tmp_path: Path) -> None:
    save_picture(tmp_path / "a" / "a.png")
    (tmp_path / "a" / "a.txt").write_text("one")

    def fingerprint(folder: str = "a", **options: object) -> str:
        return open_source(
            {"name": "folder", "path": str(tmp_path / folder), **options}
        ).fingerprint()

    first = fingerprint()
    assert fingerprint() == first
    assert fingerprint(caption_lines=True) != first
    assert fingerprint(background="black") != first
    (tmp_path / "a").rename(tmp_path / "moved")
    assert fingerprint("moved") == first
    (tmp_path / "moved" / "a.txt").write_text("two")
    second = fingerprint("moved")
    assert second != first
    os.utime(tmp_path / "moved" / "a.png", (1, 1))
    assert fingerprint("moved") not in (first, second)


def test_transparency_is_laid_on_the_background_that_the_recipe_names(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("clear")
    spec = {"name": "folder", "path": str(tmp_path)}
    [white] = open_source(spec)
    [black] = open_source(spec, "black")
    [own] = open_source({**spec, "background": "#0000ff"}, "black")
    assert isinstance(white, Sample) and isinstance(black, Sample) and isinstance(own, Sample)
    assert white.image[0, 0].tolist() == [255, 255, 255]
    assert black.image[0, 0].tolist() == [0, 0, 0]
    assert own.image[0, 0].tolist() == [0, 0, 255]


# Reading


def test_read_skips_known_keys_and_reports_double_ones() -> None:
    items = [sample(0), sample(1), sample(0), Bad("x", "why"), sample(2)]
    got = list(read(ListSource(items), skip={"k001"}))
    assert [i.key for i in got] == ["k000", "k000", "x", "k002"]
    assert isinstance(got[1], Bad) and "same key" in got[1].reason
    assert got[2] == Bad("x", "why")


def test_skipped_pictures_are_not_opened_and_texts_need_no_picture(tmp_path: Path) -> None:
    for i in range(40):
        save_picture(tmp_path / f"{i:02d}.png", value=i)
        (tmp_path / f"{i:02d}.txt").write_text(f"number {i}")
    source = open_source({"name": "folder", "path": str(tmp_path)})
    got = list(read(source))
    assert [s.image[0, 0, 0] for s in got if isinstance(s, Sample)] == list(range(40))
    for i in range(30):
        (tmp_path / f"{i:02d}.png").unlink()
    rest = list(read(source, skip={f"{i:02d}.png" for i in range(30)}))
    assert [s.key for s in rest] == [f"{i:02d}.png" for i in range(30, 40)]
    assert all(isinstance(s, Sample) for s in rest)
    assert list(caption_texts(source)) == [f"number {i}" for i in range(40)]


# COCO


def coco(tmp_path: Path, images: object, annotations: object) -> dict[str, str]:
    (tmp_path / "images").mkdir(exist_ok=True)
    file = tmp_path / "captions.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    return {"name": "coco", "annotations": str(file), "images": str(tmp_path / "images")}


def test_coco_joins_captions_though_ids_differ_in_type(tmp_path: Path) -> None:
    save_picture(tmp_path / "images" / "a.jpg")
    spec = coco(
        tmp_path,
        [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "../a.jpg"}, {"id": 9}, 5],
        [
            {"image_id": "7", "caption": " one "},
            {"image_id": 7, "caption": "two"},
            {"image_id": 7, "caption": None},
            "junk",
        ],
    )
    items = list(open_source(spec))
    assert captions(items) == {"a.jpg": [Caption("one"), Caption("two")]}
    assert len(reasons(items)) == 3
    assert "leaves the folder" in reasons(items)["../a.jpg"]


@pytest.mark.parametrize(
    ("images", "annotations", "word"),
    [
        ([{"id": 1, "file_name": "a.jpg"}], [{"image_id": 1, "bbox": [1, 2, 3, 4]}], "no captions"),
        ([], [{"image_id": 1, "caption": "x"}], "no pictures"),
        ({}, [], "not a COCO file"),
    ],
)
def test_coco_refuses_other_json(
    tmp_path: Path, images: object, annotations: object, word: str
) -> None:
    with pytest.raises(GessoError, match=word):
        open_source(coco(tmp_path, images, annotations))


def test_coco_refuses_missing_and_broken_files(tmp_path: Path) -> None:
    spec = coco(tmp_path, [], [])
    with pytest.raises(GessoError, match="no folder"):
        open_source({**spec, "images": str(tmp_path / "gone")})
    with pytest.raises(GessoError, match="no file"):
        open_source({**spec, "annotations": str(tmp_path / "gone.json")})
    (tmp_path / "captions.json").write_text("[" * 100_000)
    with pytest.raises(GessoError, match="JSON"):
        open_source(spec)


def test_coco_mini_has_five_captions_per_photo() -> None:
    root = SHARED / "coco_mini"
    if not root.is_dir():
        pytest.skip("shared/data/coco_mini is absent")
    source = open_source(
        {
            "name": "coco",
            "annotations": str(root / "annotations" / "captions_train2017.json"),
            "images": str(root / "train2017"),
        }
    )
    items = list(source)
    assert len(items) == 80
    assert all(isinstance(s, Sample) and len(s.captions) == 5 for s in items)


def test_emoji_annotations_are_a_table() -> None:
    if not (SHARED / "emoji").is_dir():
        pytest.skip("shared/data/emoji is absent")
    source = open_source(
        {
            "name": "folder",
            "path": str(SHARED / "emoji"),
            "metadata": "annotations.jsonl",
            "file_column": "file",
            "caption_column": "annotation",
            "where": {"style": ["noto", "fluent3d"]},
        }
    )
    assert len(source) == 3219  # type: ignore[arg-type]
    first = next(iter(source))
    assert isinstance(first, Sample)
    assert first.key == "noto/23-20e3.png"
    assert first.image.shape == (128, 128, 3)
    assert first.captions == [Caption("keycap: #")]


# WebDataset


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_webdataset_groups_members_and_runs_no_pickle(tmp_path: Path) -> None:
    png = picture_bytes(tmp_path)
    tars = tmp_path / "tars"
    tars.mkdir()
    bomb = b"cposix\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    write_tar(
        tars / "b.tar.gz",
        {"x/2.jpg": png, "x/2.txt": b"two", "x/3.txt": b"no picture", "x/4.png": png},
    )
    write_tar(
        tars / "a.tar",
        {
            "1.png": png,
            "1.txt": b"\xef\xbb\xbf one ",
            "1.json": b'{"label": 4}',
            "1.pkl": bomb,
            "1.seg.png": b"?",
        },
    )
    items = list(open_source({"name": "webdataset", "path": str(tars)}))
    assert captions(items) == {"a.tar/1": [Caption("one")], "b.tar.gz/x/2": [Caption("two")]}
    assert items[0].meta == {"label": 4}  # type: ignore[union-attr]
    assert "no picture" in reasons(items)["b.tar.gz/x/3"]
    assert "no caption" in reasons(items)["b.tar.gz/x/4"]
    assert not (tmp_path / "ran").exists()


def test_webdataset_reads_json_captions(tmp_path: Path) -> None:
    png = picture_bytes(tmp_path)
    row = json.dumps({"short": "cat", "dense": ["a cat", "one cat"], "id": 5}).encode()
    write_tar(tmp_path / "a.tar", {"1.png": png, "1.json": row, "2.png": png, "2.json": b"{"})
    spec = {"name": "webdataset", "path": str(tmp_path / "a.tar")}
    items = list(open_source({**spec, "caption_column": ["dense", "short"]}))
    assert captions(items) == {
        "a.tar/1": [
            Caption("a cat", "dense"),
            Caption("one cat", "dense"),
            Caption("cat", "short"),
        ]
    }
    assert "no caption" in reasons(items)["a.tar/2"]
    with pytest.raises(GessoError, match=r"short, dense, id.*did you mean 'dense'"):
        open_source({**spec, "caption_column": "dens"})


def test_webdataset_reports_a_truncated_tar_and_goes_on(tmp_path: Path) -> None:
    png = picture_bytes(tmp_path)
    tars = tmp_path / "tars"
    tars.mkdir()
    pair = {"1.png": png, "1.txt": b"one", "2.png": png + bytes(20_000), "2.txt": b"two"}
    write_tar(tars / "a.tar", pair)
    data = (tars / "a.tar").read_bytes()
    (tars / "a.tar").write_bytes(data[:8_000])
    write_tar(tars / "b.tar", pair)
    items = list(open_source({"name": "webdataset", "path": str(tars)}))
    assert {"a.tar/1", "b.tar/1", "b.tar/2"} <= set(captions(items))
    assert "a.tar/2" not in captions(items)
    assert "breaks off" in reasons(items)["a.tar"]


def test_webdataset_refuses_no_tars_no_pictures_and_no_path(tmp_path: Path) -> None:
    with pytest.raises(GessoError, match="no tar files"):
        open_source({"name": "webdataset", "path": str(tmp_path)})
    (tmp_path / "a.tar").write_bytes(b"junk" * 1000)
    with pytest.raises(GessoError, match=r"no pictures.*no tar"):
        open_source({"name": "webdataset", "path": str(tmp_path)})
    with pytest.raises(GessoError, match="There is no tar"):
        open_source({"name": "webdataset", "path": str(tmp_path / "gone")})


# Parquet


def write_parquet(path: Path, columns: dict[str, list[object]]) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_parquet_reads_bytes_structs_and_paths(tmp_path: Path) -> None:
    png = picture_bytes(tmp_path)
    save_picture(tmp_path / "t" / "p.png")
    write_parquet(
        tmp_path / "t" / "1.parquet", {"image": [png, None, b"junk"], "text": ["a", "b", "c"]}
    )
    struct = [{"bytes": png, "path": None}, {"bytes": None, "path": "p.png"}]
    write_parquet(tmp_path / "t" / "2.parquet", {"image": struct, "text": ["d", "e"]})
    write_parquet(
        tmp_path / "t" / "3.parquet", {"image": ["p.png", "../picture.tmp.png"], "text": ["f", "g"]}
    )
    source = open_source({"name": "parquet", "path": str(tmp_path / "t")})
    items = list(source)
    assert len(source) == 7  # type: ignore[arg-type]
    assert captions(items) == {
        "1.parquet:0": [Caption("a")],
        "2.parquet:0": [Caption("d")],
        "2.parquet:1": [Caption("e")],
        "3.parquet:0": [Caption("f")],
    }
    assert "holds no picture" in reasons(items)["1.parquet:1"]
    assert "not a picture" in reasons(items)["1.parquet:2"]
    assert "leaves the folder" in reasons(items)["3.parquet:1"]


def test_parquet_takes_keys_and_several_captions(tmp_path: Path) -> None:
    png = picture_bytes(tmp_path)
    file = tmp_path / "a.parquet"
    columns = {"jpg": [png], "short": ["cat"], "dense": [["a", "b"]], "id": ["x7"], "label": [3]}
    write_parquet(file, columns)  # type: ignore[arg-type]
    spec = {"name": "parquet", "path": str(file), "key_column": "id"}
    [item] = open_source({**spec, "caption_column": ["short", "dense"]})
    assert isinstance(item, Sample)
    assert item.key == "x7"
    assert [c.kind for c in item.captions] == ["short", "dense", "dense"]
    assert item.meta == {"id": "x7", "label": 3}
    with pytest.raises(GessoError, match=r"jpg, short, dense, id, label.*did you mean 'short'"):
        open_source({**spec, "caption_column": "shrt"})


def test_parquet_refuses_broken_empty_and_missing_files(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    spec = {"name": "parquet", "path": str(tmp_path)}
    with pytest.raises(GessoError, match=r"no \.parquet files"):
        open_source(spec)
    (tmp_path / "a.parquet").write_bytes(b"PAR1junkPAR1")
    with pytest.raises(GessoError, match=r"a\.parquet is not a readable"):
        open_source(spec)
    write_parquet(tmp_path / "a.parquet", {"image": [], "text": []})
    with pytest.raises(GessoError, match="no rows"):
        open_source(spec)
    with pytest.raises(GessoError, match="no file or folder"):
        open_source({"name": "parquet", "path": str(tmp_path / "gone")})


# Hugging Face


@pytest.fixture
def hf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setattr("datasets.config.HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "hf_cache"))


@pytest.mark.usefixtures("hf")
def test_hf_reads_a_local_image_folder_and_skips_broken_pictures(tmp_path: Path) -> None:
    root = tmp_path / "data"
    save_picture(root / "train" / "a.png")
    save_picture(root / "train" / "b.png")
    (root / "train" / "b.png").write_bytes((root / "train" / "b.png").read_bytes()[:-25])
    rows = [{"file_name": "a.png", "text": "one"}, {"file_name": "b.png", "text": "two"}]
    (root / "train" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source({"name": "hf", "path": str(root)})
    items = list(source)
    assert captions(items) == {"train:0": [Caption("one")]}
    assert "decoded" in reasons(items)["train:1"]
    before = source.fingerprint()
    assert open_source({"name": "hf", "path": str(root)}).fingerprint() == before
    os.utime(root / "train" / "a.png", (1, 1))
    assert source.fingerprint() != before


@pytest.mark.usefixtures("hf")
def test_hf_reads_what_save_to_disk_wrote(tmp_path: Path) -> None:
    import datasets

    png = picture_bytes(tmp_path)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.Value("int64"),
            "caption": datasets.Value("string"),
        }
    )
    rows = {"image": [{"bytes": png, "path": None}], "label": [2], "caption": ["cat"]}
    data = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"test": data}).save_to_disk(str(tmp_path / "saved"))
    [item] = open_source({"name": "hf", "path": str(tmp_path / "saved"), "split": "test"})
    assert isinstance(item, Sample)
    assert item.captions == [Caption("cat")]
    assert item.meta == {"label": 2}
    with pytest.raises(GessoError, match="cannot be opened"):
        open_source({"name": "hf", "path": str(tmp_path / "saved"), "split": "train"})


@pytest.mark.usefixtures("hf")
def test_hf_refuses_missing_datasets_and_columns(tmp_path: Path) -> None:
    with pytest.raises(GessoError, match="cannot be opened"):
        open_source({"name": "hf", "path": str(tmp_path / "gone")})
    write_parquet(tmp_path / "d" / "a.parquet", {"image": [b"x"], "words": ["y"]})
    with pytest.raises(GessoError, match="image, words"):
        open_source({"name": "hf", "path": str(tmp_path / "d")})


@pytest.mark.usefixtures("hf")
def test_hf_fetches_a_picture_from_the_hub_and_from_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    opened = []

    def fake_open(url: str, mode: str) -> io.BytesIO:
        opened.append(url)
        return io.BytesIO(picture_bytes(tmp_path))

    urls = ["hf://datasets/u/d/a.png", "http://localhost/a.png"]
    write_parquet(tmp_path / "d" / "a.parquet", {"image": urls, "text": ["x", "y"]})  # type: ignore[dict-item]
    source = open_source({"name": "hf", "path": str(tmp_path / "d")})
    monkeypatch.setattr(fsspec, "open", fake_open)
    items = list(source)
    assert captions(items) == {"train:0": [Caption("x")]}
    assert opened == urls[:1]
