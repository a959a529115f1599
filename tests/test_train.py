"""The training loop: it learns, resumes bit for bit, stops cleanly and refuses what is broken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from train_fakes import Random, every_tensor, tiny_model, tiny_recipe

from gesso.config import Recipe
from gesso.draws import EVERY, Draws
from gesso.train import loop, setup
from gesso.train.loop import train
from gesso.types import Batch, GessoError, LossOut, Phase


def run(recipe: Recipe, folder: Path, data: Any = None, **options: Any) -> dict[str, Any]:
    model = tiny_model(recipe)
    return train(recipe, folder, model=model, dataset=data or Random(), quiet=True, **options)


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def equal(a: Path, b: Path) -> None:
    """Two checkpoints hold the same tensors, bit for bit."""
    left, right = every_tensor(a), every_tensor(b)
    assert left.keys() == right.keys() and len(left) > 50
    different = [key for key in left if not torch.equal(left[key], right[key])]
    assert not different


def test_the_loss_falls_on_one_batch(tmp_path: Path) -> None:
    recipe = tiny_recipe({"steps": 80, "lr": 3e-3, "warmup": 5, "log_every": 10, "ema": 0.9})
    result = run(recipe, tmp_path / "run", Random(fixed=True))
    logged = [m["loss"] for m in metrics(tmp_path / "run") if "loss" in m]
    assert logged[-1] < 0.75 * logged[0]
    assert result["steps"] == 80 and result["loss"] == pytest.approx(logged[-1], rel=1e-4)
    assert not result["interrupted"]


def test_muon_learns(tmp_path: Path) -> None:
    recipe = tiny_recipe({"steps": 40, "lr": 1e-3, "optimizer": "muon", "log_every": 5})
    run(recipe, tmp_path / "run", Random(fixed=True))
    logged = [m["loss"] for m in metrics(tmp_path / "run") if "loss" in m]
    assert logged[-1] < 0.9 * logged[0]


@pytest.mark.parametrize(
    "options",
    [
        {"weight_decay": 0.1, "schedule": "cosine"},
        {"accumulate": 2, "dtype": "bfloat16", "optimizer": "muon"},
    ],
    ids=["adamw", "muon-bfloat16-accumulate"],
)
def test_a_resumed_run_is_the_run_that_never_stopped(
    tmp_path: Path, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe({"steps": 8, "save_every": 5, "keep": 9, **options})
    run(recipe, tmp_path / "whole")
    # The interrupted run dies in the sixth step, after the checkpoint of the fifth.
    first = loop.Trainer._train_step

    def dies(self: loop.Trainer) -> None:
        if self.step == 6:
            raise KeyboardInterrupt
        first(self)

    with monkeypatch.context() as patched:
        patched.setattr(loop.Trainer, "_train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, tmp_path / "parts")
    torch.manual_seed(77)  # no state may hide in the global generator
    result = run(recipe, tmp_path / "parts", resume=True)
    assert result["steps"] == 8
    for step in (5, 8):
        name = f"checkpoints/step-{step:06d}"
        equal(tmp_path / "whole" / name, tmp_path / "parts" / name)


def test_metrics_of_lost_work_are_dropped_on_resume(tmp_path: Path) -> None:
    run(tiny_recipe({"log_every": 1}), tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "metrics.jsonl").write_text(lines + '{"step": 9, "loss": 1}\n{"st')
    run(tiny_recipe({"log_every": 1, "steps": 8}), tmp_path / "run", resume=True)
    steps = [m["step"] for m in metrics(tmp_path / "run") if "loss" in m]
    assert steps == list(range(1, 9))


TERMINATED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from train_fakes import Random, tiny_model, tiny_recipe
from gesso.draws import EVERY, Draws
from gesso.train import loop, setup

step = loop.Trainer._train_step
def and_terminate(self):
    step(self)
    if self.step == 3:
        os.kill(os.getpid(), signal.SIGTERM)
loop.Trainer._train_step = and_terminate
recipe = tiny_recipe({"steps": 6, "schedule": "linear"})
result = loop.train(recipe, Path(sys.argv[1]), model=tiny_model(recipe), dataset=Random())
print(result["interrupted"], result["signal"], result["steps"])
"""


