"""One job in a process of its own: python -m gesso.reproduce.worker MODULE EXPERIMENT ARM SEED OUT.

Its standard input is a pipe from the process that started it: when that ends, however it ends, the
job saves its training and ends, too.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

from gesso.experiments.design import Experiment, Job
from gesso.reproduce.results import DONE, definition, folder_of
from gesso.types import GessoError

WAIT = 120  # seconds for the process of an earlier, killed reproduction to save and go


def main(arguments: list[str]) -> None:
    """Run the job and write its numbers; errors are one sentence and exit code 2."""
    module, name, arm, seed, out, *quick = arguments
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    try:
        experiments = importlib.import_module(module).claim()
        experiment = next(e for e in experiments if e.name == name)
        run_job(experiment, arm, int(seed), Path(out), quick=bool(quick))
    except GessoError as e:
        print(e, file=sys.stderr)
        sys.exit(2)


def run_job(experiment: Experiment, arm_name: str, seed: int, out: Path, *, quick: bool) -> None:
    """Train and measure one arm with one seed; writes `result.json` into the job's folder."""
    from filelock import FileLock, Timeout

    arm = experiment.arm(arm_name)
    folder = folder_of(out, experiment.name, arm_name, seed)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "lock", timeout=WAIT):
            started = time.perf_counter()
            numbers = arm.run(Job(seed, quick, folder, out / "shared"))
    except Timeout:
        raise GessoError(f"Another process works in {folder}: wait until it is done.") from None
    missing = set(experiment.metrics) - set(numbers)
    if missing == set(experiment.metrics):
        raise GessoError(f"The arm {arm_name!r} measured none of {', '.join(sorted(missing))}.")
    result = {
        "experiment": experiment.name,
        "arm": arm_name,
        "seed": seed,
        "quick": quick,
        "definition": definition(experiment, arm, quick),
        "seconds": round(time.perf_counter() - started, 2),  # of the last session
        "numbers": {k: float(v) for k, v in numbers.items()},
    }
    file = folder / DONE
    temporary = file.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=2) + "\n")
    temporary.replace(file)


def _end_with_the_parent() -> None:
    with contextlib.suppress(OSError, ValueError):
        while os.read(0, 1):
            pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1:])
