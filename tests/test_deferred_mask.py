"""Masked training: what is dropped costs nothing, teaches nothing, and is never painted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from train_fakes import DIM, Random, every_tensor, tiny_model, tiny_recipe

from gesso.adapters.deferred_mask import Masked, keep, masked
from gesso.backbones import microdit, mmdit, pixart
from gesso.draws import Draws
from gesso.model import Model
from gesso.nn.hooks import hooked
from gesso.objectives.denoise import Config, build
from gesso.train.loop import train
from gesso.types import Batch, Cond, GessoError

MICRO = {"name": "microdit", "depth": 3, "hidden_size": 32, "head_dim": 16, "mixer_size": 16}
PIXART = {"name": "pixart", "depth": 2, "hidden_size": 32, "num_heads": 2, "mixer_size": 16}
FINE = {"patch_size": 1}  # 16 patches of the 4 x 4 latents


def awake(network: Any) -> Any:
    """Every parameter random, so that every input matters."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=g))
    return network


def micro(**options: Any) -> Any:
    config = {k: v for k, v in MICRO.items() if k != "name"} | FINE | options
    return awake(microdit.build(microdit.Config(text_dim=DIM, **config)))


def model(backbone: dict[str, Any], **parts: Any) -> Model:
    found = tiny_model(tiny_recipe(**parts))
    options = {k: v for k, v in (backbone | FINE).items() if k != "name"}
    kind = {"microdit": microdit, "pixart": pixart}[backbone["name"]]
    found.backbone = awake(kind.build(kind.Config(text_dim=DIM, **options)))
    return found


def inputs(n: int = 2, side: int = 4) -> tuple[Tensor, Tensor, Cond]:
    g = torch.Generator().manual_seed(1)
    x = torch.randn(n, 4, side, side, generator=g)
    return x, torch.rand(n, generator=g), Cond(tokens=torch.randn(n, 3, DIM, generator=g))


@pytest.mark.parametrize(("ratio", "k"), [(0.75, 64), (0.9, 25), (0.5, 128), (0.875, 32), (0, 256)])
def test_so_many_patches_stay(ratio: float, k: int) -> None:
    scores = torch.rand(5, 256)
    kept = keep(scores, ratio)
    assert kept.shape == (5, k) and (kept.diff(dim=1) > 0).all()
    chosen = scores.gather(1, kept).max(dim=1).values
    assert ((scores <= chosen[:, None]).sum(dim=1) == k).all()
    assert keep(torch.rand(2, 4), 0.99).shape == (2, 1)


def test_each_picture_draws_its_own_patches() -> None:
    kept = keep(Draws("cpu", 7, 0).rand(400, 16), 0.75)
    share = torch.zeros(400, 16).scatter(1, kept, 1.0).mean(dim=0)
    assert (share - 0.25).abs().max() < 0.1  # no patch is favoured
    assert len({tuple(row.tolist()) for row in kept}) > 300


@pytest.mark.parametrize(("network", "least"), [("deferred", 2.0), ("naive", 3.3)])
def test_dropped_patches_cost_nothing(network: str, least: float) -> None:
    size = {"hidden_size": 64, "depth": 6}
    backbone = micro(**size, mixer_depth=2 if network == "deferred" else 0)
    x, t, cond = inputs(side=16)
    seen: list[int] = []
    for block in backbone.blocks:
        block.register_forward_hook(lambda _m, args, _out: seen.append(args[0].shape[1]))
    flops = []
    for ratio in (0.0, 0.75):
        run = masked(backbone, x, ratio, Draws("cpu", 0)) if ratio else backbone
        with FlopCounterMode(display=False) as counter:
            run(x, t, cond).value.sum().backward()
        flops.append(counter.get_total_flops())
    assert seen == [256] * 6 + [64] * 6
    assert flops[0] / flops[1] > least


