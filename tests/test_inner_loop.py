"""Inner loop feedback and the block cache: by hand, on two backbones, and a training."""

from __future__ import annotations

import copy
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from train_fakes import Random, tiny_model, tiny_recipe

from gesso.adapters import block_cache, inner_loop
from gesso.backbones import mmdit, pixart
from gesso.diffusion.predictions import like
from gesso.draws import Draws
from gesso.objectives.ilf import ILF, Config, build
from gesso.train.loop import train
from gesso.types import Cond, GessoError

SHORT = ["data.source.count=8", "validation.holdout=4", "train.batch_size=4", "train.device=cpu"]
FLOW = {"path": "flow", "prediction": "flow"}
SIZES: dict[str, Any] = {"depth": 4, "hidden_size": 32, "num_heads": 2, "text_dim": 16}
BUILT = {
    "pixart": lambda: pixart.build(pixart.Config(**SIZES, learn_sigma=False)),
    "mmdit": lambda: mmdit.build(mmdit.Config(**SIZES, pooled_dim=16, base_size=4, table_size=8)),
}


def stirred(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))
    return network.eval()


def inputs(rows: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Cond]:
    g = torch.Generator().manual_seed(seed)
    cond = Cond(
        tokens=torch.randn(rows, 5, 16, generator=g),
        mask=torch.arange(5) < torch.tensor([[3], [5], [4]])[:rows],
        pooled=torch.randn(rows, 16, generator=g),
    )
    x = torch.randn(rows, 4, 8, 8, generator=g)
    return x, torch.full((rows,), 700.0), cond


@pytest.fixture(params=list(BUILT))
def network(request: pytest.FixtureRequest) -> Any:
    return stirred(BUILT[request.param]())


