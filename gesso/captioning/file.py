"""The file that a caption job writes: a line for each picture, a batch at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from gesso.data.overlay import read_rows
from gesso.types import GessoError


class CaptionFile:
    """An open caption file; see `gesso.data.overlay` for its lines.

    Lines of an earlier run are kept, and a line that a kill cut short is cut off. While it is open
    no other job can write to it.

    Args:
        path: made if it is not there.
        about: how the captions are made; written as the first line.
        kind: of the captions.

    Attributes:
        done: keys that have a line.
        empty: those of them whose line has no text.

    Raises:
        GessoError: another job writes to it, it was made otherwise, or it holds no captions.
    """

    def __init__(self, path: Path, about: dict[str, Any], kind: str) -> None:
        self.path = path
        self.kind = kind
        self.done: set[str] = set()
        self.empty: list[str] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            self._begin(about)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> CaptionFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._file)
        if len(self.done) == len(self.empty):  # nothing was lost with it
            self.path.unlink(missing_ok=True)

    def add(self, captions: Iterable[tuple[str, str]]) -> None:
        """Append (key, text) lines with one write, and have them on the disk on return."""
        lines = []
        for key, text in captions:
            lines.append({"key": key, "text": text, "kind": self.kind})
            self._note(key, text)
        self._append(lines)

    def _begin(self, about: dict[str, Any]) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise GessoError(
                f"Another job writes to {self.path}: wait for it, or give another file with --out."
            ) from None
        os.ftruncate(self._file, _whole(self.path))
        if self.path.stat().st_size == 0:
            self._append([{"about": about}])
            return
        earlier = _about(self.path)
        differs = sorted(k for k in {*about, *earlier} if about.get(k) != earlier.get(k))
        if differs:
            told = ", ".join(f"{k} {earlier.get(k)!r}, now {about.get(k)!r}" for k in differs)
            raise GessoError(
                f"{self.path} was made otherwise ({told}): say the same again to continue it, or "
                "give another file with --out."
            )
        for row, _ in read_rows(self.path):
            self._note(str(row.get("key")), str(row.get("text") or ""))

    def _note(self, key: str, text: str) -> None:
        self.done.add(key)
        if not text:
            self.empty.append(key)

    def _append(self, lines: list[dict[str, Any]]) -> None:
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)


def _whole(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 4096)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0


def _about(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        try:
            row = json.loads(file.readline())
        except ValueError:
            row = None
    about = row.get("about") if isinstance(row, dict) else None
    if not isinstance(about, dict):
        raise GessoError(
            f"{path} is no file that `gesso caption` began: give another file with --out."
        )
    return about
