"""A control branch: silent at the start, the published recursion afterwards, and alone trained."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from published_fakes import pipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gesso
from gesso.adapters import deferred_mask
from gesso.adapters.controlnet import Config, ControlNet, attach
from gesso.backbones import dit, microdit, mmdit, pixart, star
from gesso.conditions import Captions
from gesso.config import Recipe
from gesso.convert import controlnet as convert
from gesso.convert.job import convert as convert_file
from gesso.convert.network import read_network
from gesso.convert.variants import Hints
from gesso.draws import Draws
from gesso.model import Model
from gesso.nn.init import WithoutWeights
from gesso.nn.position import sincos_2d
from gesso.objectives import denoise
from gesso.train.run import train_recipe
from gesso.train.start import make_model
from gesso.types import Batch, Cond, GessoError

SMALL = {"hidden_size": 32, "depth": 4}
NETWORKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "pixart": (pixart, {**SMALL, "num_heads": 2, "text_dim": 16}),
    "mixer": (pixart, {**SMALL, "num_heads": 2, "text_dim": 16, "mixer_depth": 1}),
    "mmdit": (mmdit, {**SMALL, "num_heads": 2, "text_dim": 16, "pooled_dim": 8, "dual_blocks": 1}),
    "dit": (dit, {**SMALL, "num_heads": 2, "num_classes": 5}),
    "microdit": (microdit, {**SMALL, "head_dim": 16, "text_dim": 16, "multiple_of": 16}),
}


def shaken(module: nn.Module, seed: int = 0, std: float = 0.15) -> Any:
    """Every parameter random, so that nothing is silent."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(std * torch.randn(p.shape, generator=g))
    return module


def network(name: str) -> Any:
    kind, options = NETWORKS[name]
    return shaken(kind.build(kind.Config(**options))).eval()


def inputs(side: int = 8) -> tuple[Tensor, Tensor, Cond]:
    g = torch.Generator().manual_seed(1)
    cond = Cond(
        tokens=torch.randn(2, 5, 16, generator=g),
        mask=torch.tensor([[True] * 5, [True] * 3 + [False] * 2]),
        pooled=torch.randn(2, 8, generator=g),
        label=torch.tensor([1, 3]),
        control=torch.randn(2, 4, side, side, generator=g),
    )
    return torch.randn(2, 4, side, side, generator=g), torch.tensor([3.0, 700.0]), cond


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_it_is_silent_at_first_then_steers_and_leaves_no_trace_without_a_control(name: str) -> None:
    backbone, (x, t, cond) = network(name), inputs()
    plain = cond.replace(control=None)
    before = backbone(x, t, plain).value
    branch = attach(Config(blocks=2), backbone)
    assert torch.equal(backbone(x, t, cond).value, before)  # bit for bit
    shaken(branch, 5)
    steered = backbone(x, t, cond).value
    assert (steered - before).abs().max() > 1e-2
    assert torch.equal(backbone(x, t, plain).value, before)
    none = cond.replace(control_scale=torch.zeros(2, 1))
    half = cond.replace(control_scale=torch.tensor([[1.0], [0.0]]))  # each row has its own
    assert torch.equal(backbone(x, t, none).value, before)
    assert torch.allclose(backbone(x, t, half).value[0], steered[0], atol=1e-6)
    assert torch.allclose(backbone(x, t, half).value[1], before[1], atol=1e-6)
    if hasattr(backbone, "prepare"):  # the copies read the text with weights of their own
        assert torch.allclose(backbone(x, t, backbone.prepare(cond, t)).value, steered, atol=1e-5)


def branch_by_hand(
    branch: ControlNet, wiring: str, z: Tensor, h_in: Tensor, blocks: Any, run: Any
) -> Tensor:
    """The published recursion: h after all blocks. `run(block, h)` is one block."""
    h = run(blocks[0], h_in)
    c = (h if wiring == "released" else h_in) + branch[0].before_proj(z)
    for i in range(1, len(blocks)):
        if i <= len(branch):
            c = run(branch[i - 1].copied_block, c)
            h = h + branch[i - 1].after_proj(c)
        h = run(blocks[i], h)
    return h