def counted(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts every run of the trunk's kind of block, whoever runs it."""
    count: Counter[str] = Counter()
    kind = type(network.trunk[0])  # type: ignore[index]
    forward = kind.forward

    def counting(self: nn.Module, *args: Any) -> Any:
        count["blocks"] += 1
        return forward(self, *args)

    monkeypatch.setattr(kind, "forward", counting)
    return count


def by_hand(network: Any, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """The equations, with each backbone's own way of calling its blocks."""
    loop = network.inner_loop
    seen: list[Any] = []
    handle = network.trunk[0].register_forward_pre_hook(lambda _block, args: seen.append(args))
    with loop.off():
        network(x, t, cond)
    handle.remove()
    args = seen[0]
    k = 2 if isinstance(network, mmdit.MMDiT) else 1
    given, rest = args[:k], args[k:]

    def run(block: Any, streams: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        out = block.forward(*streams, *rest)
        return out if isinstance(out, tuple) else (out,)

    with loop.off():
        start = run(network.trunk[0], given)
        end = start
        for i in (1, 2):
            end = run(network.trunk[i], end)
        feedback = run(loop.block, end)[0]
        again = start
        for i, s in zip((1, 2), loop.scales, strict=True):
            again = run(network.trunk[i], (again[0] + s * feedback, *again[1:]))
        tokens = run(network.trunk[3], again)[0]
        # The rest of the network, with its own last block replaced by what came out.
        keep = network.trunk[3].register_forward_hook(
            lambda *_: (tokens, None)[:k] if k > 1 else tokens
        )
        value = network(x, t, cond).value
        keep.remove()
    return value


@torch.no_grad()
def test_silent_feedback_changes_nothing_and_loud_feedback_is_the_equations(network: Any) -> None:
    plain = network(*inputs()).value
    loop = inner_loop.attach(inner_loop.Config(start=1, end=3), network)
    assert torch.equal(loop.scales, torch.zeros(2))
    assert (network(*inputs()).value - plain).abs().max() <= 1e-6
    loop.scales.copy_(torch.tensor([0.3, -0.2]))
    stirred(loop.block)
    loud = network(*inputs()).value
    assert (loud - plain).abs().max() > 1e-3
    assert torch.allclose(loud, by_hand(network, *inputs()), atol=1e-6)
    with loop.off():
        assert torch.equal(network(*inputs()).value, plain)
    assert torch.equal(network(*inputs()).value, loud)


@torch.no_grad()
def test_a_pass_costs_the_loop_and_one_block_more(
    network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner_loop.attach(inner_loop.Config(start=1, end=3), network)
    count = counted(network, monkeypatch)
    network(*inputs())
    assert count["blocks"] == 4 + 2 + 1


@torch.no_grad()
def test_rows_do_not_mix_and_a_copy_has_its_own_loop(network: Any) -> None:
    """The branches of guidance are rows of one batch."""
    loop = inner_loop.attach(inner_loop.Config(start=1, end=3), network)
    loop.scales.fill_(0.3)
    x, t, cond = inputs()
    both = network(x, t, cond).value
    for i in range(2):
        alone = network(x[i : i + 1], t[:1], cond[i]).value
        assert (alone - both[i : i + 1]).abs().max() < 1e-5
    other = copy.deepcopy(network)
    other.inner_loop.scales.zero_()
    assert torch.equal(network(x, t, cond).value, both)
    assert (other(x, t, cond).value - both).abs().max() > 1e-3


@torch.no_grad()
def test_prepared_text_gives_the_same() -> None:
    network: Any = stirred(BUILT["pixart"]())
    inner_loop.attach(inner_loop.Config(start=1, end=3), network).scales.fill_(0.3)
    x, t, cond = inputs()
    ready = network.prepare(cond, t[:1])
    assert (network(x, t, ready).value - network(x, t, cond).value).abs().max() < 1e-5


@pytest.mark.parametrize(("start", "end"), [(0, 2), (2, 2), (3, 2), (1, 4), (1, 9)])
def test_every_part_has_a_block(start: int, end: int) -> None:
    with pytest.raises(GessoError, match="0 < start < end < 4"):
        inner_loop.attach(inner_loop.Config(start=start, end=end), BUILT["pixart"]())


def test_the_loop_is_the_middle_third_by_default() -> None:
    assert inner_loop.loop_of(6, None, None, "x") == (2, 4)
    assert inner_loop.loop_of(28, None, None, "x") == (9, 19)
    for adapter, options in (
        (inner_loop, inner_loop.Config()),
        (block_cache, block_cache.Config(start=0, end=1)),
    ):
        with pytest.raises(GessoError, match="no hook points"):
            adapter.attach(options, nn.Linear(2, 2))


def objective(steps: int = 2, diffusion: dict[str, str] = FLOW) -> tuple[ILF, Any]:
    sample = {"sampler": "euler", "num_inference_steps": steps, "guidance_scale": 3.0}
    recipe = tiny_recipe(diffusion=diffusion, sample=sample)
    recipe.backbone = {**(recipe.backbone or {}), "depth": 3, "learn_sigma": False}
    model = tiny_model(recipe)
    stirred(model.backbone)
    for part in model.trained().values():
        part.requires_grad_(False)
    model.attach({"name": "inner_loop"})
    with torch.no_grad():
        model.backbone.inner_loop.scales.fill_(0.2)
    return build(Config(), model), model


@pytest.mark.parametrize("diffusion", [FLOW, {}])
def test_loss_by_hand(diffusion: dict[str, str]) -> None:
    made, model = objective(2, diffusion)
    batch = Random().batch(0, 3, 0)
    loss = made.loss("feedback", batch, Draws("cpu", 5)).loss

    path, network, loop = model.path, model.backbone, model.backbone.inner_loop
    noise = Draws("cpu", 5).randn(*batch.latents.shape)
    places = [0.0, 0.25, 0.5, 0.75, 1.0][::-1]
    times = [path.place(torch.tensor([u], dtype=torch.float64)).round(decimals=12) for u in places]
    times = [t.round() if diffusion == {} else t for t in times]

    def ends(t: Tensor) -> tuple[Tensor, Tensor]:
        return path.alpha_sigma(t.float()) if t > 0 else (torch.ones(1), torch.zeros(1))

    errors = []
    for row in range(3):
        cond = model.text_encoder(batch.cond[row])
        empty = model.text_encoder(model.text_encoder.prepare([""]))

        def step(x: Tensor, t: Tensor, s: Tensor, cond: Cond = cond, empty: Cond = empty) -> Tensor:
            with_cond, without = (
                network(x, path.model_time(t.float()), c).value for c in (cond, empty)
            )
            value = without + 3 * (with_cond - without)
            out = model.denoiser().views(value, x, t.float())
            a, b = ends(s)
            return like(a, x) * out.x0 + like(b, x) * out.noise

        x = noise[row : row + 1]
        with torch.no_grad():
            for i in (0, 2):
                with loop.off():
                    goal = step(step(x, times[i], times[i + 1]), times[i + 1], times[i + 2])
                landed = step(x, times[i], times[i + 2])
                error = (landed - goal).square().mean()
                (a, b), (c, d) = ends(times[i]), ends(times[i + 2])
                errors.append(error / ((a - c) ** 2 + (b - d) ** 2))
                x = landed
    assert loss.item() == pytest.approx(torch.stack(errors).mean().item(), rel=1e-4)


def test_a_training_changes_the_inner_loop_alone(tmp_path: Path) -> None:
    _, model = objective()
    recipe = tiny_recipe({"steps": 3, "lr": 1e-2}, diffusion=FLOW, objective={"name": "ilf"})
    before = copy.deepcopy(model.backbone.state_dict())
    train(recipe, tmp_path, model=model, dataset=Random(), quiet=True)
    after = model.backbone.state_dict()
    changed = {key for key in after if not torch.equal(after[key], before[key])}
    assert changed and all(key.startswith("inner_loop.") for key in changed)
    assert "inner_loop.scales" in changed


def test_bad_recipes_are_one_sentence(call: Any) -> None:
    for override, says in (
        ("adapter=null", "set adapter to inner_loop"),
        ("adapter.start=0", "0 < start < end < 6"),
        ("sample.sampler=dpm_solver", "set sample.sampler to euler or ddim"),
        ("adapter.name=iner_loop", "did you mean 'inner_loop'"),
    ):
        code, _, err = call("train", "ilf", *SHORT, "--run", "run", override)
        assert code == 2 and says in err and err.count("\n") == 1, (override, err)


@torch.no_grad()
def test_a_cached_step_adds_what_the_blocks_added_before(
    network: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, t, cond = inputs()
    plain = copy.deepcopy(network)
    count = counted(network, monkeypatch)  # the cache holds the blocks' forward as it finds it
    block_cache.attach(block_cache.Config(start=1, end=3), network)
    assert torch.equal(network(x, t, cond).value, plain(x, t, cond).value)
    assert count.pop("blocks") == 8  # four each

    given: list[Tensor] = []
    handles = [
        plain.trunk[i].register_forward_pre_hook(lambda _b, a: given.append(a)) for i in (1, 3)
    ]
    plain(x, t, cond)
    added = [b - a for a, b in zip(given[0], given[1], strict=True) if isinstance(a, Tensor)]
    for handle in handles:
        handle.remove()
    k = 2 if isinstance(network, mmdit.MMDiT) else 1
    now = t - 100

    def instead(_block: nn.Module, args: Any) -> Any:
        start = begun[0]
        return (*(s + d for s, d in zip(start[:k], added, strict=False)), *args[k:])

    begun: list[Any] = []
    plain.trunk[1].register_forward_pre_hook(lambda _b, a: begun.append(a))
    plain.trunk[3].register_forward_pre_hook(instead)
    wanted = plain(0.9 * x, now, cond).value
    count.clear()
    assert torch.allclose(network(0.9 * x, now, cond).value, wanted, atol=1e-6)
    assert count["blocks"] == 2  # L - n


@torch.no_grad()
def test_another_picture_begins_whole(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    count = counted(network, monkeypatch)
    block_cache.attach(block_cache.Config(start=1, end=3, every=3), network)
    x, t, cond = inputs()

    def cost(time: float, rows: int = 2) -> int:
        count.clear()
        network(x[:rows], torch.full((rows,), time), cond[:rows])
        return count["blocks"]

    assert [cost(t) for t in (900.0, 700.0, 500.0, 300.0, 100.0)] == [4, 2, 2, 4, 2]
    assert [cost(t) for t in (900.0, 700.0)] == [4, 2]
    assert cost(600.0, rows=1) == 4  # other rows
    network.train()
    with pytest.raises(GessoError, match="for painting"):
        network(x, t, cond)
    with pytest.raises(GessoError, match="start < end <= 4"):
        block_cache.attach(block_cache.Config(start=2, end=5), BUILT["pixart"]())
