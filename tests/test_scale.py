"""Many processes are one, whole or sharded; kills and full disks cost nothing that was saved."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from test_train import equal, metrics
from train_fakes import Random, every_tensor, tiny_recipe

from gesso.config import Recipe
from gesso.draws import EVERY
from gesso.train import checkpoint, loop
from gesso.types import Batch, GessoError

PARTS = ("weights", "ema", "optimizer")


def recipe_for(**train: Any) -> Recipe:
    """Six steps that log everything."""
    options = {"log_every": 1, "lr": 1e-3, "save_every": 3, "keep": 9, "timeout": 60.0}
    return tiny_recipe(options | train)


def at(run: Path, step: int = 6) -> Path:
    return run / "checkpoints" / f"step-{step:06d}"


def scenarios(folder: Path) -> None:
    """What two processes do, one training after another."""
    processes.train(recipe_for(), folder / "replicated")
    processes.train(recipe_for(accumulate=2), folder / "replicated-accumulated")
    processes.train(recipe_for(shard="full"), folder / "sharded")
    processes.train(recipe_for(shard="full", accumulate=2), folder / "sharded-accumulated")
    processes.train(recipe_for(shard="full", save_async=True), folder / "async")
    recomputed = recipe_for(shard="full", checkpoint_activations=True)
    processes.train(recomputed, folder / "recomputed")
    processes.train(recipe_for(shard="full", dtype="bfloat16"), folder / "bfloat16")
    processes.train(recipe_for(shard="full", steps=3), folder / "stopped")
    processes.train(recipe_for(shard="full"), folder / "stopped", resume=True)
    processes.train(recipe_for(shard="full"), folder / "from-one-sharded", resume=True)
    processes.train(recipe_for(), folder / "from-one-replicated", resume=True)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one process and of two."""
    folder = tmp_path_factory.mktemp("scale")
    processes.train(recipe_for(), folder / "one")
    processes.train(recipe_for(accumulate=2), folder / "one-accumulated")
    for name in ("from-one-sharded", "from-one-replicated"):
        processes.train(recipe_for(steps=3), folder / name)
    assert processes.wait(processes.start(2, scenarios, folder), 400) == [0, 0]
    return folder


def alike(a: Path, b: Path, rel: float = 1e-5) -> None:
    """Two runs logged the same losses."""
    for key in ("loss", "grad_norm", "mse", "vlb"):
        left, right = ([m[key] for m in metrics(run) if key in m] for run in (a, b))
        assert len(left) == 6 and right == pytest.approx(left, rel=rel), key
    left, right = (metrics(run)[-1]["validation_loss"] for run in (a, b))
    assert right == pytest.approx(left, rel=rel)


def close(a: Path, b: Path, atol: float) -> None:
    """Two checkpoints hold nearly the same state, however it is cut."""
    left, right = checkpoint.load(a), checkpoint.load(b)
    for part in PARTS:
        one, other = getattr(left, part), getattr(right, part)
        assert one.keys() == other.keys() and len(one) > 20
        for key in one:
            torch.testing.assert_close(one[key].whole(), other[key].whole(), rtol=0, atol=atol)


@pytest.mark.parametrize("how", ["replicated", "sharded", "async", "recomputed"])
def test_two_processes_are_one_with_the_whole_batch(runs: Path, how: str) -> None:
    alike(runs / "one", runs / how)
    close(at(runs / "one"), at(runs / how), atol=2e-6)


def test_in_bfloat16_they_nearly_are(runs: Path) -> None:
    alike(runs / "one", runs / "bfloat16", rel=2e-2)
    saved = every_tensor(at(runs / "bfloat16"))
    assert all(v.dtype == torch.float32 for v in saved.values() if v.is_floating_point())


@pytest.mark.parametrize("how", ["replicated", "sharded"])
def test_so_they_are_with_accumulation(runs: Path, how: str) -> None:
    alike(runs / "one-accumulated", runs / f"{how}-accumulated")