@pytest.mark.parametrize("wiring", ["released", "ordinary"])
@torch.no_grad()
def test_pixart_follows_the_published_recursion(wiring: Any) -> None:
    backbone, (x, t, cond) = network("pixart"), inputs()
    branch = shaken(attach(Config(blocks=3, wiring=wiring), backbone), 5)
    position = sincos_2d(4, 4, 32, 8, 1.0)
    time = backbone.t_embedder(t)
    text = backbone.y_embedder(cond.tokens)
    bias = torch.where(cond.mask, 0.0, -1e4)[:, None, None]
    rest = (text, bias, backbone.t_block(time).view(2, 6, 32), (4, 4))

    def run(block: nn.Module, h: Tensor) -> Tensor:
        return block.forward(h, *rest)  # past the hooks

    h = branch_by_hand(
        branch,
        wiring,
        backbone.x_embedder(cond.control) + position,
        backbone.x_embedder(x) + position,
        backbone.blocks,
        run,
    )
    patches = backbone.final_layer(h, time)
    found = pixart.unpatchify(patches, 8, 8, 2).chunk(2, dim=1)[0]
    assert torch.allclose(backbone(x, t, cond).value, found, atol=1e-5)


@torch.no_grad()
def test_on_two_streams_a_copy_reads_the_text_that_its_block_reads() -> None:
    backbone, (x, t, cond) = network("mmdit"), inputs()
    cond = cond.replace(mask=None)
    branch = shaken(attach(Config(blocks=2), backbone), 5)
    c = backbone.t_embedder(t) + backbone.y_embedder(cond.pooled)
    h, text = backbone.embed(x), backbone.context_embedder(cond.tokens)
    texts = [text]
    blocks = backbone.joint_blocks
    h, text = blocks[0].forward(h, text, c, None)
    s = h + branch[0].before_proj(backbone.embed(cond.control))
    for i in range(1, 4):
        texts.append(text)
        if i <= 2:
            s = branch[i - 1].copied_block(s, texts[i - 1], c, None)[0]
            h = h + branch[i - 1].after_proj(s)
        h, text = blocks[i].forward(h, text, c, None)
    found = mmdit.unpatchify(backbone.final_layer(h, c), 8, 8, 2)
    assert torch.allclose(backbone(x, t, cond).value, found, atol=1e-5)


def test_its_size_at_xl_is_the_published_one() -> None:
    for name, total in (("xl-512", 905_773_856), ("xl-1024", 906_266_912)):
        with WithoutWeights():
            backbone = pixart.build(pixart.SIZES[name])
            branch = attach(Config(blocks=13), backbone)
        assert sum(p.numel() for p in branch.parameters()) == 294_917_760
        null = backbone.y_embedder.y_embedding.numel()  # which the authors keep as a buffer
        assert sum(p.numel() for p in backbone.parameters()) - null == total


@torch.no_grad()
def test_a_deep_copy_has_a_branch_of_its_own() -> None:
    backbone, (x, t, cond) = network("pixart"), inputs()
    shaken(attach(Config(blocks=2), backbone), 5)
    twin = copy.deepcopy(backbone)
    steered = backbone(x, t, cond).value
    assert torch.equal(twin(x, t, cond).value, steered)
    for p in twin.controlnet.parameters():
        p.zero_()
    assert torch.equal(backbone(x, t, cond).value, steered)
    assert torch.equal(twin(x, t, cond).value, backbone(x, t, cond.replace(control=None)).value)


def test_what_does_not_fit_is_refused_and_nothing_lingers() -> None:
    backbone, (x, t, cond) = network("pixart"), inputs()
    attach(Config(blocks=2), backbone)
    with pytest.raises(GessoError, match="control latent is 4x8x4 where the picture's is 4x8x8"):
        backbone(x, t, cond.replace(control=cond.control[..., :4]))
    with pytest.raises(GessoError, match="text"):
        backbone(x, t, cond.replace(tokens=None))  # fails inside: the hook after it still runs
    assert backbone.controlnet._call is None
    with pytest.raises(GessoError, match="blocks is 5, but this pixart has 4: set 1 to 4"):
        attach(Config(blocks=5), network("pixart"))
    with pytest.raises(GessoError, match="star has no hook points for a control branch"):
        attach(Config(), star.build(star.Config()))


def test_patches_that_are_masked_are_masked_of_the_control_too() -> None:
    backbone, (x, t, cond) = network("pixart").train(), inputs()
    branch = shaken(attach(Config(blocks=2), backbone), 5)
    kept = torch.tensor([[0, 3, 5], [1, 2, 15]])
    masked = deferred_mask.Masked(backbone, kept)
    out = masked(x, t, cond)
    hidden = ~out.aux["kept"].expand_as(cond.control)
    other = torch.where(hidden, torch.randn_like(x), cond.control)  # what is dropped has no say
    assert torch.equal(masked(x, t, cond.replace(control=other)).value, out.value)
    out.value.sum().backward()
    assert branch[0].before_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("null", ["empty", "learned"])
