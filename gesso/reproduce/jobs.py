"""Jobs side by side, each in a process of its own with one thread."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gesso.report import duration
from gesso.reproduce.results import folder_of
from gesso.train.interrupt import Interrupt
from gesso.types import GessoError

LOG = "log.txt"
POLL = 0.2  # seconds
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Task:
    """What a worker is told: whose `claim()`, and which job of it."""

    module: str
    experiment: str
    arm: str
    seed: int
    out: Path
    quick: bool

    @property
    def folder(self) -> Path:
        return folder_of(self.out, self.experiment, self.arm, self.seed)

    def __str__(self) -> str:
        return f"{self.experiment} · {self.arm} · seed {self.seed}"


class Running:
    """A started task; what it prints goes to `log.txt` in its folder."""

    def __init__(self, task: Task) -> None:
        self.task, self.started = task, time.perf_counter()
        task.folder.mkdir(parents=True, exist_ok=True)
        words = [task.module, task.experiment, task.arm, str(task.seed), str(task.out)]
        with (task.folder / LOG).open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gesso.reproduce.worker", *words, *["quick"] * task.quick],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | dict.fromkeys(THREADS, "1"),
                start_new_session=True,  # Ctrl-C comes from this process, once
            )

    def latest(self) -> str:
        """The last line of the log."""
        lines = (self.task.folder / LOG).read_text(errors="replace").split("\n")
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def stop(self) -> None:
        """Ask it to save and end."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)


def run_all(tasks: list[Task], workers: int, quiet: bool, done: Callable[[Task], str]) -> int:
    """Run tasks, `workers` at a time, in their order.

    Args:
        tasks: unfinished ones.
        workers: processes at a time.
        quiet: show nothing.
        done: called after each; returns what is said about it.

    Returns:
        0; or the number of the signal that stopped it: the same call continues.

    Raises:
        GessoError: a job failed; the others have saved what they had.
    """
    waiting, finished = list(tasks), 0
    running: list[Running] = []
    started = time.perf_counter()
    with _status(quiet) as (say, show), Interrupt() as interrupt:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    running.append(Running(waiting.pop(0)))
                time.sleep(POLL)
                if interrupt.received is not None:
                    return interrupt.received
                for job in [job for job in running if job.process.poll() is not None]:
                    running.remove(job)
                    if job.process.returncode:
                        raise GessoError(_failure(job))
                    finished += 1
                    said = done(job.task)
                    took = duration(time.perf_counter() - job.started)
                    left = _left(started, finished, len(tasks), workers)
                    say(f"{job.task}: {said}, {took} ({finished} of {len(tasks)} jobs{left})")
                show(f"{finished} of {len(tasks)} jobs", running)
        finally:
            for job in running:
                job.stop()
            for job in running:
                job.process.wait()
    return 0


def _left(started: float, finished: int, total: int, workers: int) -> str:
    if finished == total or finished < workers:
        return ""
    each = (time.perf_counter() - started) / finished
    return f", about {duration(each * (total - finished))} left"


def _failure(job: Running) -> str:
    log = job.task.folder / LOG
    code = job.process.returncode
    why = job.latest() or f"it ended with code {code}"
    return f"The job {job.task} failed, see {log}: {why[:300]}"


Show = Callable[[str, list[Running]], None]


@contextmanager
def _status(quiet: bool) -> Iterator[tuple[Callable[[str], None], Show]]:
    """Lines for finished jobs, and on a terminal what the running ones say, on stderr."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, quiet=quiet, soft_wrap=True)
    if not console.is_terminal:
        yield lambda line: console.print(line, markup=False, highlight=False), lambda *_: None
        return
    with console.status("") as status:

        def show(head: str, jobs: list[Running]) -> None:
            lines = [head, *(f"  {job.task}  {job.latest()}" for job in jobs)]
            status.update("\n".join(escape(line[: console.width - 4]) for line in lines))

        yield lambda line: console.print(line, markup=False, highlight=False), show
