"""Ctrl-C and termination that let the current step finish."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """A context in which the first SIGINT or SIGTERM only sets `received`; a second one stops.

    Outside the main thread, where Python takes no signals, it does nothing.

    Args:
        says: tell what the first signal does; one process of a training does.

    Attributes:
        received: the signal's number, or None.
    """

    def __init__(self, says: bool = True) -> None:
        self.says = says
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = number
        if self.says:
            print(
                "\nFinishing this step and saving a checkpoint; once more to stop at once.",
                file=sys.stderr,
            )