def test_caption_dropout_keeps_the_control(tiny_model: Model, null: Any) -> None:
    text = tiny_model.text_encoder
    cond = text.prepare(["a red circle", "two stars"])
    cond.control = torch.randn(2, 4, 8, 8)
    spec = pixart.Config(null_tokens=12, text_dim=32, hidden_size=32, depth=1, num_heads=2)
    captions = Captions(text, pixart.build(spec), null)
    found = captions.dropped(cond, 1.0, Draws("cpu", 0))
    assert torch.equal(found.control, cond.control)
    assert not torch.equal(found.tokens, text(cond).tokens[:, : found.tokens.shape[1]])
    assert torch.equal(captions.both(cond).control, torch.cat([cond.control] * 2))


def controlled(recipe: Recipe, init: Path | None) -> Recipe:
    adapter = {"name": "controlnet", "condition": {"name": "canny"}, "blocks": 1}
    changes = {"init": None if init is None else str(init), "adapter": adapter}
    return recipe.model_copy(update=changes)


def test_it_alone_trains_and_its_folder_is_whole(
    tiny_recipe: Recipe, model_folder: Path, tmp_path: Path
) -> None:
    tiny_recipe.text_encoder = {k: v for k, v in tiny_recipe.text_encoder.items() if k != "words"}
    tiny_recipe.validation.prompts = []
    done = train_recipe(controlled(tiny_recipe, model_folder), tmp_path / "run", quiet=True)
    before = load_file(model_folder / "model.safetensors")
    after = load_file(Path(done["checkpoint"]) / "model.safetensors")
    assert all(torch.equal(after[k], v) for k, v in before.items())  # text encoder included
    added = {k: v for k, v in after.items() if k not in before}
    assert added and all(k.startswith("backbone.controlnet.0.") for k in added)
    assert all(
        added[f"backbone.controlnet.0.{k}.weight"].any() for k in ("before_proj", "after_proj")
    )
    copied = "backbone.controlnet.0.copied_block."
    moved = [
        k
        for k in added
        if k.startswith(copied)
        and not torch.equal(added[k], before["backbone.blocks.0." + k.removeprefix(copied)])
    ]
    assert moved  # it started from the model's own block and went on
    described = json.loads((Path(done["checkpoint"]) / "gesso.json").read_text())
    assert described["adapter"]["condition"] == {"name": "canny"}

    pipe = gesso.load(done["checkpoint"])
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in pipe.model.backbone.controlnet.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=g))
    edges = torch.zeros(64, 64, dtype=torch.uint8).numpy()
    edges[20:40, 20] = 255
    free, steered, twice = (
        pipe("a red circle", seed=3, output_type="np", **given).images
        for given in (
            {},
            {"control_image": edges},
            {"control_image": [edges], "control_scale": 2.0},
        )
    )
    base = gesso.load(model_folder)("a red circle", seed=3, output_type="np").images
    assert (free == base).all()
    assert abs(steered - base).max() > 0.01 and abs(twice - steered).max() > 0.01


def test_gradients_reach_the_branch_only(tiny_recipe: Recipe, model_folder: Path) -> None:
    model = make_model(controlled(tiny_recipe, model_folder))
    shaken(model.backbone.controlnet, 5)
    cond = model.text_encoder.prepare(["a red circle", "two stars"])
    cond.control = torch.randn(2, 4, 16, 16)
    batch = Batch(["a", "b"], cond, latents=torch.randn(2, 4, 16, 16))
    denoise.build(denoise.Config(), model).loss("denoise", batch, Draws("cpu", 0)).loss.backward()
    for name, p in model.backbone.named_parameters():
        assert (p.grad is not None) == name.startswith("controlnet."), name
    assert all(p.grad is None for p in model.text_encoder.parameters())


# Released weights.


class Adapter(nn.Module):
    """The names of diffusers' research example, around its own blocks."""

    def __init__(self, blocks: list[nn.Module], dim: int) -> None:
        super().__init__()
        self.controlnet_blocks = nn.ModuleList(nn.Module() for _ in blocks)
        for i, (own, block) in enumerate(zip(self.controlnet_blocks, blocks, strict=True)):
            own.transformer_block = copy.deepcopy(block)
            own.after_proj = nn.Linear(dim, dim)
            if i == 0:
                own.before_proj = nn.Linear(dim, dim)


@torch.no_grad()
def peer(transformer: Any, adapter: Adapter, x: Tensor, t: Tensor, cond: Cond) -> Tensor:
    """diffusers' transformer with the released wiring put around its blocks, by hand."""
    c = None

    def before(i: int) -> Any:
        def hook(block: nn.Module, args: Any, kwargs: Any) -> Any:
            nonlocal c
            own = adapter.controlnet_blocks[i - 1]
            if i == 1:
                c = args[0] + own.before_proj(transformer.pos_embed(cond.control))
            c = own.transformer_block(c, **kwargs)
            return (args[0] + own.after_proj(c),), kwargs

        return hook

    handles = [
        transformer.transformer_blocks[i].register_forward_pre_hook(before(i), with_kwargs=True)
        for i in range(1, len(adapter.controlnet_blocks) + 1)
    ]
    out = transformer(
        x,
        encoder_hidden_states=cond.tokens,
        timestep=t,
        added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        encoder_attention_mask=cond.mask,
    ).sample
    for handle in handles:
        handle.remove()
    return out.chunk(2, dim=1)[0]