def test_a_terminated_process_leaves_a_checkpoint_to_resume_from(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TERMINATED, str(tmp_path / "run"), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", str(int(signal.SIGTERM)), "3"]
    assert "--resume" in done.stderr
    recipe = tiny_recipe({"steps": 6, "schedule": "linear"})
    result = run(recipe, tmp_path / "run", resume=True)
    assert result["steps"] == 6 and not result["interrupted"]
    run(recipe, tmp_path / "whole")
    name = "checkpoints/step-000006"
    equal(tmp_path / "whole" / name, tmp_path / "run" / name)


@pytest.fixture
def interrupts(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Ctrl-C comes so many `times` after the third step."""
    step, how = loop.Trainer._train_step, {"times": 1}

    def and_interrupt(self: loop.Trainer) -> None:
        step(self)
        for _ in range(how["times"] if self.step == 3 else 0):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop.Trainer, "_train_step", and_interrupt)
    return how


def test_ctrl_c_saves_without_validating(tmp_path: Path, interrupts: dict[str, int]) -> None:
    before = signal.getsignal(signal.SIGINT)
    result = run(tiny_recipe(), tmp_path / "run")
    assert result["interrupted"] and result["signal"] == signal.SIGINT and result["steps"] == 3
    assert result["checkpoint"].endswith("step-000003") and result["validation"] == {}
    assert signal.getsignal(signal.SIGINT) is before


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, interrupts: dict[str, int]) -> None:
    interrupts["times"] = 2
    with pytest.raises(KeyboardInterrupt):
        run(tiny_recipe(), tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    run(recipe, tmp_path / "run")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(GessoError, match="--resume"):
        run(recipe, tmp_path / "run")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_resuming_refuses_another_recipe_but_lengthens(tmp_path: Path) -> None:
    run(tiny_recipe(), tmp_path / "run")
    with pytest.raises(GessoError, match=r"train\.lr = 0\.001, not 0\.002"):
        run(tiny_recipe({"lr": 2e-3}), tmp_path / "run", resume=True)
    with pytest.raises(GessoError, match=r"backbone\.depth"):
        other = tiny_recipe(backbone={"name": "pixart", "depth": 3, "hidden_size": 32})
        run(other, tmp_path / "run", resume=True)
    assert run(tiny_recipe({"steps": 9}), tmp_path / "run", resume=True)["steps"] == 9
    with pytest.raises(GessoError, match="no run"):
        run(tiny_recipe(), tmp_path / "nothing", resume=True)


def test_a_finished_run_resumes_to_its_result(tmp_path: Path) -> None:
    first = run(tiny_recipe(), tmp_path / "run")
    files = sorted((tmp_path / "run").rglob("*.safetensors"))
    stamps = [f.stat().st_mtime_ns for f in files]
    again = run(tiny_recipe(), tmp_path / "run", resume=True)
    for key in ("steps", "loss", "validation", "checkpoint", "images_per_second"):
        assert again[key] == first[key]
    assert [f.stat().st_mtime_ns for f in files] == stamps


class Broken(Random):
    """Latents of one step are multiplied by `factor`."""

    def __init__(self, step: int, factor: float) -> None:
        super().__init__()
        self.step, self.factor = step, factor

    def batch(self, step: int, batch_size: int, seed: int, rows: slice = EVERY) -> Batch:
        batch = super().batch(step, batch_size, seed, rows)
        if step == self.step:
            batch.latents = batch.latents * self.factor
        return batch


def test_a_loss_that_is_not_finite_stops_and_names_step_and_pictures(tmp_path: Path) -> None:
    with pytest.raises(GessoError, match=r"step 3, the loss is nan.*picture-3-0.*resume from"):
        run(tiny_recipe({"save_every": 2}), tmp_path / "run", Broken(3, float("nan")))
    record = json.loads((tmp_path / "run" / "nan.json").read_text())
    assert record["step"] == 3 and record["keys"] == [f"picture-3-{i}" for i in range(4)]
    for name, value in every_tensor(tmp_path / "run" / "checkpoints" / "step-000002").items():
        assert value.isfinite().all(), name


def test_broken_steps_may_be_skipped(tmp_path: Path) -> None:
    recipe = tiny_recipe({"max_skipped": 1, "log_every": 1})
    result = run(recipe, tmp_path / "run", Broken(3, float("inf")))
    assert result["skipped"] == 1 and result["steps"] == 6
    assert all(
        value.isfinite().all() for value in every_tensor(Path(result["checkpoint"])).values()
    )


def test_an_exploding_loss_stops_after_the_warm_up(tmp_path: Path) -> None:
    recipe = tiny_recipe({"steps": 40}, diffusion={"path": "flow", "prediction": "flow"})
    with pytest.raises(GessoError, match="step 30, the loss jumped"):
        run(recipe, tmp_path / "run", Broken(30, 1e3))


def test_gradients_that_are_not_finite_stop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = loop.Optimizer.clip
    monkeypatch.setattr(loop.Optimizer, "clip", lambda self, n: clip(self, n) * float("inf"))
    with pytest.raises(GessoError, match="step 0, the gradient norm is inf"):
        run(tiny_recipe(), tmp_path / "run")


def test_accumulated_gradients_are_the_mean_over_micro_batches(tmp_path: Path) -> None:
    recipe = tiny_recipe({"accumulate": 3, "clip": 0})
    trainer = loop.Trainer(recipe, tmp_path, tiny_model(recipe), Random())
    batches = [Random().batch(i, 4, 0) for i in range(3)]
    loss, norm = trainer._gradients(0, batches)
    together = {k: p.grad.clone() for k, p in trainer.params.items() if p.grad is not None}
    losses = []
    total = {k: torch.zeros_like(v) for k, v in together.items()}
    for m, batch in enumerate(batches):
        generator = Draws(trainer.device, recipe.seed, 0, 0, m)
        out = trainer.objective.loss("denoise", batch, generator)
        losses.append(out.loss.item())
        grads = torch.autograd.grad(out.loss, [trainer.params[k] for k in total])
        for key, grad in zip(total, grads, strict=True):
            total[key] += grad / 3
    trainer.feed.close()
    assert loss == pytest.approx(sum(losses) / 3)
    assert norm == pytest.approx(torch.cat([g.flatten() for g in total.values()]).norm().item())
    for key, grad in total.items():
        torch.testing.assert_close(together[key], grad)


def test_validation_uses_the_average_and_leaves_the_weights(tmp_path: Path) -> None:
    recipe = tiny_recipe({"validate_every": 3, "lr": 1e-2, "ema": 0.9})
    seen = []

    def painter(model: Any, file: Path) -> None:
        from PIL import Image

        Image.new("RGB", (8, 8)).save(file)
        seen.append((file.name, model.backbone.final_layer.linear.bias.detach().clone()))

    model = tiny_model(recipe)
    result = train(
        recipe, tmp_path / "run", model=model, dataset=Random(), painter=painter, quiet=True
    )
    assert [name for name, _ in seen] == ["step-000003.png", "step-000006.png"]
    assert sorted(p.name for p in (tmp_path / "run" / "samples").iterdir()) == [n for n, _ in seen]
    saved = every_tensor(Path(result["checkpoint"]))
    average = saved["state/ema.safetensors:backbone.final_layer.linear.bias"]
    live = saved["state/weights.safetensors:backbone.final_layer.linear.bias"]
    assert torch.equal(seen[-1][1], average) and not torch.equal(average, live)
    # What is served is what was painted, and the model that comes back holds it too.
    assert torch.equal(saved["model.safetensors:backbone.final_layer.linear.bias"], average)
    assert torch.equal(model.backbone.final_layer.linear.bias, average)
    logged = [m["validation_loss"] for m in metrics(tmp_path / "run") if "validation_loss" in m]
    assert len(logged) == 2
    assert result["validation"]["validation_loss"] == pytest.approx(logged[-1], rel=1e-5)


def test_a_time_budget_ends_the_run(tmp_path: Path) -> None:
    recipe = tiny_recipe({"minutes": 0.01, "steps": 1, "schedule": "linear", "log_every": 1})
    result = run(recipe, tmp_path / "run")
    assert result["steps"] > 1 and 0.6 <= result["seconds"] < 10
    rates = [m["lr"] for m in metrics(tmp_path / "run") if "lr" in m]
    assert rates[-1] < 0.2 * max(rates)
    # The time used belongs to the checkpoint: nothing is left to do.
    assert run(recipe, tmp_path / "run", resume=True)["steps"] == result["steps"]


class TwoPhases:
    """A student learns each step, a critic every second one."""

    needs = "latents"
    phases = (Phase("student", ("student",)), Phase("critic", ("critic",), every=2))

    def __init__(self) -> None:
        self.roles: dict[str, nn.Module] = {
            "student": nn.Linear(4, 4),
            "critic": nn.Linear(4, 1),
            "teacher": nn.Linear(4, 4),
        }
        self.calls: list[str] = []

    def loss(self, phase: str, batch: Batch, generator: torch.Generator) -> LossOut:
        self.calls.append(phase)
        assert batch.latents is not None
        x = self.roles["student"](batch.latents.flatten(0, 2))
        return LossOut(self.roles["critic"](x + self.roles["teacher"](x)).square().mean())


def test_each_phase_updates_its_roles_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = TwoPhases()
    found = SimpleNamespace(build=lambda options, model: objective)
    monkeypatch.setattr(loop, "resolve", lambda *_: (found, None))
    before = {k: v.weight.detach().clone() for k, v in objective.roles.items()}
    recipe = tiny_recipe({"steps": 1, "warmup": 0})
    run(recipe, tmp_path / "one")
    assert objective.calls == [
        "student",
        "critic",
        "student",
        "student",
    ]  # and two held-out batches
    objective.calls.clear()
    trainer = loop.Trainer(tiny_recipe(), tmp_path, tiny_model(recipe), Random())
    trainer.step = 1  # the critic rests
    critic = objective.roles["critic"].weight.detach().clone()
    student = objective.roles["student"].weight.detach().clone()
    trainer._train_step()
    trainer.feed.close()
    assert objective.calls == ["student"]
    assert torch.equal(objective.roles["critic"].weight, critic)
    assert not torch.equal(objective.roles["student"].weight, student)
    assert torch.equal(objective.roles["teacher"].weight, before["teacher"])
    assert not torch.equal(critic, before["critic"])
    logged, held_out = metrics(tmp_path / "one")
    assert held_out["validation_loss"] > 0  # of the first phase: it has no `validate` of its own
    assert {"loss", "critic/loss", "grad_norm", "critic/grad_norm"} <= logged.keys()


def test_an_unknown_device_is_named(tmp_path: Path) -> None:
    with pytest.raises(GessoError, match=r"train\.device 'gpu'"):
        run(tiny_recipe({"device": "gpu"}), tmp_path / "run")


def test_what_learns_is_compiled_when_the_recipe_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(setup, "compile_blocks", compiled.extend)
    recipe = tiny_recipe({"steps": 1})
    run(recipe, tmp_path / "plain")
    assert not compiled
    recipe.train.compile = True
    model = tiny_model(recipe)
    train(recipe, tmp_path / "run", model=model, dataset=Random(), quiet=True)
    assert model.backbone in compiled


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_it_learns_and_resumes_on_a_gpu(tmp_path: Path, optimizer: str) -> None:
    options = {"dtype": "bfloat16", "compile": True, "optimizer": optimizer, "lr": 3e-3}
    recipe = tiny_recipe({"device": "cuda", "steps": 60, "log_every": 10, **options})
    run(recipe, tmp_path / "run", Random(fixed=True))
    recipe.train.steps = 80
    run(recipe, tmp_path / "run", Random(fixed=True), resume=True)
    logged = [m["loss"] for m in metrics(tmp_path / "run") if "loss" in m]
    assert logged[-1] < 0.8 * logged[0]