@pytest.mark.parametrize("build_one", ["micro", "pixart", "mmdit"])
def test_kept_patches_are_what_the_blocks_make_of_them_alone(build_one: str) -> None:
    """Naive masking is the network on a shorter sequence, its positions included."""
    x, t, cond = inputs()
    if build_one == "micro":
        network = micro(mixer_depth=0)
    elif build_one == "pixart":
        config = pixart.Config(depth=2, hidden_size=32, num_heads=2, text_dim=DIM, **FINE)
        network = awake(pixart.build(config))
    else:
        config = mmdit.Config(
            depth=2, hidden_size=32, num_heads=2, text_dim=DIM, pooled_dim=8, **FINE
        )
        network = awake(mmdit.build(config))
        cond = cond.replace(pooled=torch.randn(2, 8), mask=torch.ones(2, 3, dtype=torch.bool))
    kept = keep(torch.rand(2, 16), 0.5)
    out = Masked(network, kept)(x, t, cond)
    assert out.aux["kept"].sum(dim=(1, 2, 3)).tolist() == [8, 8]
    for i in range(2):  # one picture at a time, its tokens cut out by hand
        patches: list[Tensor] = []

        def cut(z: Tensor, row: Tensor = kept[i]) -> Tensor:
            return z[:, row]

        def look(z: Tensor, found: list[Tensor] = patches) -> Tensor:
            found.append(z)
            return z.new_zeros(1, 16, z.shape[2])

        with hooked(network.tokens_in, cut), hooked(network.patches_out, look):
            network(x[i : i + 1], t[i : i + 1], cond[i])
        value = out.value[i].flatten(1).T  # [N, C], patches of one cell
        expected = patches[0][0][:, :4]  # pixart has its variance behind
        torch.testing.assert_close(value[kept[i]], expected, atol=1e-4, rtol=1e-4)
        dropped = torch.ones(16, dtype=torch.bool).scatter(0, kept[i], False)
        assert not value[dropped].any() and value[kept[i]].any(dim=1).all()
        assert torch.equal(out.aux["kept"][i].flatten(), ~dropped)


def test_patches_of_several_cells_are_marked_whole() -> None:
    network = micro(patch_size=2)
    kept = torch.tensor([[1], [2]])
    out = Masked(network, kept)(*inputs())
    cells = out.aux["kept"][:, 0].int().tolist()
    assert cells[0] == [[0, 0, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert cells[1] == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]]


def loss(objective: Any, batch: Batch, step: int = 0) -> Tensor:
    return objective.loss("denoise", batch, Draws("cpu", 0, step)).loss


def where_kept(objective: Any, batch: Batch) -> Tensor:
    """[B, 1, h, w] bool: what `loss` keeps of this batch."""
    found: list[Tensor] = []
    spied = objective.backbone.tokens_in.register_forward_hook(
        lambda _m, _a, z: found.append(z.detach())
    )
    loss(objective, batch)
    spied.remove()
    n = batch.latents[0, 0].numel()
    draws = Draws("cpu", 0, 0)  # what the loss has drawn before: times, noise, captions
    draws.rand(len(batch.latents)), draws.randn(*batch.latents.shape), draws.rand(4)
    kept = keep(draws.rand(4, n), objective.options.mask_ratio)
    mark = torch.zeros(4, n, dtype=torch.bool).scatter(1, kept, True)
    return mark.view(-1, 1, *batch.latents.shape[2:])


@pytest.mark.parametrize("backbone", [MICRO, PIXART])
@pytest.mark.parametrize("mixer_depth", [0, 2])
def test_the_loss_comes_from_kept_patches_alone(backbone, mixer_depth: int) -> None:
    flow = {"path": "flow", "prediction": "flow"}
    objective = build(
        Config(mask_ratio=0.75, caption_dropout=0),
        model(backbone | {"mixer_depth": mixer_depth}, diffusion=flow),
    )
    objective.backbone.train()
    batch = Random().batch(0, 4, 0)
    kept = where_kept(objective, batch)
    base = loss(objective, batch)
    for inside in (True, False):
        change = torch.where(kept == inside, torch.randn_like(batch.latents), 0.0)
        moved = loss(objective, replace(batch, latents=batch.latents + change))
        # Without a mixer nothing of a dropped patch can be told; with one, neighbours know of it.
        assert torch.equal(moved, base) == (not inside and mixer_depth == 0)


def test_the_loss_is_the_mean_over_kept_patches() -> None:
    flow = {"path": "flow", "prediction": "flow"}
    objective = build(Config(mask_ratio=0.75, caption_dropout=0), model(MICRO, diffusion=flow))
    network = objective.backbone.train()
    batch = Random().batch(0, 4, 0)
    kept = where_kept(objective, batch)
    x0, draws = batch.latents, Draws("cpu", 0, 0)
    t, noise = draws.rand(4), draws.randn(*x0.shape)
    s = t.view(-1, 1, 1, 1)
    cond = objective.captions.encode(batch.cond)
    index = kept.flatten(1).nonzero()[:, 1].view(4, 4)
    value = Masked(network, index)((1 - s) * x0 + s * noise, 1000 * t, cond).value
    errors = (value - (noise - x0)).square().mean(dim=1, keepdim=True)  # [B, 1, h, w]
    expected = torch.stack([errors[i][kept[i]].mean() for i in range(4)]).mean()
    assert loss(objective, batch).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_bound_of_a_learned_variance_is_that_of_kept_patches() -> None:
    objective = build(Config(mask_ratio=0.5, caption_dropout=0), model(PIXART))
    network = objective.backbone.train()
    seen: list[Tensor] = []
    network.patches_out.register_forward_hook(lambda _m, _a, z: seen.append(z) or None)
    batch = Random().batch(0, 4, 0)
    out = objective.loss("denoise", batch, Draws("cpu", 0, 0))
    seen[0].retain_grad()
    out.loss.backward()
    assert seen[0].shape == (4, 8, 8) and seen[0].grad.abs().sum(-1).all()
    whole = build(Config(mask_ratio=0.0, caption_dropout=0), objective_model(objective))
    assert (
        0.2
        < float(out.metrics["vlb"])
        / float(whole.loss("denoise", batch, Draws("cpu", 0, 0)).metrics["vlb"])
        < 5
    )  # the same order: half the cells are not counted as zeros


