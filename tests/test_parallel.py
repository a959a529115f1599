"""Several processes train one model: together they are one training with the whole batch."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from test_train import equal, metrics
from train_fakes import Random, tiny_model, tiny_recipe

from gesso.config import Recipe, resolve
from gesso.train import checkpoint, loop, parallel
from gesso.train.device import draws
from gesso.train.optim import Optimizer
from gesso.types import GessoError


def follow(group: parallel.Group, recipe: Recipe, run: Path, resume: bool) -> None:
    loop.follow(group, recipe, run, model=tiny_model(recipe), dataset=Random(), resume=resume)


def dies(group: parallel.Group, recipe: Recipe, run: Path, resume: bool) -> None:
    group.agree(0.0, 0.0)
    os.kill(os.getpid(), signal.SIGKILL)


def never_arrives(*_: object) -> None:
    os._exit(1)


def ticks(group: parallel.Group, file: Path) -> None:
    while True:
        with file.open("a") as f:
            f.write(".")
        time.sleep(0.05)


def leads(file: Path) -> None:
    with parallel.start(2, ticks, (file,)):
        pass


def train(recipe: Recipe, run: Path, resume: bool = False, follow: object = follow) -> dict:
    with parallel.start(2, follow, (recipe, run, resume)) as group:
        return loop.train(
            recipe,
            run,
            model=tiny_model(recipe),
            dataset=Random(),
            group=group,
            resume=resume,
            quiet=True,
        )


def test_a_step_of_two_processes_is_the_mean_of_their_halves(tmp_path: Path) -> None:
    recipe = tiny_recipe({"steps": 1, "lr": 1e-3, "clip": 0.0})
    result = train(recipe, tmp_path / "run")

    model = tiny_model(recipe)
    module, options = resolve("objectives", recipe.objective)
    objective = module.build(options, model)
    batch = Random().batch(0, 4, recipe.seed)
    halves = []
    for rank, numbers in ((0, (recipe.seed, 0, 0, 0)), (1, (recipe.seed, 0, 0, 0, 1))):
        half = parallel.Group(rank, 2).share(batch)
        assert half.keys == batch.keys[rank::2]
        halves.append(objective.loss("denoise", half, draws(torch.device("cpu"), *numbers)).loss)
    assert abs(halves[0] - halves[1]) > 1e-3  # each has noise of its own
    (sum(halves) / 2).backward()
    optimizer = Optimizer(objective.roles, recipe.train)
    optimizer.step(5e-4)  # the first of two steps of warm-up

    assert result["loss"] == pytest.approx(float(sum(halves).detach()) / 2, rel=1e-5)
    found = checkpoint.load(Path(result["checkpoint"])).weights
    for name, p in optimizer.params.items():
        torch.testing.assert_close(found[name], p.detach(), rtol=0, atol=2e-6)


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
    with pytest.raises(GessoError, match=r"process of this training has ended.*--resume"):
        train(tiny_recipe({"steps": 6}), tmp_path / "run", follow=dies)
    assert not torch.distributed.is_initialized()


def test_a_process_that_never_arrives_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parallel, "_follow", never_arrives)
    monkeypatch.setattr(parallel, "PATIENCE", timedelta(seconds=1))  # a failure need not hang
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


def test_how_many_processes() -> None:
    cpu, cores = torch.device("cpu"), parallel._cores()
    assert parallel.count(1, 30, cpu) == 1
    assert parallel.count(3, 30, cpu) == 3
    assert parallel.count(0, 31, cpu) == 1  # less than 16 pictures each
    assert parallel.count(0, 16 * cores, cpu) == cores
    assert parallel.count(0, 64, torch.device("cuda")) == 1
    with pytest.raises(GessoError, match="does not divide among 4 processes"):
        parallel.count(4, 30, cpu)
    with pytest.raises(GessoError, match="only CPU trainings"):
        parallel.count(2, 64, torch.device("cuda"))
