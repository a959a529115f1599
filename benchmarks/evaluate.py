"""How much of judging is the judge's network: pictures/s of `gesso evaluate`'s judging, from files
on disk to verdicts with replies kept, against the bare network on tensors at hand.

    python benchmarks/evaluate.py reader
    python benchmarks/evaluate.py yolox WEIGHTS PHOTOS      a folder each
    python benchmarks/evaluate.py vqa                       BLIP-VQA base with random weights
    python benchmarks/evaluate.py fid                       10,000 pictures, killed and continued

Prints both rates and their ratio, by the clock and in CPU seconds (which a neighbour's load hardly
changes), and the machine's load while it ran. Rounds alternate. `fid` prints peak
memories and whether the digits are the same.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from PIL import Image

from gesso.data.images import load_rgb
from gesso.data.scenes import SHAPES, read, render, sample_scene
from gesso.evals import measure as measuring
from gesso.evals.coco import COCO
from gesso.evals.job import judge_pictures
from gesso.evals.judging import Asker, open_judge
from gesso.evals.types import (
    YES_NO,
    Benchmark,
    Judge,
    Judging,
    Picture,
    Prompt,
    Verdict,
    detect,
    questions,
)

ASKED = ["is there a cat ?", "is there a red star ?", "is the dog blue ?", "is there a square ?"]


class Objects(Benchmark):
    """Asks for all objects of a picture."""

    title, source, needs = "objects", "", ("detect",)
    classes: ClassVar[tuple[str, ...]] = SHAPES

    def prompts(self, options):  # type: ignore[no-untyped-def]
        return []

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        found = yield from detect(pictures[0], self.classes)
        return Verdict(float(len(found)))


class CocoObjects(Objects):
    classes = COCO


class Questions(Objects):
    """Asks four questions about a picture."""

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        answers = yield from questions(pictures[0], [(text, YES_NO) for text in ASKED])
        return Verdict(sum(a.p_yes or 0 for a in answers))


def judged(benchmark: Benchmark, judge: Judge, files: list[Path]) -> Callable[[], None]:
    """The whole way, with a fresh folder of replies."""

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            asker = Asker([judge], Path(folder))
            prompts = [Prompt(str(i), "") for i in range(len(files))]
            by_id = {str(i): [file] for i, file in enumerate(files)}
            assert len(list(judge_pictures(benchmark, prompts, by_id, asker))) == len(files)

    return run


def compare(name: str, n: int, whole: Callable[[], None], bare: Callable[[], None], rounds: int):
    """Alternate, and print medians."""
    whole(), bare()  # warm-up
    seconds: dict[str, list[float]] = {"whole": [], "bare": []}
    cpu: dict[str, list[float]] = {"whole": [], "bare": []}
    for _ in range(rounds):
        for key, run in (("bare", bare), ("whole", whole)):
            start, used = time.perf_counter(), time.process_time()
            run()
            seconds[key].append(time.perf_counter() - start)
            cpu[key].append(time.process_time() - used)

    def ratio(values: dict[str, list[float]]) -> float:
        return statistics.median(
            b / w for b, w in zip(values["bare"], values["whole"], strict=True)
        )

    rates = {key: n / statistics.median(values) for key, values in seconds.items()}
    print(f"{name}: {rates['whole']:.1f} pictures/s, bare network {rates['bare']:.1f}")
    print(
        f"  the network is {ratio(seconds):.0%} of the time, {ratio(cpu):.0%} of the CPU seconds; "
        f"{n / statistics.median(cpu['whole']):.2f} pictures a CPU second"
    )
    print(
        f"  median of {rounds} rounds of {n} pictures, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def reader(rounds: int) -> None:
    """Scenes of 64 pixels; its "network" is the reading itself."""
    pictures = [render(sample_scene(i, level=2), 64, 64) for i in range(600)]
    with tempfile.TemporaryDirectory() as folder:
        files = save(pictures, Path(folder))

        def bare() -> None:
            for picture in pictures:
                read(picture, 2)

        whole = judged(Objects(), open_judge("reader:level=2"), files)
        compare("reader, 64 px, level 2", len(files), whole, bare, rounds)


def yolox(weights: Path, photos: Path, rounds: int) -> None:
    """Real photos; the bare network gets ready tensors."""
    from gesso.evals.judges.yolox import letterbox

    judge = open_judge(f"yolox:{weights}")
    files = sorted(photos.rglob("*.jpg"))
    ready = [letterbox(load_rgb(f), judge.size)[0] for f in files]  # type: ignore[attr-defined]

    def bare() -> None:
        for pixels in ready:
            judge.session.run(None, {judge.input: pixels})  # type: ignore[attr-defined]

    compare("yolox", len(files), judged(CocoObjects(), judge, files), bare, rounds)


def vqa(rounds: int, count: int = 4) -> None:
    """BLIP-VQA base, random weights, four questions a picture."""
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForQuestionAnswering,
        BlipImageProcessor,
        BlipProcessor,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "?", *YES_NO]
    words += sorted({w for text in ASKED for w in text.split()} - set(words))
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        (place / "vocab.txt").write_text("\n".join(words) + "\n")
        tokenizer = BertTokenizerFast(str(place / "vocab.txt"))
        special = {"pad_token_id": 0, "bos_token_id": 30522, "sep_token_id": 3, "eos_token_id": 3}
        config = BlipConfig(text_config=special, vision_config={"image_size": 384})
        BlipForQuestionAnswering(config).eval().save_pretrained(place / "model")
        BlipProcessor(BlipImageProcessor(), tokenizer).save_pretrained(place / "model")
        judge = open_judge(f"hf-vqa:path={place / 'model'},batch_size=4")
        pictures = [rng.integers(0, 256, (512, 512, 3)).astype(np.uint8) for _ in range(count)]
        files = save(pictures, place)
        model, processor = judge.net.model, judge.net.processor  # type: ignore[attr-defined]
        pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in ASKED]
        answers = [torch.tensor([[30522, words.index(word)]]) for word in YES_NO]

        @torch.no_grad()
        def bare() -> None:
            """The same work on tensors at hand: each picture once, each question on it."""
            seen = model.vision_model(pixel_values=pixels).last_hidden_state
            for question in ids:
                asked = model.text_encoder(
                    input_ids=question.expand(count, -1), encoder_hidden_states=seen
                ).last_hidden_state
                for answer in answers:
                    model.text_decoder(
                        input_ids=answer.expand(count, -1), encoder_hidden_states=asked
                    )

        compare("BLIP-VQA base, random", count, judged(Questions(), judge, files), bare, rounds)


class Projected(Judge):
    """A small network: 256 fixed random features of a picture, and how many it looked at."""

    name, fingerprint, abilities = "projected", "benchmark", ("features",)

    def __init__(self) -> None:
        self.looked = 0
        self.weights = np.random.default_rng(0).normal(size=(16 * 16 * 3, 256)) / 1000

    def features(self, images: Sequence[np.ndarray]) -> np.ndarray:
        self.looked += len(images)
        return np.tanh(np.stack([i.ravel() for i in images]) @ self.weights).astype(np.float32)


def fid_of(place: Path, limit: int, out: str, result) -> None:  # type: ignore[no-untyped-def]
    """In a process of its own: FID, pictures looked at and the peak memory in MiB."""
    judge = Projected()
    measuring.open_judge = lambda spec, device: judge  # type: ignore[assignment]
    told = measuring.measure(
        "fid",
        [place / "pictures"],
        reference=place / "reference",
        limit=limit,
        out=place / out,
        quiet=True,
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    result.put((told["results"][0]["overall"], judge.looked, peak))


def fid(count: int = 10_000) -> None:
    """Peak memory at a tenth of the pictures and at all; killed and continued, the same digits."""
    from safetensors import safe_open

    processes = multiprocessing.get_context("spawn")

    def start(limit: int, out: str):  # type: ignore[no-untyped-def]
        result = processes.Queue()
        process = processes.Process(target=fid_of, args=(place, limit, out, result))
        process.start()
        return process, result

    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name, n, top in (("pictures", count, 256), ("reference", 2048, 200)):
            (place / name).mkdir()
            save(
                [rng.integers(0, top, (16, 16, 3)).astype(np.uint8) for _ in range(n)], place / name
            )
        told = {}
        for name, limit in (("tenth", count // 10), ("all", count)):
            process, result = start(limit, name)
            told[name] = result.get()
            process.join()
        process, _ = start(count, "killed")
        while not (files := list((place / "killed/gathered").glob("pictures-*.safetensors"))):
            time.sleep(0.01)
        process.kill()
        process.join()
        with safe_open(files[0], "numpy") as kept:
            print(f"killed after {kept.metadata()['gesso']}")
        process, result = start(count, "killed")
        again = result.get()
        process.join()
    for name, (value, looked, peak) in {**told, "continued": again}.items():
        print(f"{name}: FID {value!r}, {looked} pictures looked at, peak {peak:.0f} MiB")
    print("the same digits" if again[0] == told["all"][0] else "OTHER DIGITS")


def save(pictures: Sequence[np.ndarray], folder: Path) -> list[Path]:
    files = [folder / f"{i:04}.png" for i in range(len(pictures))]
    for picture, file in zip(pictures, files, strict=True):
        Image.fromarray(picture).save(file)
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("what", choices=["reader", "yolox", "vqa", "fid"])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.what == "yolox":
        yolox(*options.paths, rounds=options.rounds)
    elif options.what == "fid":
        fid()
    else:
        {"reader": reader, "vqa": vqa}[options.what](options.rounds)


if __name__ == "__main__":
    main()