def objective_model(objective: Any) -> Model:
    found = tiny_model(tiny_recipe())
    found.backbone = objective.backbone
    return found


@pytest.mark.parametrize("backbone", [MICRO, PIXART])
def test_nothing_is_masked_outside_of_training(backbone) -> None:
    hidden = model(backbone | {"mixer_depth": 2})
    objective = build(Config(mask_ratio=0.75), hidden)
    dense = build(Config(), hidden)
    batch = Random().batch(0, 4, 0)
    hidden.backbone.eval()
    with torch.no_grad():
        assert torch.equal(loss(objective, batch), loss(dense, batch))
        assert objective.validate([batch]) == dense.validate([batch])
    hidden.backbone.train()
    assert objective.validate([batch]) == dense.validate([batch])
    assert not torch.equal(loss(objective, batch), loss(dense, batch))


def test_masks_cannot_be_painted_and_leave_no_trace() -> None:
    network, args = micro(), inputs()
    wrapped = masked(network, args[0], 0.5, Draws("cpu", 0))
    with torch.no_grad(), pytest.raises(GessoError, match="training only"):
        wrapped(*args)
    with pytest.raises(GessoError, match="training only"):
        replace(wrapped, backbone=network.eval())(*args)
    network.train()
    with pytest.raises(GessoError, match="text tokens"):
        wrapped(args[0], args[1], Cond())
    wrapped(*args)
    for point in (network.tokens_in, network.patches_out):
        assert not point._forward_hooks
    assert network(*args).value.flatten(1).all()  # every patch again


def test_draws_follow_from_the_step_and_not_from_the_process() -> None:
    x = torch.zeros(8, 4, 4, 4)
    network = micro()
    whole = masked(network, x, 0.75, Draws("cpu", 0, 3)).kept
    assert torch.equal(whole, masked(network, x, 0.75, Draws("cpu", 0, 3)).kept)
    assert not torch.equal(whole, masked(network, x, 0.75, Draws("cpu", 0, 4)).kept)
    rows = [slice(r, None, 2) for r in (0, 1)]
    for part in rows:
        own = masked(network, x[part], 0.75, Draws("cpu", 0, 3, rows=part, total=8)).kept
        assert torch.equal(own, whole[part])


def test_backbones_that_need_whole_grids_are_refused() -> None:
    pooled = model(PIXART | {"kv_compress": 2, "kv_blocks": [1]})
    with pytest.raises(GessoError, match="kv_blocks"):
        build(Config(mask_ratio=0.5), pooled)
    bare = model(PIXART)
    bare.backbone = torch.nn.Linear(1, 1)
    with pytest.raises(GessoError, match="hook points"):
        build(Config(mask_ratio=0.5), bare)


@pytest.mark.parametrize("backbone", [MICRO | {"experts": 4}, PIXART | {"mixer_depth": 2}])
def test_a_masked_run_resumes_bit_for_bit(tmp_path: Path, backbone) -> None:
    diffusion = {"path": "edm", "prediction": "edm", "timesteps": "lognormal"}

    def run(name: str, steps: int, resume: bool = False) -> Path:
        recipe = tiny_recipe(
            {"steps": steps, "save_every": 3},
            backbone=backbone | FINE,
            diffusion=diffusion,
            objective={"name": "denoise", "mask_ratio": 0.75, "null": "empty"},
        )
        torch.manual_seed(steps)  # no state may hide in the global generator
        found = model(backbone, diffusion=diffusion)
        train(recipe, tmp_path / name, model=found, dataset=Random(), resume=resume, quiet=True)
        return tmp_path / name / "checkpoints" / "step-000006"

    whole = every_tensor(run("whole", 6))
    run("parts", 3)
    parts = every_tensor(run("parts", 6, resume=True))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