def test_released_branches_load_and_compute_what_diffusers_does(tmp_path: Path) -> None:
    pipe = pipeline(tmp_path / "base", num_layers=4)
    adapter = shaken(Adapter(list(pipe.transformer.transformer_blocks)[:2], 24), 7)
    (tmp_path / "adapter").mkdir()
    theirs = adapter.state_dict()
    save_file(theirs, tmp_path / "adapter" / "diffusion_pytorch_model.safetensors")
    g = torch.Generator().manual_seed(2)
    x, control = torch.randn(2, 2, 4, 8, 8, generator=g)
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    cond = Cond(tokens=torch.randn(2, 4, 16, generator=g), mask=mask, control=control)
    t = torch.tensor([10.0, 730.0])
    want = peer(pipe.transformer, adapter, x, t, cond)

    found = gesso.load(tmp_path / "base", controlnet=tmp_path / "adapter").model
    with torch.no_grad():
        assert (
            found.backbone(x, t, cond).value - want
        ).abs().max() < 1e-5 * want.abs().max() + 1e-6
    assert found.description.adapter is not None and found.description.adapter["blocks"] == 2

    # The original: everything in one file, the base behind `base_model.`.
    state = found.backbone.state_dict()
    base, branch = convert.split(state)
    original = {f"base_model.{k}": v for k, v in base.items()} | branch
    original["base_model.pos_embed"] = torch.zeros(1, 16, 24)
    torch.save({"state_dict": original}, tmp_path / "whole.pth")
    spec = {k: v for k, v in found.description.backbone.items() if k != "name"}
    hints = Hints(saved=pixart.Config(**spec))  # it is no published size
    read = read_network([tmp_path / "whole.pth"], hints)
    assert read.adapter == found.description.adapter
    again = read.build().state_dict()
    assert again.keys() == state.keys() and all(torch.equal(again[k], v) for k, v in state.items())
    round_trip = convert.to_diffusers(branch)
    assert round_trip.keys() == theirs.keys()
    assert all(torch.equal(round_trip[k], v) for k, v in theirs.items())

    # A model folder and back to the original's names.
    (tmp_path / "model").mkdir()
    found.save(tmp_path / "model")
    said = convert_file(tmp_path / "model", tmp_path / "out.safetensors", "original")
    written = load_file(tmp_path / "out.safetensors")
    assert said["largest_difference"] == 0 and written.keys() == original.keys()
    with pytest.raises(GessoError, match="ComfyUI has no place for the controlnet"):
        convert_file(tmp_path / "model", tmp_path / "c.safetensors", "comfyui")


def test_released_shapes_at_xl() -> None:
    from diffusers import PixArtTransformer2DModel

    with torch.device("meta"):
        backbone = pixart.build(pixart.SIZES["xl-1024"])
        attach(Config(blocks=13), backbone)
        theirs = Adapter(list(PixArtTransformer2DModel().transformer_blocks)[:13], 1152)
    _, branch = convert.split(backbone.state_dict())
    assert {f"controlnet.{i}.after_proj.weight" for i in range(13)} <= branch.keys()
    shapes = {k: v.shape for k, v in theirs.state_dict().items()}
    assert {k: v.shape for k, v in convert.to_diffusers(branch).items()} == shapes
    back = convert.from_diffusers(theirs.state_dict())
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in branch.items()}


def test_broken_branches_are_refused_in_one_sentence(tmp_path: Path) -> None:
    pipe = pipeline(tmp_path / "base")
    adapter = Adapter(list(pipe.transformer.transformer_blocks)[:1], 24)
    tensors = adapter.state_dict()
    del tensors["controlnet_blocks.0.after_proj.bias"]
    save_file(tensors, tmp_path / "lacks.safetensors")
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name, said in (
        ("none.safetensors", "There is no file or folder"),
        ("other.safetensors", "holds no control branch"),
        ("lacks.safetensors", r"lacks the tensors controlnet\.0\.after_proj\.bias"),
    ):
        with pytest.raises(GessoError, match=said):
            gesso.load(tmp_path / "base", controlnet=tmp_path / name)
    with pytest.raises(GessoError, match="scenes is a gesso model: leave out controlnet"):
        gesso.load("scenes", controlnet=tmp_path / "lacks.safetensors")
