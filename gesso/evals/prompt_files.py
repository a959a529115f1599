"""Where benchmarks' prompt files lie, and reading them. They are not shipped: users bring them."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gesso.types import GessoError

VARIABLE = "GESSO_BENCHMARKS"
DEFAULT = Path("~/.cache/gesso/benchmarks")


def locate(given: Path | None, name: str, inside: Sequence[str], get: str) -> Path:
    """The file or folder of a benchmark.

    Args:
        given: `--prompts`: the file itself, or a folder that has it.
        name: of the benchmark's folder below $GESSO_BENCHMARKS (or ~/.cache/gesso/benchmarks).
        inside: paths in that folder, the first that exists is taken.
        get: where it can be had, for the message.

    Raises:
        GessoError: none of them exists.
    """
    if given is not None and given.is_file():
        return given
    home = Path(os.environ.get(VARIABLE) or DEFAULT).expanduser()
    folders = [given, given / name] if given is not None else [home / name]
    for folder in folders:
        for path in inside:
            if (folder / path).exists():
                return folder / path
    where = f"{given} has none" if given is not None else f"there is none in {home / name}"
    raise GessoError(
        f"{name} needs the file {Path(inside[0]).name}, which gesso does not ship, and {where}: "
        f"get it from {get} and name it with --prompts, or set {VARIABLE} to the folder that "
        f"holds {name}/{inside[0]}."
    )


def read_text(file: Path) -> str:
    """UTF-8 text, with or without a byte-order mark.

    Raises:
        GessoError: it cannot be read as such.
    """
    try:
        return file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise GessoError(f"{file} cannot be read as UTF-8 text: {e}.") from None


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that are not blank, stripped."""
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def read_json(file: Path) -> Any:
    """JSON.

    Raises:
        GessoError: broken JSON.
    """
    try:
        return json.loads(read_text(file))
    except ValueError as e:
        raise GessoError(f"{file} is not JSON: {e}.") from None


def read_jsonl(file: Path, needed: Iterable[str] = ()) -> list[dict[str, Any]]:
    """One JSON object a line, each with the keys `needed`.

    Raises:
        GessoError: a line that is something else, by its number.
    """
    rows = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            raise GessoError(f"{file} line {number} is not JSON: {e}.") from None
        rows.append(check_keys(row, needed, f"{file} line {number}"))
    return rows


def read_csv(file: Path, needed: Sequence[str], delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a table with a header.

    Raises:
        GessoError: a column is missing.
    """
    reader = csv.DictReader(read_text(file).splitlines(keepends=True), delimiter=delimiter)
    missing = [key for key in needed if key not in (reader.fieldnames or ())]
    if missing:
        raise GessoError(
            f"{file} has another layout than expected: it lacks the columns {', '.join(missing)} "
            f"and has {', '.join(map(str, reader.fieldnames or ['none']))}."
        )
    return list(reader)


def check_keys(row: Any, needed: Iterable[str], where: str) -> dict[str, Any]:
    """The row itself.

    Raises:
        GessoError: it is no object or lacks a key.
    """
    if not isinstance(row, dict):
        raise GessoError(f"{where} has another layout than expected: it holds no object.")
    missing = [key for key in needed if key not in row]
    if missing:
        raise GessoError(
            f"{where} has another layout than expected: it lacks {', '.join(map(repr, missing))} "
            f"and has {', '.join(map(repr, row))}."
        )
    return row


def file_id(text: str) -> str:
    """A text as a prompt id: letters, digits, "-", "_" and "."; all else becomes "-"."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in text)
