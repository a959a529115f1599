"""Processes of a training for tests, as a launcher starts them; forked from one that has torch."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import socket
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from train_fakes import Random, tiny_model

from gesso.config import Recipe

os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # as the command line does
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["torch", "gesso.train.run", "gesso.train.launch", "torch.distributed.fsdp", "diffusers"]
)


def train(recipe: Recipe, run: Path, resume: bool = False, data: Any = None) -> dict[str, Any]:
    """The tiny model's training, in however many processes there are."""
    from gesso.train import launch, loop, parallel

    model, data = tiny_model(recipe), data or Random()
    with launch.start(parallel.launched() or 1, print, (), recipe.train.timeout) as group:
        return loop.train(
            recipe, run, model=model, dataset=data, group=group, resume=resume, quiet=True
        )


def start(n: int, target: Callable[..., object], *args: Any) -> list[BaseProcess]:
    """Run `target(*args)` in n processes that find each other as under torchrun."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    found: list[BaseProcess] = []
    for rank in range(n):
        process = CONTEXT.Process(target=_enter, args=(rank, n, port, target, args), daemon=True)
        process.start()
        found.append(process)
    return found


def wait(processes: list[BaseProcess], seconds: float = 180) -> list[int | None]:
    """The exit codes; what has not ended in time is killed, and its code is -9."""
    end = time.monotonic() + seconds
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def _enter(
    rank: int, n: int, port: int, target: Callable[..., object], args: tuple[Any, ...]
) -> None:
    import sys

    import torch

    from gesso.types import GessoError

    torch.set_num_threads(1)
    if n > 1:
        size = {"WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ.update(size | place | meeting)
    code = 0
    try:
        target(*args)
    except GessoError as e:
        print(f"Error: {e}", file=sys.stderr, flush=True)
        code = 2
    atexit._run_exitfuncs()  # as in a process of a launcher's own
    os._exit(code)
