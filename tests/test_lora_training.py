"""Training a LoRA: it alone learns, on every backbone, and its file is the model's difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import processes
import pytest
import torch
from test_train import metrics
from train_fakes import DIM, Random, every_tensor, tiny_model, tiny_recipe

from gesso.adapters import lora
from gesso.config import Recipe, build
from gesso.diffusion.denoiser import Denoiser
from gesso.loading import load
from gesso.model import Model
from gesso.systems import miniature
from gesso.train import launch, loop
from gesso.train.run import train_recipe, with_vocabulary
from gesso.train.start import adapt
from gesso.types import Cond

RANK = 4
BACKBONES: dict[str, dict[str, Any]] = {
    "pixart": {"depth": 2, "hidden_size": 32, "num_heads": 2, "text_dim": DIM},
    "dit": {"depth": 2, "hidden_size": 32, "num_heads": 2, "num_classes": 5},
    "mmdit": {"depth": 2, "hidden_size": 32, "text_dim": DIM, "pooled_dim": DIM},
    "microdit": {"depth": 2, "hidden_size": 32, "head_dim": 16, "text_dim": DIM},
    "star": {"depth": 2, "hidden_size": 32, "text_dim": DIM, "pooled_dim": DIM, "scales": [1, 2]},
}


def recipe_for(adapter: Any = None, **parts: Any) -> Recipe:
    """Six steps of the tiny model's adapter."""
    train = {"log_every": 1, "lr": 1e-2, "save_every": 3, "keep": 9, **parts.pop("train", {})}
    return tiny_recipe(train, adapter=adapter or {"name": "lora", "rank": RANK}, **parts)


def adapted(recipe: Recipe) -> Model:
    model = tiny_model(recipe)
    with torch.no_grad():
        for p in model.backbone.parameters():  # away from its zeros
            p.add_(0.05 * torch.randn_like(p))
    adapt(model, recipe)
    return model


def train(recipe: Recipe, run: Path, resume: bool = False, fixed: bool = False) -> dict[str, Any]:
    with launch.start(recipe.train.processes, print, (), recipe.train.timeout) as group:
        data = Random(fixed)
        model = adapted(recipe)
        return loop.train(
            recipe, run, model=model, dataset=data, group=group, resume=resume, quiet=True
        )


@pytest.mark.parametrize("name", BACKBONES)
def test_every_linear_layer_of_every_backbone_learns(name: str) -> None:
    torch.manual_seed(0)
    backbone = build("backbones", {"name": name, "in_channels": 4, **BACKBONES[name]})
    for p in backbone.parameters():
        torch.nn.init.normal_(p, std=0.2)
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    cond = Cond(
        tokens=torch.randn(3, 5, DIM),
        mask=torch.ones(3, 5, dtype=torch.bool),
        pooled=torch.randn(3, DIM),
        label=torch.tensor([0, 1, 4]),
        size=torch.full((3, 2), 32.0),
        aspect=torch.ones(3, 1),
    )
    x, t = torch.randn(3, 4, 4, 4), torch.tensor([10.0, 500.0, 900.0])

    def run(network: Any) -> torch.Tensor:
        if name == "star":  # which predicts codes from embeddings of the scales before
            logits: torch.Tensor = network(x.flatten(2).mT[:, :4], cond)
            return logits
        return network(x, t, cond).value  # type: ignore[no-any-return]

    plain = run(backbone)
    lora.attach(lora.Config(rank=RANK, alpha=2), backbone)
    torch.testing.assert_close(run(backbone), plain)  # B is zero
    learns = {k: p for k, p in backbone.named_parameters() if p.requires_grad}
    assert learns and all(".lora_A." in k or ".lora_B." in k for k in learns)
    for key, p in learns.items():
        if ".lora_B." in key:
            torch.nn.init.normal_(p, std=0.2)
    out = run(backbone)
    out.square().sum().backward()
    deaf = [k for k, p in learns.items() if p.grad is None or not p.grad.abs().sum() > 0]
    # The last block of a joint transformer has a text stream that nothing reads.
    assert not [k for k in deaf if name != "mmdit"], deaf
    fused = build("backbones", {"name": name, "in_channels": 4, **BACKBONES[name]})
    fused.load_state_dict(lora.merged(backbone))
    torch.testing.assert_close(run(fused), out.detach(), atol=2e-4, rtol=1e-4)
    own = backbone.state_dict()
    assert all(torch.equal(v, own.get(k, own.get(_base(k)))) for k, v in before.items())


def _base(key: str) -> str:
    layer, _, what = key.rpartition(".")
    return f"{layer}.base_layer.{what}"


