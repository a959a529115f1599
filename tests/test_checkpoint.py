"""Checkpoints stay whole through kills and full disks, and load strictly, without pickle."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from train_fakes import Random, every_tensor, tiny_model, tiny_recipe

from gesso.train import checkpoint
from gesso.train.loop import train
from gesso.types import GessoError


def run(folder: Path, resume: bool = False, **options: Any) -> dict[str, Any]:
    recipe = tiny_recipe({"steps": 4, "save_every": 2, **options})
    model = tiny_model(recipe)
    return train(recipe, folder, model=model, dataset=Random(), resume=resume, quiet=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(folder)
    return folder


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """A finished run that a test may damage."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def fail_when_saving(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, step: int, times: int = 99
) -> None:
    """Writing the optimiser of one step writes half of it and raises."""
    left = {"times": times}

    def save(tensors: dict[str, torch.Tensor], file: Path, metadata: Any = None) -> None:
        if (
            file.name == "optimizer.safetensors"
            and f"step-{step:06d}" in str(file)
            and left["times"]
        ):
            left["times"] -= 1
            file.write_bytes(b"half")
            raise error
        save_file(tensors, file, metadata)

    monkeypatch.setattr(checkpoint, "save_file", save)


def test_what_is_written(finished: Path) -> None:
    names = [p.name for p in checkpoint.checkpoints(finished)]
    assert names == ["step-000002", "step-000004"]
    files = {p.name for p in (finished / "checkpoints").rglob("*") if p.is_file()}
    assert files == {
        *("model.safetensors", "gesso.json", "state.json"),
        *("weights.safetensors", "ema.safetensors", "optimizer.safetensors"),
    }
    described = json.loads((finished / "checkpoints/step-000004/gesso.json").read_text())
    assert described["step"] == 4


def test_only_the_last_are_kept(tmp_path: Path) -> None:
    run(tmp_path / "run", save_every=1, keep=2)
    names = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-000003", "step-000004"]


def test_checkpoints_are_ordered_by_number(tmp_path: Path) -> None:
    for name in ("step-1000000", "step-999999", "step-5-broken", ".tmp-step-2000000"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    found = [p.name for p in checkpoint.checkpoints(tmp_path)]
    assert found == ["step-999999", "step-1000000"]


def test_a_kill_while_writing_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        fail_when_saving(patched, KeyboardInterrupt(), step=4)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run")
    left = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == [".tmp-step-000004", "step-000002"]
    result = run(tmp_path / "run", resume=True)
    left = sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["step-000002", "step-000004"] and result["steps"] == 4


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    SafetensorError("Error while serializing: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL, ids=["python", "safetensors"])
def test_a_full_disk_at_the_end_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fail_when_saving(monkeypatch, error, step=4)
    with pytest.raises(GessoError, match=r"No space left.*step-000002 is intact"):
        run(tmp_path / "run")
    left = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert left == ["step-000002"]
    assert every_tensor(tmp_path / "run" / "checkpoints" / "step-000002")


def test_a_disk_that_is_full_for_a_while_does_not_stop_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_when_saving(monkeypatch, OSError(errno.ENOSPC, "No space left on device"), step=2, times=1)
    result = run(tmp_path / "run")
    assert result["steps"] == 4
    assert [p.name for p in checkpoint.checkpoints(tmp_path / "run")] == ["step-000004"]


@pytest.mark.parametrize("file", ["weights", "ema", "optimizer"])
def test_a_truncated_file_is_named(copy: Path, file: str) -> None:
    path = copy / "checkpoints" / "step-000004" / "state" / f"{file}.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(GessoError, match=rf"{file}\.safetensors is truncated"):
        run(copy, resume=True)


def test_a_damaged_state_file_is_named(copy: Path) -> None:
    (copy / "checkpoints" / "step-000004" / "state" / "state.json").write_text("{")
    with pytest.raises(GessoError, match=r"state\.json is missing or damaged"):
        run(copy, resume=True)


def change(copy: Path, file: str, edit: Any) -> None:
    path = copy / "checkpoints" / "step-000004" / "state" / f"{file}.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)


BIAS = "backbone.final_layer.linear.bias"


@pytest.mark.parametrize("file", ["weights", "ema"])
def test_tensors_must_fit_exactly(copy: Path, file: str) -> None:
    kept = load_file(copy / "checkpoints" / "step-000004" / "state" / f"{file}.safetensors")
    change(copy, file, lambda t: t.pop(BIAS))
    with pytest.raises(GessoError, match=f"lacks the tensors {BIAS}"):
        run(copy, resume=True)
    change(copy, file, lambda t: t.update(kept, stranger=torch.ones(1)))
    with pytest.raises(GessoError, match="has the tensors stranger"):
        run(copy, resume=True)
    change(copy, file, lambda t: (t.pop("stranger"), t.update({BIAS: torch.ones(3)})))
    with pytest.raises(GessoError, match=rf"{BIAS} has shape \(3,\)"):
        run(copy, resume=True)


def test_optimiser_tensors_must_fit_exactly(copy: Path) -> None:
    key = f"denoise|{BIAS}|exp_avg_sq"
    file = copy / "checkpoints" / "step-000004" / "state" / "optimizer.safetensors"
    value = load_file(file)[key]
    change(copy, "optimizer", lambda t: t.pop(key))
    with pytest.raises(GessoError, match=rf"lacks .*{BIAS}\|exp_avg_sq"):
        run(copy, resume=True)
    change(copy, "optimizer", lambda t: t.update({key: value[:-1]}))
    with pytest.raises(GessoError, match=rf"{BIAS}\|exp_avg_sq"):
        run(copy, resume=True)
    change(
        copy, "optimizer", lambda t: t.update({key: value, "denoise|stranger|step": torch.ones(())})
    )
    with pytest.raises(GessoError, match="stranger"):
        run(copy, resume=True)
