"""`gesso plan`: what is counted against hand arithmetic and against real steps; what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from gesso.backbones import pixart
from gesso.config import load_recipe, resolve
from gesso.draws import Draws
from gesso.model import Model
from gesso.train.observe import Moment
from gesso.train.plan import accelerators, compare
from gesso.train.plan.cost import kernels_of, measured, roofline
from gesso.train.plan.encoders import look_at
from gesso.train.plan.estimate import Planner, plan_recipe
from gesso.train.plan.job import plan_stages
from gesso.train.plan.memory import memory_of
from gesso.train.plan.probe import Rates, probe
from gesso.train.plan.step import trace_step
from gesso.train.plan.target import target_of
from gesso.train.plan.text import duration, flops, memory
from gesso.train.plan.trace import live, stored, traffic
from gesso.train.stages import Stage
from gesso.types import Batch, GessoError

SMALL = ("backbone.depth=1", "train.optimizer=adamw")
XL = ["backbone={name: pixart, depth: 28, hidden_size: 1152, num_heads: 16}"]


def step_of(recipe, batch=4, **changes):
    encoders = look_at(recipe.image_encoder, recipe.text_encoder)
    options = {"size": (recipe.data.size,) * 2, "length": 8, "accelerator": False}
    return trace_step(recipe, encoders, batch=batch, **(options | changes))


@pytest.fixture
def traced(tiny_recipe):
    return step_of(tiny_recipe)


def real_step(recipe, batch=4, length=8):
    """(objective, loss function) of the same step on real tensors."""
    model = Model.from_recipe(recipe)
    module, options = resolve("objectives", recipe.objective)
    objective = module.build(options, model)
    for role in objective.roles.values():
        role.train()
    cond = model.text_encoder.prepare(["a red circle of a blue square"] * batch)
    assert cond.ids.shape[1] == length
    side = recipe.data.size // model.image_encoder.factor
    data = Batch(["x"] * batch, cond, latents=torch.randn(batch, 4, side, side))
    return objective, lambda: objective.loss("denoise", data, Draws("cpu", 0)).loss


def test_flops_of_a_step_are_those_of_torchs_counter(tiny_recipe, traced):
    objective, loss = real_step(tiny_recipe)
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    assert traced.flops == counter.get_total_flops() > 0
    trained = sum(p.numel() for role in objective.roles.values() for p in role.parameters())
    assert traced.trained == traced.parameters == trained


def test_flops_of_a_block_are_those_of_hand_arithmetic(tiny_recipe):
    """A block more costs (24 N D^2 + 4 L D^2 + 4 N^2 D + 4 N L D) B, three times with backward."""
    options = dict(tiny_recipe.backbone)
    tiny_recipe.objective = {"name": "denoise", "caption_dropout": 0.0}
    found = []
    for depth in (2, 3):
        tiny_recipe.backbone = {**options, "depth": depth}
        found.append(step_of(tiny_recipe, batch=2).flops)
    n, length, d = 64, 8, 32  # 64 px, factor 4, patches of 2
    # qkv 6 N D^2, out 2; query and out of cross-attention 4; keys and values 4 L D^2; MLP 16.
    block = 28 * n * d * d + 4 * length * d * d + 4 * n * n * d + 4 * n * length * d
    assert found[1] - found[0] == 3 * 2 * block


def test_xl_at_256_px_has_the_published_size(tmp_path):
    recipe = load_recipe(
        "demo", [*XL, "data.size=128", "train.optimizer=adamw", "text_encoder.max_tokens=120"]
    )
    recipe.backbone |= {"learn_sigma": True, "null_tokens": 0, "text_dim": 4096, "depth": 1}
    one = pixart.build(pixart.Config(**{k: v for k, v in recipe.backbone.items() if k != "name"}))
    block = sum(p.numel() for p in one.blocks.parameters())
    rest = sum(p.numel() for p in one.parameters()) - block
    assert 28 * block + rest == 610_856_096


def test_memory_follows_allocations(tiny_recipe, traced):
    """Peak and saved bytes are those of the tensors that a real step keeps alive."""
    trace = traced.passes[0][0]
    line = dict(live(trace, trace.buffers))
    saved: dict[int, int] = {}
    _, loss = real_step(tiny_recipe)
    parameters = {p.untyped_storage().data_ptr() for r in _.roles.values() for p in r.parameters()}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in parameters:
            saved[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = loss()
    assert sum(saved.values()) == pytest.approx(line[trace.turn], rel=0.05)
    assert max(line.values()) >= line[trace.turn] > 0
    left = sum(b.bytes for b in trace.buffers if b.died is None)
    assert left >= 4 * traced.trained * 0.95  # the gradients
    out.backward()


def test_a_compiled_step_keeps_and_moves_less(traced):
    trace = traced.passes[0][0]
    kept = stored(trace)
    assert 0 < sum(b.bytes for b in kept) < sum(b.bytes for b in trace.buffers)
    apart, fused = traffic(trace)
    assert 0 < fused < apart


def test_memory_parts(tiny_recipe, traced):
    parts = memory_of(traced, compiled=False, program=5.0)
    assert parts.weights == parts.average == 4 * traced.trained
    assert 8 * traced.trained <= parts.optimizer < 8.1 * traced.trained + 4096 or (
        tiny_recipe.train.optimizer == "muon"
    )
    assert parts.peak == sum(vars(parts).values()) and parts.program == 5.0
    double = memory_of(step_of(tiny_recipe, batch=8), compiled=False, program=5.0)
    assert double.activations == pytest.approx(2 * parts.activations, rel=0.15)
    halves = memory_of(traced, compiled=False, program=5.0, shards=2)
    assert halves.weights == parts.weights / 2 and halves.optimizer == parts.optimizer / 2


def test_recomputed_activations_cost_flops_and_save_memory(tiny_recipe, traced):
    tiny_recipe.train.checkpoint_activations = True
    again = step_of(tiny_recipe)
    assert 1.2 * traced.flops < again.flops < 4 / 3 * traced.flops
    kept = [memory_of(s, compiled=False, program=0.0).activations for s in (again, traced)]
    assert kept[0] < 0.6 * kept[1]


def test_masked_patches_are_not_counted(tiny_recipe, traced):
    tiny_recipe.objective = {"name": "denoise", "mask_ratio": 0.75}
    tiny_recipe.backbone |= {"mixer_depth": 1, "mixer_size": 32}
    masked = step_of(tiny_recipe)
    tiny_recipe.objective = {"name": "denoise"}
    assert masked.flops < 0.75 * step_of(tiny_recipe).flops


def test_only_what_learns_has_gradients_and_states(tiny_recipe, traced):
    tiny_recipe.train.learns = ["backbone.blocks.*"]
    some = step_of(tiny_recipe)
    assert some.trained < traced.trained == some.parameters
    assert some.state_bytes < traced.state_bytes


def test_tracing_leaves_no_fake_tensor_behind(tiny_recipe, traced):
    """Tables that are remembered by their arguments would poison the next real step."""
    _, loss = real_step(tiny_recipe)
    loss().backward()
    step_of(tiny_recipe)  # and real ones do not reach the next trace
    assert type(loss()) is torch.Tensor


def test_probe_measures_what_it_is_given(traced):
    kernels = kernels_of(traced)
    rates = probe(kernels, seconds=0.1)
    assert len(rates.seconds) == len(kernels) and min(rates.seconds) > 0
    assert rates.flops > 1e8 and rates.bandwidth > 1e7 and 0 < rates.overhead < 1e-3
    taken = measured(traced, rates, compiled=False)
    total = sum(s * k.count for s, k in zip(rates.seconds, kernels, strict=True))
    trace = traced.passes[0][0]
    assert taken.step == pytest.approx(total + rates.overhead * trace.calls)


def test_seconds_add_up(traced):
    kernels = kernels_of(traced)
    rates = Rates([1.0] * len(kernels), 0.0, 1e-6, 1.0, 1.0)
    eager = measured(traced, rates, compiled=False)
    n = sum(k.count for k in traced.passes[0][0].kernels)
    assert eager.products + eager.others == n
    assert eager.update == sum(k.count for k in traced.update.kernels)
    assert eager.exchange == pytest.approx(4e-6 * traced.trained)
    compiled = measured(traced, rates, compiled=True)
    assert compiled.products == eager.products and compiled.others < eager.others
    twice = measured(traced, rates, compiled=True, scale=2.0)
    assert twice.products == 2 * eager.products and twice.update == eager.update


def test_roofline_is_bound_by_what_is_slower(traced):
    device = accelerators.ACCELERATORS["h100"]
    taken = roofline(traced, device, compiled=False, devices=1)
    slow = roofline(
        traced, replace(device, bandwidth=device.bandwidth / 100), compiled=False, devices=1
    )
    assert taken.products >= traced.flops / device.flops / accelerators.PRODUCTS
    assert slow.others == pytest.approx(100 * taken.others) and slow.products > taken.products
    assert roofline(traced, device, compiled=False, devices=2).update == taken.update / 2


def test_a_plan_of_this_machine(tiny_recipe):
    plan = plan_recipe(tiny_recipe, price=2.0, seconds=0.1, table=True)
    assert plan["device"] == "cpu" and plan["devices"] == 1 and plan["fits"]
    assert plan["steps"] == 4 and plan["pictures"] == 16
    assert plan["flops"] == pytest.approx(16 * plan["flops_per_picture"])
    assert plan["seconds_per_step"] == pytest.approx(sum(plan["seconds"].values()))
    assert plan["days"] == pytest.approx(4 * plan["seconds_per_step"] / 86400)
    assert plan["dollars"] == pytest.approx(48 * plan["days"])
    parts = {k: v for k, v in plan["memory"].items() if k != "peak"}
    assert plan["memory"]["peak"] == pytest.approx(sum(parts.values()))
    assert plan["cache"]["pictures"] == 24
    assert plan["cache"]["bytes_per_picture"] > 2 * 8 * 16 * 16  # mean and spread, float16
    rows = plan["table"]
    assert {row["size"] for row in rows} == {32, 64, 128}
    assert all(row["memory"] <= plan["memory_of_device"] for row in rows)
    own = [row for row in rows if row["size"] == 64]
    assert [row["batch"] for row in own] == sorted(row["batch"] for row in own)
    same = next(row for row in own if row["batch"] == 4)
    assert same["memory"] == pytest.approx(plan["memory"]["peak"], rel=0.02)
    assert same["seconds_per_step"] == pytest.approx(plan["seconds_per_step"])


def test_a_cache_costs_what_the_plan_says(tiny_recipe, tmp_path):
    from gesso.train.run import encode_recipe

    made = encode_recipe(tiny_recipe, tmp_path / "cache", quiet=True)
    plan = Planner(tiny_recipe, target_of(tiny_recipe, 1, "h100")).cache()
    assert plan["pictures"] == made["pictures"]
    assert plan["bytes"] == pytest.approx(
        made["bytes"], rel=0.25
    )  # headers and keys are not counted


def test_gpus_share_the_batch_and_the_weights(tiny_recipe):
    one = plan_recipe(tiny_recipe, gpu="a100", table=False)
    four = plan_recipe(tiny_recipe, gpu="A100", gpus=4, price=1.0, table=False)
    assert four["devices"] == 4 and four["flops"] == pytest.approx(one["flops"], rel=0.05)
    assert four["memory"]["optimizer"] == one["memory"]["optimizer"] / 4
    assert four["device_days"] == 4 * four["days"]
    assert four["dollars"] == pytest.approx(24 * four["device_days"])


def test_what_cannot_be_meant_is_refused(tiny_recipe):
    for options, says in [
        ({"gpu": "h10"}, "did you mean 'h100'"),
        ({"gpu": "h100", "gpus": 0}, "0 GPUs"),
        ({"gpus": 8}, "Name them with --gpu"),
        ({"gpu": "h100", "gpus": 3}, "does not divide among 3 GPUs"),
        ({"price": -1.0}, "negative"),
    ]:
        with pytest.raises(GessoError, match=says):
            plan_recipe(tiny_recipe, **options)


def test_too_large_says_which_part(tiny_recipe, monkeypatch):
    def small(size):
        device = replace(accelerators.ACCELERATORS["t4"], memory=size)
        monkeypatch.setitem(accelerators.ACCELERATORS, "t4", device)

    monkeypatch.setattr(accelerators, "CONTEXT", 0.0)
    tiny_recipe.train.batch_size = 64
    need = plan_recipe(tiny_recipe, gpu="t4", table=False)["memory"]["peak"]
    small(0.5 * need)
    plan = plan_recipe(tiny_recipe, gpu="t4", table=False)
    assert not plan["fits"]
    assert "largest part is activations" in plan["notes"][0]
    assert "lower train.batch_size" in plan["notes"][0]
    small(1000.0)
    with pytest.raises(GessoError, match=r"one picture alone needs"):
        plan_recipe(tiny_recipe, gpu="t4", table=False)


def test_stages_are_summed_and_kept_for_their_runs(tiny_recipe, tmp_path):
    stages = [Stage(name=name, recipe=tiny_recipe) for name in ("one", "two")]
    result = plan_stages(stages, tmp_path / "run", gpu="h100", price=3.0, quiet=True)
    assert [plan["stage"] for plan in result["stages"]] == ["one", "two"]
    assert result["total"]["steps"] == 8
    assert result["total"]["dollars"] == pytest.approx(sum(p["dollars"] for p in result["stages"]))
    for folder in ("1-one", "2-two"):
        kept = json.loads((tmp_path / "run" / folder / "plan.json").read_text())
        assert kept["made_for"]["name"] == tiny_recipe.name


def test_the_command(call, tmp_path):
    code, out, err = call(
        *("plan", "pixart-alpha", "--gpu", "h200", "--gpus", 8, "--price", 3.5, *SMALL)
    )
    assert code == 0, err
    for text in ("pixel-dependency on 8 x h200", "device-days", "activations", "what fits", "all "):
        assert text in out
    assert (tmp_path / "runs" / "pixart-alpha" / "1-pixel-dependency" / "plan.json").exists()


def test_the_command_in_json_and_refused(call, tmp_path):
    code, out, err = call("plan", "demo", *SMALL, "--gpu", "l4", "--run", tmp_path / "r", "--json")
    assert code == 0, err
    result = json.loads(out)
    assert result["stages"][0]["device"] == "l4" and result["plan"] == str(tmp_path / "r/plan.json")
    code, out, err = call("plan", "demo", "--gpu", "l400")
    assert code == 2 and out == "" and "l40s" in err and len(err.splitlines()) == 1


def test_a_run_compares_itself_with_its_plan(tiny_recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "STEPS", 4)
    monkeypatch.setattr(compare, "WARM", 2)
    from gesso.train.run import train_recipe

    run = tmp_path / "run"
    plan_stages([Stage(name="", recipe=tiny_recipe)], run, seconds=0.1, quiet=True)
    said = []
    monkeypatch.setattr("gesso.train.log.RunLog.say", lambda self, text: said.append(text))
    train_recipe(tiny_recipe, run, quiet=True)
    line = next(text for text in said if text.startswith("step "))
    assert "planned" in line and "peak" in line and "ends at" in line
    entries = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    found = next(entry for entry in entries if "step_seconds" in entry)
    assert 0 < found["step_seconds"] < 60 and found["peak_bytes"] > 50e6


def moment(recipe, run: Path, said: list[str], step: int) -> Moment:
    return Moment(
        step=step, share=step / 100, seconds=0.5, pictures=4, run=run, recipe=recipe,
        device=torch.device("cpu"), latest={}, say=said.append, log=lambda values: None,
    )  # fmt: skip


def test_another_recipes_plan_is_not_compared(tiny_recipe, tmp_path):
    plan = {"devices": 1, "seconds_per_step": 0.4, "memory": {"peak": 2**30}}
    for made_for, says in [(tiny_recipe, "planned 400 ms"), (None, "train.batch_size = 8")]:
        if made_for is None:
            made_for = tiny_recipe.model_copy(deep=True)
            made_for.train.batch_size = 8
        kept = plan | {"made_for": made_for.model_dump(mode="json")}
        (tmp_path / "plan.json").write_text(json.dumps(kept))
        observer, said = compare.AgainstPlan(tmp_path), []
        for step in range(1, 30):
            observer.on_step(moment(tiny_recipe, tmp_path, said, step))
        assert len(said) == 1 and says in said[0]
    for broken in ("{", "[]", "{}"):
        (tmp_path / "plan.json").write_text(broken)
        observer, said = compare.AgainstPlan(tmp_path), []
        for step in range(1, 30):
            observer.on_step(moment(tiny_recipe, tmp_path, said, step))
        assert said == []


def test_encoders_shapes_are_known_without_their_weights():
    published = look_at(
        {"name": "kl", "path": "stabilityai/sd-vae-ft-ema"},
        {"name": "t5", "path": "DeepFloyd/t5-v1_1-xxl", "max_tokens": 120},
    )
    assert published.image.factor == 8 and published.image.raw_channels == 8
    assert published.text.dim == 4096 and published.text.max_tokens == 120
    assert published.text_parameters == 4_762_310_656
    assert len(published.notes) == 2
    per_token = 2 * (published.text_parameters - 32128 * 4096)
    assert published.text_flops(16) == pytest.approx(16 * per_token, rel=0.01)
    with pytest.raises(GessoError, match="give a local folder"):
        look_at({"name": "tiny"}, {"name": "hf", "path": "nobody/nothing"})


def test_accelerators_by_any_spelling():
    assert accelerators.find("RTX 4090")[0] == "rtx4090"
    assert accelerators.this("NVIDIA H100 80GB HBM3")[0] == "h100"
    assert accelerators.this("NVIDIA A100-SXM4-80GB")[0] == "a100"
    assert accelerators.this("Some other card") is None


def test_units():
    assert flops(1.5e15) == "1.5 PFLOP" and flops(2e6) == "2 MFLOP"
    assert memory(3 * 2**30) == "3 GiB" and memory(2**20) == "1 MiB"
    assert duration(0.0123) == "12.3 ms" and duration(3 * 86400) == "3.0 days"


def test_several_text_encoders_are_planned_with_their_published_shapes() -> None:
    recipe = load_recipe("sd3-medium")
    found = look_at({"name": "tiny"}, recipe.text_encoder)
    clip_l, clip_g, t5 = 123_650_304, 694_659_840, 4_762_310_656  # by transformers' own classes
    assert found.text_parameters == clip_l + clip_g + t5
    cond = found.text.prepare([""])
    assert cond.tokens.shape == (1, 77 + 77, 4096) and cond.pooled.shape == (1, 2048)
    assert (cond.tokens.shape[2], cond.pooled.shape[1]) == (
        recipe.backbone["text_dim"],
        recipe.backbone["pooled_dim"],
    )
