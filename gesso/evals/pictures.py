"""Which picture in a folder belongs to which prompt. Three layouts, see docs/evaluation.md."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from gesso.data.images import SUFFIXES
from gesso.evals.prompt_files import check_keys, file_id, read_jsonl
from gesso.evals.types import Prompt
from gesso.types import GessoError

LAYOUTS = (
    "PROMPTID_0.png, PROMPTID_1.png, ...; 00000/samples/0000.png as GenEval's; or a "
    "metadata.jsonl with file and prompt (or id)"
)


def find_pictures(folder: Path, prompts: Sequence[Prompt]) -> dict[str, list[Path]]:
    """Files by prompt id, in order; prompts without a picture are absent.

    Args:
        folder: in one of the layouts
            - `metadata.jsonl`, a line a picture with "file" (or "file_name") and "id" or "prompt";
            - GenEval's `00000/samples/0000.png`: the folder's number is the prompt's place, and
              its `metadata.jsonl`, if there, must have the same "prompt";
            - flat: `ID_0.png`, or `ID.png`, with the id or the text of a prompt.
        prompts: all prompts of the benchmark, in order.

    Raises:
        GessoError: no such folder, none of the layouts, or a metadata file that is not one.
    """
    if not folder.is_dir():
        raise GessoError(f"There is no folder of pictures {str(folder)!r}: give one that exists.")
    if (folder / "metadata.jsonl").is_file():
        found = _listed(folder, prompts)
    elif any(folder.glob("[0-9]*/samples")):
        found = _numbered(folder, prompts)
    else:
        found = _flat(folder, prompts)
    if not found:
        raise GessoError(
            f"{folder} has no picture of any of the {len(prompts)} prompts: name the files "
            f"{LAYOUTS}."
        )
    return found


def _listed(folder: Path, prompts: Sequence[Prompt]) -> dict[str, list[Path]]:
    place = _Places(prompts)
    found: dict[str, list[Path]] = defaultdict(list)
    for number, row in enumerate(read_jsonl(folder / "metadata.jsonl"), 1):
        where = f"{folder / 'metadata.jsonl'} line {number}"
        name = check_keys(row, [] if "file" in row else ["file_name"], where)
        file = folder / str(name.get("file") or name.get("file_name"))
        if not file.is_file():
            raise GessoError(f"{where} names {file}, which is not there: correct or remove it.")
        if "id" not in row and "prompt" not in row:
            check_keys(row, ["prompt"], where)
        key = place.of_id(str(row["id"])) if "id" in row else place.of_text(str(row["prompt"]))
        if key is not None:
            found[key].append(file)
    return place.spread(found)


def _numbered(folder: Path, prompts: Sequence[Prompt]) -> dict[str, list[Path]]:
    found = {}
    for place in sorted(folder.iterdir()):
        if not place.name.isdigit() or not (place / "samples").is_dir():
            continue
        index = int(place.name)
        if index >= len(prompts):
            raise GessoError(
                f"{place} is beyond the {len(prompts)} prompts of this benchmark: the pictures "
                "are of another one, or --prompts names another file."
            )
        prompt = prompts[index]
        if (place / "metadata.jsonl").is_file():
            told = json.loads((place / "metadata.jsonl").read_text() or "{}").get("prompt")
            if told is not None and told != prompt.text:
                raise GessoError(
                    f"{place} was painted for {told!r}, but prompt {index} of this benchmark is "
                    f"{prompt.text!r}: give the prompts that the pictures were painted for."
                )
        if files := _pictures_in(place / "samples"):
            found[prompt.id] = files
    return found


def _flat(folder: Path, prompts: Sequence[Prompt]) -> dict[str, list[Path]]:
    place = _Places(prompts)
    found: dict[str, list[Path]] = defaultdict(list)
    for file in _pictures_in(folder):
        stem = file.stem
        head = re.sub(r"_\d+$", "", stem)
        for name in (head, stem):
            key = place.of_id(name) or place.of_text(name)
            if key is not None:
                found[key].append(file)
                break
    return place.spread(found)


class _Places:
    """Prompts by id and by text. Prompts of one text share its pictures in turn."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.ids = {prompt.id for prompt in prompts}
        self.by_text: dict[str, list[str]] = defaultdict(list)
        for prompt in prompts:
            self.by_text[prompt.text].append(prompt.id)
            if file_id(prompt.text) != prompt.text:
                self.by_text[file_id(prompt.text)].append(prompt.id)

    def of_id(self, name: str) -> str | None:
        return name if name in self.ids else None

    def of_text(self, text: str) -> str | None:
        return self.by_text[text][0] if text in self.by_text else None

    def spread(self, found: dict[str, list[Path]]) -> dict[str, list[Path]]:
        """Where several prompts have one text, the first took all pictures: deal them out."""
        result = dict(found)
        for ids in self.by_text.values():
            if len(ids) > 1 and ids[0] in found and not any(i in found for i in ids[1:]):
                files = found[ids[0]]
                share = max(1, len(files) // len(ids))
                for i, key in enumerate(ids):
                    end = None if i == len(ids) - 1 else (i + 1) * share
                    if files[i * share : end]:
                        result[key] = files[i * share : end]
        return result


def _pictures_in(folder: Path) -> list[Path]:
    files = [f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES]
    return sorted(files, key=_natural)


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sorts "a_2" before "a_10"."""
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", file.stem)]


def all_pictures(folder: Path) -> Iterator[Path]:
    """Every picture below a folder, in order: for metrics that need no prompts.

    Raises:
        GessoError: no such folder.
    """
    if not folder.is_dir():
        raise GessoError(f"There is no folder of pictures {str(folder)!r}: give one that exists.")
    yield from sorted(f for f in folder.rglob("*") if f.suffix.lower() in SUFFIXES)