@pytest.mark.parametrize(
    "objective",
    [{"name": "denoise"}, {"name": "lcm", "steps": 10}, {"name": "sim", "fake_steps": 2}],
    ids=lambda o: o["name"],
)
def test_loss_falls_and_the_rest_stays(objective: dict[str, Any], tmp_path: Path) -> None:
    flow = {"path": "flow", "prediction": "flow"}
    falls = objective["name"] == "denoise"
    sample = {"guidance_scale": 1.0, "num_inference_steps": 1, "sampler": "one_step"}
    recipe = recipe_for(
        diffusion=flow,
        objective=objective,
        sample={**sample, "timesteps": (0.7,)} if objective["name"] == "sim" else {},
        train={"steps": 60 if falls else 10, "save_every": 60, "lr": 3e-2},
    )
    result = train(recipe, tmp_path / "run", fixed=True)
    if falls:
        losses = [m["loss"] for m in metrics(tmp_path / "run") if "loss" in m]
        assert sum(losses[-10:]) < 0.92 * sum(losses[:10])
    start = adapted(recipe)
    kept = every_tensor(Path(result["checkpoint"]))
    moved = still = 0
    for key, value in start.backbone.state_dict().items():
        same = torch.equal(value, kept[f"state/weights.safetensors:backbone.{key}"])
        learns = ".lora_A." in key or ".lora_B." in key
        moved, still = moved + (learns and not same), still + (not learns and same)
        assert learns or same, key
    assert moved and still
    text = start.text_encoder.state_dict()
    assert all(torch.equal(v, kept[f"model.safetensors:text_encoder.{k}"]) for k, v in text.items())


def test_resume_is_exact_and_adapters_are_the_state(tmp_path: Path) -> None:
    train(recipe_for(), tmp_path / "whole")
    train(recipe_for(train={"steps": 3}), tmp_path / "parts")
    last = train(recipe_for(), tmp_path / "parts", resume=True)["checkpoint"]
    a, b = every_tensor(tmp_path / "whole/checkpoints/step-000006"), every_tensor(Path(last))
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert any(k.startswith("lora/") for k in a)
    moments = {k for k in a if "optimizer" in k}
    assert moments and all("lora_" in k for k in moments)


def two(folder: Path) -> None:
    """What two processes do."""
    for shard in ("none", "full"):
        recipe = recipe_for(train={"shard": shard, "timeout": 60.0, "processes": 2})
        train(recipe, folder / shard)


