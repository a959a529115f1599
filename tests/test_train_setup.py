"""Parts of training at scale that one process shows: draws, feed, observers, recomputing."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import metrics, run
from train_fakes import Random, tiny_model, tiny_recipe

from gesso.draws import Draws
from gesso.model import Model
from gesso.nn.recompute import recompute_blocks
from gesso.train.checkpoint import checkpoints
from gesso.train.feed import Feed
from gesso.train.loop import train
from gesso.train.observe import Moment, Observer
from gesso.types import Cond, GessoError


def test_draws_are_the_rows_of_the_whole_batch() -> None:
    whole = Draws("cpu", 3, 1)
    shares = [Draws("cpu", 3, 1, rows=slice(r, None, 3), total=6) for r in range(3)]
    for draw in (
        lambda d, n: d.randn(n, 4, 2),
        lambda d, n: d.rand(n),
        lambda d, n: d.randint(9, n, 5),
        lambda d, n: d.randn(n),  # the streams stay together
    ):
        expected = draw(whole, 6)
        for rank, share in enumerate(shares):
            assert torch.equal(draw(share, 2), expected[rank::3])
    assert not torch.equal(Draws("cpu", 3, 1).rand(6), Draws("cpu", 3, 2).rand(6))
    with pytest.raises(ValueError, match="4 rows are drawn by a process that has 2 of 6"):
        shares[0].rand(4)


def test_a_feed_gives_own_rows_in_order_whatever_its_workers() -> None:
    for workers in (1, 3):
        rows = slice(1, None, 2)
        feed = Feed(Random(), 4, 7, torch.device("cpu"), rows, workers)
        for number in (0, 1, 2, 5, 6):  # a resumed run begins anywhere
            batch, expected = feed[number], Random().batch(number, 4, 7)
            assert batch.keys == expected.keys[rows]
            assert torch.equal(batch.latents, expected.latents[rows])
        assert feed.waited > 0
        feed.close()


def test_the_share_of_waiting_is_logged(tmp_path: Path) -> None:
    class Slow(Random):
        def batch(self, *args: Any) -> Any:
            import time

            time.sleep(0.2)
            return super().batch(*args)

    run(tiny_recipe({"log_every": 6}), tmp_path / "quick")
    run(tiny_recipe({"log_every": 6}), tmp_path / "slow", Slow())
    quick, slow = (metrics(tmp_path / name)[0]["data_wait"] for name in ("quick", "slow"))
    assert 0 <= 2 * quick < slow <= 1


def test_observers_see_steps_and_the_averaged_weights(tmp_path: Path) -> None:
    class Sees(Observer):
        def __init__(self) -> None:
            self.moments: list[Moment] = []
            self.biases: list[torch.Tensor] = []

        def on_step(self, moment: Moment) -> None:
            self.moments.append(moment)
            moment.log({"steps_seen": len(self.moments)})

        def on_validation(self, moment: Moment, model: Model) -> Mapping[str, float]:
            assert not model.backbone.training
            self.biases.append(model.backbone.final_layer.linear.bias.detach().clone())
            return {"score": 0.5}

    sees, recipe = Sees(), tiny_recipe({"accumulate": 2, "ema": 0.9, "lr": 1e-2})
    model = tiny_model(recipe)
    result = train(
        recipe, tmp_path / "run", model=model, dataset=Random(), observers=[sees], quiet=True
    )
    assert [m.step for m in sees.moments] == [1, 2, 3, 4, 5, 6]
    assert {m.pictures for m in sees.moments} == {8}
    assert all(0 < m.seconds < 60 for m in sees.moments) and sees.moments[-1].share == 1
    assert result["validation"]["score"] == 0.5 and "validation_loss" in result["validation"]
    assert torch.equal(sees.biases[0], model.backbone.final_layer.linear.bias)
    logged = metrics(tmp_path / "run")
    assert [m["steps_seen"] for m in logged if "steps_seen" in m] == [1, 2, 3, 4, 5, 6]
    assert [m["score"] for m in logged if "score" in m] == [0.5]


def test_checkpoints_of_every_so_many_steps_stay(tmp_path: Path) -> None:
    run(tiny_recipe({"save_every": 5, "keep": 1, "keep_every": 3, "steps": 11}), tmp_path / "run")
    names = [p.name for p in checkpoints(tmp_path / "run")]
    assert names == ["step-000003", "step-000006", "step-000009", "step-000011"]


def test_recomputed_blocks_give_the_same_with_less_memory() -> None:
    torch.manual_seed(0)
    plain = tiny_model(tiny_recipe()).backbone
    for p in plain.parameters():
        torch.nn.init.normal_(p, std=0.2)
    lean = deepcopy(plain)
    recompute_blocks([lean])
    assert list(lean.state_dict()) == list(plain.state_dict())
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([3.0, 700.0])
    cond = Cond(tokens=torch.randn(2, 5, 16), mask=torch.ones(2, 5, dtype=torch.bool))
    kept: dict[str, int] = {}
    for name, model in (("plain", plain), ("lean", lean)):
        sizes: list[int] = []

        def pack(value: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(value.numel())
            return value

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            out = model(x, t, cond).value
        out.square().mean().backward()
        kept[name] = sum(sizes)
    assert kept["lean"] < kept["plain"] / 2
    for (name, a), b in zip(plain.named_parameters(), lean.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), name
        if a.grad is not None:
            assert torch.equal(a.grad, b.grad), name


def test_float8_is_refused_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(GessoError, match=r"train\.float8 needs a GPU.*runs on cpu"):
        run(tiny_recipe({"float8": True}), tmp_path / "run")


@pytest.mark.gpu
def test_float8_learns(tmp_path: Path) -> None:
    recipe = tiny_recipe({"device": "cuda", "float8": True, "dtype": "bfloat16", "compile": True})
    recipe.train.steps, recipe.train.lr = 60, 3e-3
    run(recipe, tmp_path / "run", Random(fixed=True))
    logged = [m["loss"] for m in metrics(tmp_path / "run") if "loss" in m]
    assert logged[-1] < 0.8 * logged[0]
