"""How long a training waits for its data, from a feature cache of real pictures in tar shards.

    python benchmarks/data_wait.py DATA    # DATA holds coco_mini/, emoji/ and weights/taesd/

Packs captioned photos and emoji into WebDataset tars of 256 pictures, encodes them once (TAESD,
MiniLM) and trains 120 steps from the cache, in two sizes of which the small one asks for data most
often. The share is `data_wait` of the last 100 steps, as every run logs it. Goal: at most 5 %.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections import defaultdict
from pathlib import Path
from statistics import fmean

STYLES = ("noto", "fluent3d")
TRAINING = ["train.steps=120", "train.minutes=null", "train.log_every=20", "validation.holdout=16"]
SIZES = {
    "6 layers of 128, batch 64": [
        "backbone={name: pixart, depth: 6, hidden_size: 128, num_heads: 2, learn_sigma: false}",
    ],
    "6 layers of 192, batch 64": [],
}


def pictures(data: Path) -> list[tuple[Path, str]]:
    """(file, caption) of every photo and emoji."""
    coco = data / "coco_mini"
    entries = json.loads((coco / "annotations" / "captions_train2017.json").read_text())
    captions = defaultdict(list)
    for row in entries["annotations"]:
        captions[row["image_id"]].append(row["caption"])
    found = [
        (coco / "train2017" / image["file_name"], captions[image["id"]][0])
        for image in entries["images"]
        if captions[image["id"]] and (coco / "train2017" / image["file_name"]).exists()
    ]
    for line in (data / "emoji" / "annotations.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["style"] in STYLES:
            found.append((data / "emoji" / row["file"], row["annotation"]))
    return found


def pack(found: list[tuple[Path, str]], folder: Path) -> None:
    """WebDataset tars: KEY.png or KEY.jpg and KEY.txt."""
    folder.mkdir()
    for number, part in enumerate(batched_of(found, 256)):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for i, (file, caption) in enumerate(part):
                key = f"{number:05d}{i:04d}"
                for suffix, content in (
                    (file.suffix, file.read_bytes()),
                    (".txt", caption.encode()),
                ):
                    info = tarfile.TarInfo(key + suffix)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def batched_of(found: list[tuple[Path, str]], n: int) -> list[list[tuple[Path, str]]]:
    return [found[i : i + n] for i in range(0, len(found), n)]


def gesso(*args: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gesso", *args, "--json"], capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"gesso {' '.join(args)} failed:\n{done.stderr[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = pictures(args.data)
        pack(found, folder / "tars")
        data = [
            f"data.source={{name: webdataset, path: {folder / 'tars'}}}",
            f"image_encoder.path={args.data / 'weights' / 'taesd'}",
        ]
        gesso("encode", "emoji", *data, "--out", str(folder / "cache"))
        print(f"{len(found)} real pictures at 128 px in tars of 256")
        for size, overrides in SIZES.items():
            run = folder / size.partition(",")[0].replace(" ", "-")
            settings = [*data, *overrides, *TRAINING, "validation.prompts=[]"]
            settings.append(f"data.cache={folder / 'cache'}")
            gesso("train", "emoji", *settings, "--run", str(run))
            logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            waits = [row["data_wait"] for row in logged if "data_wait" in row][1:]
            rates = [row["images_per_second"] for row in logged if "data_wait" in row][1:]
            verdict = "within" if fmean(waits) <= 0.05 else "NOT within"
            print(
                f"{size}: {fmean(rates):.0f} pictures/s, data wait {fmean(waits):.2%} of the "
                f"time ({min(waits):.2%} .. {max(waits):.2%}): {verdict} 5 %",
                flush=True,
            )


if __name__ == "__main__":
    main()
