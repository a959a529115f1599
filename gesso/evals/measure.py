"""`gesso evaluate fid --pictures DIR --reference DIR` and its like: metrics over whole folders.

OUT/gathered/<set>-<fingerprint>.safetensors   what was gathered of a folder, while it goes on too;
                                               the file of a reference can be given in its place
OUT/<metric>.json                              the result, with everything that its number hangs on
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gesso.config import module
from gesso.data.images import load_rgb
from gesso.evals.fingerprint import file_digest, fingerprint
from gesso.evals.judging import check_abilities, open_judge
from gesso.evals.metric import Gathered, Metric, Moments, State
from gesso.evals.pictures import all_pictures
from gesso.evals.prompt_files import read_jsonl
from gesso.evals.types import Judge
from gesso.png import read_png
from gesso.types import GessoError

CHUNK = 64  # pictures decoded at a time: bounds the memory
SAVE_EVERY = 1024  # pictures


def measure(
    name: str,
    pictures: Sequence[Path],
    *,
    reference: Path | None = None,
    judges: Sequence[str] = (),
    limit: int | None = None,
    out: Path | None = None,
    device: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Measure folders of pictures.

    Args:
        name: of a metric.
        pictures: folders; of each, every picture in it and below.
        reference: a folder, or what was gathered of one (.safetensors, or .npz with mu and sigma).
        judges: the spec of one judge; default: the metric's.
        limit: at most so many pictures of each folder, the first by name.
        out: default: evaluations/NAME.
        quiet: show no progress bar.

    Returns:
        benchmark (the metric), judge, out, results (for each folder what stands in its file), and
        say (the same for people).

    Raises:
        GessoError: bad input anywhere on the way.
    """
    found = module("evals.metrics", name)
    place = out or Path("evaluations") / name.replace("_", "-")
    judge = _judge(name, found.JUDGE, judges, device)
    metric: Metric = found.build(judge)
    check_abilities([judge], [metric.needs], name)
    if not pictures:
        raise GessoError(f"{name} needs a folder of pictures: add --pictures DIR.")
    if metric.compares and reference is None:
        raise GessoError(f"{name} compares with a reference set: add --reference DIR or FILE.")
    against: Gathered | None = None
    about = None
    if metric.compares and reference is not None:
        if reference.is_dir():
            against, about = gather(metric, reference, place, None, quiet)
        else:
            against, about = load_gathered(metric, reference)
    results = []
    for folder in pictures:
        mine, told = gather(metric, folder, place, limit, quiet)
        value = metric.compute(mine, against)
        pinned = pinned_name(name, judge, mine.n, reference if metric.compares else None)
        result = {
            "format": 1,
            "benchmark": name,
            "name": pinned,
            "subject": str(folder),
            "scores": {},
            "notes": [],
            **value,
            "n": mine.n,
            "pictures": told,
            "reference": about,
            "judge": judge.name,
            "judge_fingerprint": judge.fingerprint,
            "versions": judge.versions,
        }
        file = place / f"{_file_name(pinned)}-{_file_name(folder.name)}.json"
        file.write_text(json.dumps(result, indent=1) + "\n")
        results.append({**result, "file": str(file)})
    told = {"benchmark": name, "judge": judge.name, "results": results, "out": str(place)}
    return told | {"say": "\n".join(map(say, results))}


def say(result: dict[str, Any]) -> str:
    """A result for people."""
    interval = result.get("interval")
    between = f", {interval[0]:.5g} to {interval[1]:.5g}" if interval else ""
    lines = [f"{result['subject']}: {result['name']} = {result['overall']:.5g}{between}"]
    lines += [f"  {name} {value:.5g}" for name, value in result["scores"].items()]
    return "\n".join([*lines, *(f"  {note}" for note in result["notes"])])


def pinned_name(name: str, judge: Judge, n: int, reference: Path | None) -> str:
    """`fid-inception-clean-30k@coco2014val`: metric, judge with resize and dtype, count, set."""
    count = f"{n // 1000}k" if n >= 1000 and n % 1000 == 0 else str(n)
    kind = judge.name.partition(":")[0]
    pinned = f"{name.replace('_', '-')}-{kind}-{count}"
    return pinned if reference is None else f"{pinned}@{_set_name(reference)}"


def _set_name(reference: Path) -> str:
    """A reference's name: of its folder, or of the file that was gathered of it."""
    if reference.is_dir() or reference.suffix == ".npz":
        return reference.resolve().stem if reference.suffix else reference.resolve().name
    return reference.stem.rpartition("-")[0] or reference.stem


def _judge(name: str, default: str, specs: Sequence[str], device: str | None) -> Judge:
    if len(specs) > 1:
        raise GessoError(f"{name} takes one judge, not {len(specs)}: name one.")
    try:
        return open_judge(specs[0] if specs else default, device)
    except GessoError as e:
        if specs or "path" not in str(e):
            raise
        raise GessoError(
            f"{name} needs the weights of its judge {default!r}: name them with "
            f"--judge {default}:PATH."
        ) from None


# ------------------------------------------------------------------------------------ gathering