def test_each_process_writes_its_pieces_and_the_leader_the_model(runs: Path) -> None:
    written = {p.name for p in (at(runs / "sharded") / "state").iterdir()}
    cut = {f"{part}-{rank}-of-2.safetensors" for part in PARTS for rank in (0, 1)}
    assert written == {"state.json"} | cut
    whole = {p.name for p in (at(runs / "replicated") / "state").iterdir()}
    assert whole == {"state.json"} | {f"{part}.safetensors" for part in PARTS}
    sizes = [
        sum(f.stat().st_size for f in at(runs / "sharded").glob(f"state/*-{r}-of-2*"))
        for r in (0, 1)
    ]
    assert max(sizes) < 1.2 * min(sizes)
    one, two = (every_tensor(at(runs / name)) for name in ("one", "sharded"))
    keys = [k for k in one if k.startswith("model.safetensors")]
    assert keys
    for key in keys:  # the averages, whole
        torch.testing.assert_close(one[key], two[key], rtol=0, atol=2e-6)


def test_a_sharded_run_resumes_bit_for_bit(runs: Path) -> None:
    for step in (3, 6):
        equal(at(runs / "sharded", step), at(runs / "stopped", step))


def test_an_asynchronous_checkpoint_is_the_state_of_its_step(runs: Path) -> None:
    for step in (3, 6):
        equal(at(runs / "sharded", step), at(runs / "async", step))


@pytest.mark.parametrize("how", ["replicated", "sharded"])
def test_two_processes_go_on_with_what_one_has_saved(runs: Path, how: str) -> None:
    alike(runs / "one", runs / f"from-one-{how}")
    close(at(runs / "one"), at(runs / f"from-one-{how}"), atol=2e-6)


def test_one_process_goes_on_with_what_two_have_saved(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "sharded", tmp_path / "run")
    shutil.rmtree(at(tmp_path / "run"))
    processes.train(recipe_for(), tmp_path / "run", resume=True)
    alike(runs / "one", tmp_path / "run")
    close(at(runs / "one"), at(tmp_path / "run"), atol=2e-6)


def test_other_tools_read_the_pieces(runs: Path) -> None:
    from torch.distributed import checkpoint as dcp

    state = checkpoint.load(at(runs / "sharded"))
    copy = {key: torch.zeros(stored.shape) for key, stored in state.ema.items()}
    folder = runs / "ema"
    folder.mkdir()
    for file in at(runs / "sharded").glob("state/ema-*"):
        shutil.copy(file, folder)
    dcp.load(copy, storage_reader=dcp.HuggingFaceStorageReader(str(folder)), no_dist=True)
    for key, value in copy.items():
        assert torch.equal(value, state.ema[key].whole()), key


def test_pieces_of_any_cut_are_put_together(tmp_path: Path) -> None:
    whole = torch.arange(35.0).view(7, 5)
    cuts = [(0, 3), (3, 6), (6, 7), (7, 7)]  # as four processes hold seven rows
    for rank, (start, end) in enumerate(cuts):
        pieces = {"x": checkpoint.Piece(whole[start:end], (start, 0))}
        counter = {"n": checkpoint.Piece(torch.tensor(3.0), ())} if rank == 0 else {}
        parts = {"weights": pieces, "ema": pieces, "optimizer": pieces | counter}
        checkpoint.write(checkpoint.temporary(tmp_path, 1), parts, (rank, 4))
    folder = checkpoint.commit(tmp_path, {"step": 1}, 4, keep=1, keep_every=0)
    state = checkpoint.load(folder)
    assert state.numbers == {"step": 1} and float(state.optimizer["n"].whole()) == 3
    stored = state.ema["x"]
    assert stored.shape == (7, 5) and torch.equal(stored.whole(), whole)
    for start, rows in ((0, 4), (4, 3), (2, 5), (7, 0)):  # as two, or others, would
        assert torch.equal(stored.read((start, 0), (rows, 5)), whole[start : start + rows])
    (folder / "state" / "ema-1-of-4.safetensors").unlink()
    with pytest.raises(GessoError, match=r"ema-1-of-4\.safetensors is missing"):
        checkpoint.load(folder)


KILLED = {"steps": 12, "save_every": 2, "keep": 2, "log_every": 4}


