"""Schedules, optimiser groups, the moving average, the guard and the log."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from train_fakes import tiny_model, tiny_recipe

from gesso.config import TrainConfig
from gesso.train.ema import EMA
from gesso.train.guard import Guard
from gesso.train.log import Meter, RunLog, duration
from gesso.train.optim import Optimizer, learning_rate
from gesso.types import GessoError


def rates(config: TrainConfig, *steps: int) -> list[float]:
    return [learning_rate(config, step, seconds=0.0) for step in steps]


def test_learning_rate_by_steps() -> None:
    config = TrainConfig(lr=2.0, warmup=4, steps=100)
    assert rates(config, 0, 1, 3, 99) == [0.5, 1.0, 2.0, 2.0]
    config.schedule = "linear"
    assert rates(config, 0, 50, 100) == pytest.approx([0.5, 1.0, 0.0])
    config.schedule = "cosine"
    assert rates(config, 25, 50, 100) == pytest.approx([1 + math.sqrt(0.5), 1.0, 0.0])


def test_learning_rate_by_time() -> None:
    config = TrainConfig(lr=1.0, warmup=0, steps=3, minutes=2, schedule="linear")
    found = [learning_rate(config, step=1000, seconds=s) for s in (0, 30, 120, 500)]
    assert found == pytest.approx([1.0, 0.75, 0.0, 0.0])


class Part(nn.Module):
    """One of each kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.ones(6, 4))
        self.embedding = nn.Embedding(3, 4)
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm = nn.LayerNorm(4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4)])
        self.final = nn.Linear(4, 4)


def groups(config: TrainConfig) -> dict[str, set[str]]:
    """Names of the parameters by optimiser and whether they decay."""
    optimizer = Optimizer({"part": Part()}, config)
    names = {id(p): n.removeprefix("part.") for n, p in optimizer.params.items()}
    return {
        f"{type(o).__name__} {group['weight_decay']}": {names[id(p)] for p in group["params"]}
        for o in optimizer.optimizers
        for group in o.param_groups
    }


def test_weight_decay_spares_all_but_matrices() -> None:
    spared = {"table", "embedding.weight", "norm.weight", "norm.bias"}
    spared |= {"conv.bias", "blocks.0.bias", "final.bias"}
    assert groups(TrainConfig(weight_decay=0.1)) == {
        "AdamW 0.1": {"conv.weight", "blocks.0.weight", "final.weight"},
        "AdamW 0.0": spared,
    }


def test_muon_takes_the_hidden_matrices() -> None:
    found = groups(TrainConfig(weight_decay=0.1, optimizer="muon"))
    assert found["Muon 0.1"] == {"blocks.0.weight"}
    assert found["AdamW 0.1"] == {"conv.weight", "final.weight"}


def test_pixart_tables_do_not_decay() -> None:
    model = tiny_model(tiny_recipe())
    optimizer = Optimizer(model.trained(), TrainConfig(weight_decay=0.1, optimizer="muon"))
    decayed, plain = optimizer.optimizers[0].param_groups
    names = {id(p): name for name, p in optimizer.params.items()}
    assert "backbone.final_layer.linear.weight" in {names[id(p)] for p in decayed["params"]}
    unspared = {names[id(p)] for p in plain["params"]}
    assert {"backbone.blocks.0.scale_shift_table", "text_encoder.embedding.weight"} <= unspared


def test_nothing_to_train_is_named() -> None:
    with pytest.raises(GessoError, match="frozen has no trainable"):
        Optimizer({"frozen": nn.Linear(2, 2).requires_grad_(False)}, TrainConfig())


def test_clipping_reports_the_norm_before() -> None:
    layer = nn.Linear(2, 1, bias=False)
    optimizer = Optimizer({"layer": layer}, TrainConfig())
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    assert optimizer.clip(0).item() == 5.0 and layer.weight.grad.tolist() == [[3.0, 4.0]]
    assert optimizer.clip(1.0).item() == 5.0
    assert layer.weight.grad.norm().item() == pytest.approx(1.0, abs=1e-5)


def test_the_average_warms_up() -> None:
    p = nn.Parameter(torch.tensor([0.0]))
    ema = EMA({"p": p}, decay=0.2)
    expected = 0.0
    for n, value in enumerate((1.0, 2.0, 4.0)):
        p.data.fill_(value)
        ema.update()
        decay = min(0.2, (1 + n) / (10 + n))  # 1/10, 2/11, 0.2
        expected = decay * expected + (1 - decay) * value
    assert ema.average["p"].item() == pytest.approx(expected)


def test_the_average_is_applied_for_a_while() -> None:
    p = nn.Parameter(torch.tensor([0.0]))
    ema = EMA({"p": p}, decay=0.5)
    p.data.fill_(8.0)
    with pytest.raises(RuntimeError), ema.applied():
        assert p.item() == 0.0
        raise RuntimeError
    assert p.item() == 8.0 and ema.average["p"].item() == 0.0


def test_the_guard_waits_for_the_warm_up_and_knows_phases(tmp_path: Path) -> None:
    guard = Guard(tmp_path, max_skipped=0)
    for _ in range(20):
        assert guard.problem("a", 0.1, 1.0, warm=True) is None
    assert guard.problem("a", 1.9, 1.0, warm=True) is None
    assert guard.problem("a", 2.1, 1.0, warm=False) is None
    assert "jumped to 2.1 from a median of 0.1" in str(guard.problem("a", 2.1, 1.0, warm=True))
    assert guard.problem("b", 2.1, 1.0, warm=True) is None
    restored = Guard(tmp_path, max_skipped=0)
    restored.load_state(json.loads(json.dumps(guard.state())))
    assert restored.problem("a", 2.1, 1.0, warm=True) == guard.problem("a", 2.1, 1.0, warm=True)


def test_the_guard_knows_losses_that_have_a_sign(tmp_path: Path) -> None:
    """Around zero a median tells no scale: the scatter does."""
    guard = Guard(tmp_path, max_skipped=0)
    drawn = (9 * torch.randn(100, generator=torch.Generator().manual_seed(0))).tolist()
    assert all(guard.problem("a", loss, 1.0, warm=True) is None for loss in drawn)
    assert guard.problem("a", 60.0, 1.0, warm=True) is None
    assert "jumped to 200" in str(guard.problem("a", 200.0, 1.0, warm=True))


def test_the_meter_leaves_out_what_is_not_finite() -> None:
    meter = Meter()
    meter.record({"loss": torch.tensor(1.0), "bad": float("nan")})
    meter.record({"loss": 3.0})
    meter.record({"loss": float("inf")})
    meter.time(pictures=10, seconds=2.0, waited=0.5)
    assert meter.read() == {"loss": 2.0, "images_per_second": 5.0, "data_wait": 0.25}
    assert meter.read() == {}


def test_a_log_that_cannot_be_written_does_not_stop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RunLog(tmp_path)
    log.file = tmp_path / "no" / "metrics.jsonl"
    log.metrics(1, {"loss": 1.0})
    log.metrics(2, {"loss": 1.0})
    log.close()
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_duration() -> None:
    assert [duration(s) for s in (5, 65, 3723)] == ["0:05", "1:05", "1:02:03"]