def gather(
    metric: Metric, folder: Path, out: Path, limit: int | None, quiet: bool
) -> tuple[Gathered, dict[str, Any]]:
    """Look at every picture of a folder; goes on where it was interrupted.

    Returns:
        what was gathered, and about it: folder, n, fingerprint, file.

    Raises:
        GessoError: no pictures, a corrupt one (named), or none of their prompts.
    """
    from gesso.progress import steps_bar

    files = list(all_pictures(folder))[:limit]
    if not files:
        raise GessoError(f"There are no pictures in {folder}: give a folder that has some.")
    texts = prompts_of(folder, files) if metric.prompts else [""] * len(files)
    mark = _mark(metric, folder, files, texts)
    file = out / "gathered" / f"{_file_name(folder.resolve().name)}-{mark}.safetensors"
    gathered, done = _continue(metric, file, mark)
    with steps_bar(folder.name, quiet) as show:
        while done < len(files):
            some = files[done : done + CHUNK]
            images = [_load(f) for f in some]
            gathered.add(metric.look(images, texts[done : done + CHUNK]))
            done += len(some)
            show(done, len(files))
            if done % SAVE_EVERY == 0 or done == len(files):
                save_gathered(gathered, file, {"mark": mark, "of": str(folder), "done": done})
    return gathered, {
        "folder": str(folder),
        "n": gathered.n,
        "fingerprint": mark,
        "file": str(file),
    }


def _load(file: Path) -> np.ndarray:
    try:
        return load_rgb(file)
    except GessoError as e:
        raise GessoError(f"{file}: {e} Mend or remove it; the others are kept.") from None


def _mark(metric: Metric, folder: Path, files: list[Path], texts: list[str]) -> str:
    """Of the pictures (names and sizes), their prompts, and who looks at them."""
    told = [(str(f.relative_to(folder)), f.stat().st_size) for f in files]
    kind = type(metric).__name__ if metric.needs != "features" else metric.gathers.__name__
    return fingerprint(metric.judge.fingerprint, kind, told, texts if metric.prompts else None)


def _continue(metric: Metric, file: Path, mark: str) -> tuple[Gathered, int]:
    if not file.is_file():
        return metric.gathers(), 0
    state, about = _read(file)
    if about.get("mark") != mark:
        return metric.gathers(), 0
    return metric.gathers.of(state), int(about["done"])


def save_gathered(gathered: Gathered, file: Path, about: dict[str, Any]) -> None:
    """Write what was gathered, whole or not at all."""
    from safetensors.numpy import save_file

    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(".tmp")
    state = {name: np.ascontiguousarray(value) for name, value in gathered.state().items()}
    save_file(state, temporary, metadata={"gesso": json.dumps(about)})
    temporary.replace(file)


def load_gathered(metric: Metric, file: Path) -> tuple[Gathered, dict[str, Any]]:
    """A reference from a file: ours, or the .npz with mu and sigma that FID tools write.

    Raises:
        GessoError: no such file, not one of these, unfinished, or gathered by another judge.
    """
    if not file.is_file():
        raise GessoError(f"There is no reference {str(file)!r}: give a folder or a file.")
    told: dict[str, Any] = {"file": str(file), "sha256": file_digest(file)}
    if file.suffix == ".npz":
        return _from_npz(metric, file), told
    state, about = _read(file)
    try:
        gathered = metric.gathers.of(state)
    except KeyError as e:
        raise GessoError(
            f"{file} holds no {e.args[0]!r}, which this metric needs: gather the reference anew, "
            "from its folder."
        ) from None
    return gathered, told | {"folder": about.get("of"), "n": gathered.n}


def _from_npz(metric: Metric, file: Path) -> Gathered:
    if metric.gathers is not Moments:
        raise GessoError(f"{file} holds a mean and a covariance, and this metric needs pictures.")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            mean, covariance = arrays["mu"], arrays["sigma"]
            count = int(arrays["n"]) if "n" in arrays else 50_000  # such files do not tell it
    except (KeyError, ValueError, OSError) as e:
        raise GessoError(
            f"{file} is no .npz with mu and sigma ({str(e).splitlines()[0]}): give another."
        ) from None
    moments = Moments()
    moments.count, moments.mean = count, mean.astype(np.float64)
    moments.scatter = covariance.astype(np.float64) * (count - 1)
    return moments


def _read(file: Path) -> tuple[State, dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as opened:
            about = json.loads((opened.metadata() or {}).get("gesso", "{}"))
            return {key: opened.get_tensor(key) for key in opened.keys()}, about  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as e:
        raise GessoError(
            f"{file} is damaged or no safetensors file ({str(e).splitlines()[0]}): remove it."
        ) from None


# -------------------------------------------------------------------------------------- prompts


def prompts_of(folder: Path, files: Sequence[Path]) -> list[str]:
    """Each picture's prompt: from metadata.jsonl (file, prompt), a .txt file beside it, or what
    `gesso paint` wrote into the PNG.

    Raises:
        GessoError: a picture without one.
    """
    listed: dict[Path, str] = {}
    if (folder / "metadata.jsonl").is_file():
        for row in read_jsonl(folder / "metadata.jsonl"):
            name = row.get("file") or row.get("file_name")
            text = row.get("prompt") or row.get("text")
            if name is not None and text is not None:
                listed[folder / str(name)] = str(text)
    finders: list[Callable[[Path], str | None]] = [listed.get, _beside, _inside]
    texts = []
    for file in files:
        text = next((t for find in finders if (t := find(file)) is not None), None)
        if text is None:
            raise GessoError(
                f"{file} has no prompt: name it in {folder / 'metadata.jsonl'} (file, prompt) or "
                "write it into a .txt file beside the picture."
            )
        texts.append(text)
    return texts


def _beside(file: Path) -> str | None:
    text = file.with_suffix(".txt")
    return text.read_text().strip() if text.is_file() else None


def _inside(file: Path) -> str | None:
    try:
        return str(read_png(file)["prompt"])
    except GessoError:
        return None


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_.@" else "-" for c in text)