def slowly(recipe: Recipe, run: Path, resume: bool) -> None:
    """Train, with a pause in every step and every write, so that a kill meets them."""
    step, sync = loop.Trainer._train_step, checkpoint.sync

    def paused_step(trainer: loop.Trainer) -> None:
        step(trainer)
        time.sleep(0.02)

    def paused_sync(path: Path) -> None:
        sync(path)
        time.sleep(0.01)

    loop.Trainer._train_step = paused_step  # type: ignore[method-assign]
    checkpoint.sync = paused_sync
    processes.train(recipe, run, resume=resume and (run / "recipe.yaml").exists())


def until_done(
    n: int, recipe: Recipe, run: Path, kills: list[tuple[str, float]], seed: int
) -> dict[str, int]:
    """Kill a random process of a training at each of some moments and resume it; then finish it.

    Args:
        kills: ("time", seconds after it began to learn) or ("write", seconds after a checkpoint's
            temporary folder was there).

    Returns:
        How many kills met a running training, and how many left a half-written checkpoint.
    """
    rng, met = random.Random(seed), {"running": 0, "writing": 0}
    for moment, delay in kills:
        started = processes.start(n, slowly, recipe, run, True)
        end = time.monotonic() + 180
        log = run / "metrics.jsonl"
        before = log.stat().st_mtime_ns if log.exists() else 0
        folder = run / checkpoint.FOLDER

        def writing(folder: Path = folder) -> bool:
            return any(folder.glob(f"{checkpoint.TEMPORARY}step-*"))

        def learning(log: Path = log, before: int = before) -> bool:
            return log.exists() and log.stat().st_mtime_ns > before

        ready = writing if moment == "write" else learning
        while not ready() and any(p.is_alive() for p in started) and time.monotonic() < end:
            time.sleep(0.002)
        time.sleep(delay)
        victim = rng.choice(started)
        met["running"] += victim.is_alive()
        victim.kill()
        processes.wait(started)
        met["writing"] += writing()
        for whole in checkpoint.checkpoints(run):
            checkpoint.load(whole)  # every folder with a checkpoint's name is one
            assert every_tensor(whole)
    assert processes.wait(processes.start(n, slowly, recipe, run, True), 600) == [0] * n
    return met


def kills(n: int, seed: int) -> list[tuple[str, float]]:
    """Moments: every second one inside a checkpoint's writing."""
    rng = random.Random(seed)
    return [
        ("write", rng.uniform(0, 0.08)) if k % 2 else ("time", rng.uniform(0, 0.4))
        for k in range(n)
    ]


@pytest.mark.parametrize("how", ["saved at once", "saved behind"])
def test_killed_at_random_moments_is_never_stopped(tmp_path: Path, how: str) -> None:
    recipe = recipe_for(**KILLED, save_async=how == "saved behind")
    processes.train(recipe, tmp_path / "whole")
    met = until_done(1, recipe, tmp_path / "run", kills(4, seed=1), seed=1)
    assert met["running"] >= 3 and met["writing"] >= 1
    equal(at(tmp_path / "whole", 12), at(tmp_path / "run", 12))


def test_a_sharded_run_with_a_killed_process_is_never_stopped(tmp_path: Path) -> None:
    recipe = recipe_for(**KILLED, shard="full", save_async=True)
    assert processes.wait(processes.start(2, slowly, recipe, tmp_path / "whole", False)) == [0, 0]
    met = until_done(2, recipe, tmp_path / "run", [("write", 0.03)], seed=2)
    assert met["running"] == 1
    equal(at(tmp_path / "whole", 12), at(tmp_path / "run", 12))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "options"),
    [(1, {}), (1, {"save_async": True}), (2, {"shard": "full"}), (2, {"save_async": True})],
    ids=["one", "one-async", "two-sharded", "two-async"],
)
def test_twenty_kills_are_never_felt(tmp_path: Path, n: int, options: dict[str, Any]) -> None:
    recipe = recipe_for(**KILLED | {"steps": 60}, **options)
    whole = processes.start(n, slowly, recipe, tmp_path / "whole", False)
    assert processes.wait(whole, 600) == [0] * n
    met = until_done(n, recipe, tmp_path / "run", kills(22, seed=3), seed=3)
    assert met["running"] >= 20 and met["writing"] >= 3
    equal(at(tmp_path / "whole", 60), at(tmp_path / "run", 60))