def test_two_processes_are_one(tmp_path: Path) -> None:
    train(recipe_for(), tmp_path / "one")
    assert processes.wait(processes.start(2, two, tmp_path), 120) == [0, 0]
    one = every_tensor(tmp_path / "one/checkpoints/step-000006")
    served = ("model.safetensors:", "lora/adapter_model.safetensors:")
    for shard in ("none", "full"):
        other = every_tensor(tmp_path / shard / "checkpoints/step-000006")
        keys = [k for k in one if k.startswith(served)]
        assert keys and set(keys) == {k for k in other if k.startswith(served)}
        for key in keys:
            torch.testing.assert_close(other[key], one[key], atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base model and a run of its LoRA, on scenes."""
    folder = tmp_path_factory.mktemp("lora")
    small = ["backbone.depth=2", "backbone.hidden_size=32", "train.optimizer=adamw"]
    recipe = miniature("scenes", *small, "train.lr=1e-2", "sample.num_inference_steps=3")
    base = Model.from_recipe(with_vocabulary(recipe))
    with torch.no_grad():
        for p in base.backbone.parameters():
            p.add_(0.05 * torch.randn_like(p))
    (folder / "base").mkdir()
    base.save(folder / "base")
    recipe.init, recipe.adapter = str(folder / "base"), "lora"  # type: ignore[assignment]
    train_recipe(recipe, folder / "run", quiet=True)
    return folder / "base", folder / "run"


def test_the_file_on_the_base_is_the_trained_model(trained: tuple[Path, Path]) -> None:
    whole, base = load(trained[1]), load(trained[0])
    original = {k: v.clone() for k, v in base.model.state().items()}
    base.load_lora(trained[1])
    mine, theirs = base.model.state(), whole.model.state()
    assert all(torch.equal(mine[k], v) for k, v in theirs.items())
    changed = [k for k, v in original.items() if not torch.equal(v, theirs[k])]
    assert changed and all(k.startswith("backbone.blocks.") for k in changed)
    prompts = ["a red circle", "two stars"]
    images = [p(prompts, seed=1, output_type="pt").images for p in (whole, base)]
    assert torch.equal(*images)
    base.unfuse_lora()
    assert not torch.equal(base(prompts, seed=1, output_type="pt").images, images[0])


def test_validation_paints_what_is_served(trained: tuple[Path, Path]) -> None:
    from PIL import Image, ImageChops

    prompts = ["a red circle", "two stars"]
    served = load(trained[1])(prompts, seed=[0, 1]).images
    sheet = Image.open(next((trained[1] / "samples").glob("*.png"))).convert("RGB")
    for i, image in enumerate(served):  # there unfused: alike up to rounding
        cut = sheet.crop((32 * i, 0, 32 * i + 32, 32))
        assert max(high for _, high in ImageChops.difference(cut, image).getextrema()) <= 2


def test_peft_reads_the_file(trained: tuple[Path, Path]) -> None:
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
    from safetensors.torch import load_file

    folder = next((trained[1] / "checkpoints").glob("*/lora"))
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"
    base, whole = load(trained[0]).model.backbone, load(trained[1]).model.backbone
    inject_adapter_in_model(LoraConfig.from_pretrained(str(folder)), base)
    start = "base_model.model."
    state = load_file(folder / "adapter_model.safetensors")
    found = set_peft_model_state_dict(base, {k.removeprefix(start): v for k, v in state.items()})
    assert not found.unexpected_keys and not any("lora_" in k for k in found.missing_keys)
    x, t = torch.randn(2, 4, 4, 4), torch.tensor([100.0, 800.0])
    cond = Cond(tokens=torch.randn(2, 5, 32), mask=torch.ones(2, 5, dtype=torch.bool))
    cond = cond.replace(size=torch.full((2, 2), 32.0), aspect=torch.ones(2, 1))
    with torch.no_grad():
        torch.testing.assert_close(base(x, t, cond).value, whole(x, t, cond).value)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["adapter={name: lora, rank: 4096}"], "adapter.rank 4096 is above the width 128"),
        (["adapter={name: lora, rank: 200, targets: [attn.qkv]}"], "above the width 128 of blocks"),
        (["adapter={name: lora, targets: [attn.to_q]}"], "'attn.to_q', which no linear layer"),
        (["adapter={name: lora, ranks: 4}"], "unknown key 'ranks': did you mean 'rank'"),
        (["adapter=lore"], "no adapters called 'lore': did you mean 'lora'"),
        (["adapter=lora", "train.learns=['*qkv*']"], "has train.learns and an adapter"),
    ],
)
def test_bad_input_is_one_sentence(
    overrides: list[str], says: str, call: Any, tmp_path: Path
) -> None:
    run = ["--run", str(tmp_path / "run")]
    small = ["data.source.count=32", "init=scenes", "train.device=cpu", "train.processes=1"]
    code, _, err = call("train", "scenes", *run, *small, *overrides)
    assert code == 2 and says in err and "Traceback" not in err and err.count("\n") <= 2


def test_the_plan_counts_the_adapter_alone(call: Any) -> None:
    plan = ("plan", "scenes", "--gpu", "h100", "init=scenes", "data.source.count=64", "--json")
    code, out, err = call(*plan, "adapter={name: lora, rank: 4, targets: [attn.qkv]}")
    assert code == 0, err
    assert json.loads(out)["stages"][0]["trained"] == 6 * 4 * (128 + 384)


def test_targets_and_alpha() -> None:
    backbone = build("backbones", {"name": "pixart", "in_channels": 4, **BACKBONES["pixart"]})
    options = lora.Config(rank=2, alpha=6, targets=["attn.qkv", "blocks.1.mlp.*"])
    lora.attach(options, backbone)
    found = {k.removeprefix(lora.PREFIX).split(".lora_")[0] for k in lora.tensors(backbone)}
    assert found == {
        "blocks.0.attn.qkv",
        "blocks.1.attn.qkv",
        "blocks.1.mlp.fc1",
        "blocks.1.mlp.fc2",
    }
    layer = backbone.blocks[0].attn.qkv
    torch.nn.init.normal_(layer.lora_B.default.weight)
    change = lora.merged(backbone)["blocks.0.attn.qkv.weight"] - layer.base_layer.weight
    product = layer.lora_B.default.weight @ layer.lora_A.default.weight
    torch.testing.assert_close(change, 3 * product, atol=1e-5, rtol=1e-4)


def test_narrow_layers_are_left_out() -> None:
    options = {"name": "microdit", "in_channels": 4, **BACKBONES["microdit"], "experts": 2}
    backbone = build("backbones", options)
    lora.attach(lora.Config(rank=8), backbone)
    assert not any(".gate" in k for k in lora.tensors(backbone))  # of as many rows as experts


def test_copies_learn_what_the_original_learns() -> None:
    model = adapted(recipe_for())
    denoiser = Denoiser(model.backbone, model.path, "epsilon")
    for learns in (True, False):
        _, copied = denoiser.copied(learns=learns)
        named = dict(copied.named_parameters())
        wanted = {k for k, p in model.backbone.named_parameters() if p.requires_grad and learns}
        assert {k for k, p in named.items() if p.requires_grad} == wanted
