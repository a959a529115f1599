"""Which processes of a training are still there.

Each writes a beat into a store that all can reach, and watches the others' beats. A beat comes from
a thread, so a process that paints for an hour is heard, and one that was killed is not. A process
that stops by itself leaves its reason there, for the others to tell.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING

from gesso.types import GessoError

if TYPE_CHECKING:
    from torch.distributed import Store

BEAT = 0.5  # seconds between two beats
SILENCE = 4.0  # after a failed exchange, seconds without a beat that mean a process is gone


class Lost(GessoError):
    """Another process of the training is gone."""


class Watch:
    """Beats for one process and listens to the others.

    Args:
        store: of the training; a connection of its own is made to it.
        rank, size: this process, and how many there are.
        timeout: seconds without a beat after which a process is lost.
        ends: end this process when another is lost, with one sentence: for exchanges that never
            return, such as NCCL's.
    """

    def __init__(self, store: Store, rank: int, size: int, timeout: float, ends: bool) -> None:
        self.rank, self.size, self.timeout, self.ends = rank, size, timeout, ends
        self._store: Store = store.clone()  # type: ignore[attr-defined]
        self._beats = [f"beat/{r}" for r in range(size)]
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._unreachable: float | None = None  # since when
        self._over = threading.Event()
        self._store.set(self._beats[rank], "0")
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin, once every process has made its watch."""
        self._thread.start()

    def leave(self) -> None:
        """Stop; the first process, which may be home to the store, gives the others time to."""
        end = time.monotonic() + 2 * SILENCE
        with contextlib.suppress(RuntimeError):  # the store is gone already
            self._store.set(f"left/{self.rank}", "")
            others = [f"left/{r}" for r in range(self.size) if r != self.rank]
            while self.rank == 0 and not self._store.check(others) and time.monotonic() < end:
                if self._evidence(SILENCE) is not None:  # one of them never will
                    break
                time.sleep(BEAT / 20)
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    def fault(self, reason: str) -> None:
        """Leave word why this process stops; the first word of all is kept."""
        word = json.dumps({"rank": self.rank, "reason": reason})
        try:
            self._store.compare_set("fault", "", word)
        except RuntimeError:  # nobody is there to be told
            return

    def lost(self, patience: float = 0.0) -> Lost | None:
        """Who is gone, as an error to raise; None: nobody.

        Args:
            patience: seconds to wait for evidence, after an exchange has failed; then a short
                silence is enough.
        """
        end = time.monotonic() + patience
        while True:
            sentence = self._evidence(SILENCE if patience else self.timeout)
            if sentence is not None:
                return Lost(sentence)
            if time.monotonic() >= end:
                return None
            time.sleep(BEAT / 4)

    def _evidence(self, silence: float) -> str | None:
        after = "continue with --resume."
        try:
            told = self._store.check(["fault"])
            word = json.loads(self._store.get("fault")) if told else None
        except RuntimeError:
            return f"Rank 0 of {self.size}, where all processes meet, has ended: {after}"
        if word is not None and word["rank"] != self.rank:
            return f"Rank {word['rank']} of {self.size} has stopped: {word['reason']}"
        now = time.monotonic()
        silent = [r for r, (_, at) in list(self._heard.items()) if now - at > silence]
        # One that has seen the loss before this one, and gone, is not the loss.
        silent = [r for r in silent if not self._store.check([f"left/{r}"])]
        if not silent:
            return None
        ranks = f"Rank{'s' * (len(silent) > 1)} {', '.join(map(str, silent))} of {self.size}"
        return f"{ranks} ended without a word (killed, or out of memory, perhaps): {after}"

    def _run(self) -> None:
        count = 0
        while not self._over.wait(BEAT):
            count += 1
            try:
                self._store.set(self._beats[self.rank], str(count))
                values = self._store.multi_get(self._beats)
            except RuntimeError:  # the store is gone, and `_evidence` says so
                values = []
            now = time.monotonic()
            for rank, value in enumerate(values):
                if rank != self.rank and self._heard.get(rank, (b"", 0.0))[0] != value:
                    self._heard[rank] = value, now
            if self.ends and (gone := self.lost()) is not None:
                # The sentence is enough: the exchange that hangs cannot be unwound.
                self._over.wait(SILENCE)  # unless it ends by itself
                if not self._over.is_set():
                    print(f"Error: {gone}", file=sys.stderr, flush=True)
                    os._exit(2)