def stalls(recipe: Recipe, run: Path) -> None:
    """The second process stops in its third step, without ending."""
    step = loop.Trainer._train_step

    def stop(trainer: loop.Trainer) -> None:
        if trainer.step == 2 and trainer.group.rank == 1:
            os.kill(os.getpid(), signal.SIGSTOP)
        step(trainer)

    loop.Trainer._train_step = stop  # type: ignore[method-assign]
    try:
        processes.train(recipe, run)
    except GessoError as e:
        (run / "said").write_text(str(e))
        raise


def test_a_process_that_hangs_is_named_within_the_timeout(tmp_path: Path) -> None:
    recipe = recipe_for(shard="full", timeout=6.0)
    started = processes.start(2, stalls, recipe, tmp_path / "run")
    begun = time.monotonic()
    started[0].join(120)
    assert started[0].exitcode == 2 and time.monotonic() - begun < 120
    processes.wait(started, 0)
    said = (tmp_path / "run" / "said").read_text()
    assert "Rank 1 of 2 ended without a word" in said and "--resume" in said


def fails(folder: Path) -> None:
    """Trainings in two processes of which the second meets something bad; what each is told."""
    rank = os.environ["RANK"]

    class Truncated(Random):
        def batch(self, number: int, batch_size: int, seed: int, rows: slice = EVERY) -> Batch:
            if rank == "1" and number == 2:
                raise GessoError("The shard 64x64-000001.safetensors ends early.")
            return super().batch(number, batch_size, seed, rows)

    try:
        processes.train(recipe_for(), folder / "run", data=Truncated())
    except GessoError as e:
        (folder / f"said-{rank}").write_text(str(e))
        raise


def test_what_one_process_meets_all_tell(tmp_path: Path) -> None:
    assert processes.wait(processes.start(2, fails, tmp_path)) == [2, 2]
    own, other = ((tmp_path / f"said-{rank}").read_text() for rank in (1, 0))
    assert own == "The shard 64x64-000001.safetensors ends early."
    assert other == f"Rank 1 of 2 has stopped: {own}"


LIMIT = 150_000  # bytes of a file; the optimiser's is larger, the metrics' are not


def fills(folder: Path) -> None:
    """Train on a disk with room for the first process's pieces but not for the second's."""
    if os.environ.get("RANK") == "1":
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))
    try:
        processes.train(recipe_for(shard="full"), folder, resume=True)
    except GessoError as e:
        (folder / f"said-{os.environ['RANK']}").write_text(str(e))
        raise


def test_a_disk_that_one_process_fills_leaves_the_checkpoint_before(
    runs: Path, tmp_path: Path
) -> None:
    shutil.copytree(runs / "sharded", tmp_path / "run")
    shutil.rmtree(at(tmp_path / "run"))
    assert processes.wait(processes.start(2, fills, tmp_path / "run")) == [2, 2]
    for rank in (0, 1):
        said = (tmp_path / "run" / f"said-{rank}").read_text()
        assert "optimizer-1-of-2.safetensors: " in said and "step-000003 is intact" in said
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000003"]
    equal(at(runs / "sharded", 3), at(tmp_path / "run", 3))


@pytest.mark.slow
def test_torchrun_trains_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        "name: small\n"
        "image_encoder: {name: tiny}\n"
        "text_encoder: {name: learned, width: 32, depth: 1, heads: 2, max_tokens: 12}\n"
        "backbone: {name: pixart, depth: 2, hidden_size: 32, num_heads: 2}\n"
        "data: {source: {name: scenes, level: 1, count: 64}, size: 64}\n"
        "train: {steps: 6, batch_size: 4, log_every: 1, device: cpu, save_every: 3}\n"
        "validation: {holdout: 8}\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "--"]
    train = ["gesso", "train", str(recipe), "train.shard=full", "--run", str(tmp_path / "two")]
    alone = [sys.executable, "-m", "gesso", "train", str(recipe), "--run", str(tmp_path / "one")]
    for command in (launcher + train, alone):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Paint with it") == 1
    alike(tmp_path / "one", tmp_path / "two")
