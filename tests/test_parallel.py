"""Several processes train one model: together they are one training with the whole batch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_train import equal, metrics
from train_fakes import Random, tiny_model, tiny_recipe

from gesso.config import Recipe
from gesso.train import launch, loop, parallel
from gesso.types import GessoError


def follow(group: parallel.Group, recipe: Recipe, run: Path, resume: bool) -> None:
    model = tiny_model(recipe)
    loop.train(recipe, run, model=model, dataset=Random(), group=group, resume=resume)


def dies(group: parallel.Group, recipe: Recipe, run: Path, resume: bool) -> None:
    group.tell(None)
    group.agree(0.0, False)
    os.kill(os.getpid(), signal.SIGKILL)


def never_arrives(*_: object) -> None:
    os._exit(1)


def ticks(group: parallel.Group, file: Path) -> None:
    while True:
        with file.open("a") as f:
            f.write(".")
        time.sleep(0.05)


def leads(file: Path) -> None:
    with launch.start(2, ticks, (file,), 600.0):
        pass


def train(recipe: Recipe, run: Path, resume: bool = False, follow: object = follow) -> dict:
    with launch.start(2, follow, (recipe, run, resume), recipe.train.timeout) as group:
        return loop.train(
            recipe,
            run,
            model=tiny_model(recipe),
            dataset=Random(),
            group=group,
            resume=resume,
            quiet=True,
        )


def test_an_interrupted_run_of_two_processes_resumes_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe({"steps": 6, "schedule": "linear", "log_every": 1})
    train(recipe, tmp_path / "whole")
    step = loop.Trainer._train_step

    def and_terminate(self: loop.Trainer) -> None:
        step(self)
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "_train_step", and_terminate)
        result = train(recipe, tmp_path / "parts")
    assert result["interrupted"] and result["steps"] == 3
    result = train(recipe, tmp_path / "parts", resume=True)
    assert not result["interrupted"] and result["steps"] == 6
    equal(*(tmp_path / name / "checkpoints" / "step-000006" for name in ("whole", "parts")))
    assert [m["step"] for m in metrics(tmp_path / "parts") if "loss" in m] == list(range(1, 7))


def test_the_death_of_a_process_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(GessoError, match=r"Rank 1 of 2 ended without a word.*--resume"):
        train(tiny_recipe({"steps": 6}), tmp_path / "run", follow=dies)
    assert not torch.distributed.is_initialized()


def test_a_process_that_never_arrives_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "_follow", never_arrives)
    with pytest.raises(GessoError, match=r"ended while it started.*train\.processes=1"):
        train(tiny_recipe({"steps": 1}), tmp_path / "run")
    assert not torch.distributed.is_initialized()


def test_followers_end_with_a_killed_leader(tmp_path: Path) -> None:
    file = tmp_path / "ticks"
    leader = multiprocessing.get_context("spawn").Process(target=leads, args=(file,))
    leader.start()
    while not file.exists():
        assert leader.is_alive()
        time.sleep(0.05)
    leader.kill()
    leader.join()
    for _ in range(20):
        before = file.stat().st_size
        time.sleep(0.5)
        if file.stat().st_size == before:
            return
    pytest.fail("the follower goes on without its leader")


def test_only_an_exchange_that_fails_is_told_as_one() -> None:
    living: Any = SimpleNamespace(lost=lambda patience: None)
    group = parallel.Group(0, 2, watch=living)
    with pytest.raises(RuntimeError, match="out of memory"), group.together():
        raise RuntimeError("out of memory")
    told = pytest.raises(GessoError, match=r"\(Timed out\), though all of them live")
    with told, group.together():
        raise RuntimeError("[/x/gloo/transport/pair.cc:5] Timed out\nmore")


def test_how_many_processes() -> None:
    cpu, cores = torch.device("cpu"), parallel.cores()
    assert parallel.count(1, 30, cpu) == 1
    assert parallel.count(3, 30, cpu) == 3
    assert parallel.count(0, 31, cpu) == 1  # less than 16 pictures each
    assert parallel.count(0, 16 * cores, cpu) == cores
    assert parallel.count(0, 64, torch.device("cuda")) == 1
    with pytest.raises(GessoError, match="does not divide among 4 processes"):
        parallel.count(4, 30, cpu)
    with pytest.raises(GessoError, match="on GPUs a launcher"):
        parallel.count(2, 64, torch.device("cuda"))
