"""DiT against diffusers' DiTTransformer2DModel, its labels, and published checkpoints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from gesso.backbones.dit import SIZES, Config, DiT
from gesso.convert.dit import read_dit
from gesso.encoders.text import classes
from gesso.nn.position import sincos_2d
from gesso.types import Cond, GessoError

SMALL = {"depth": 2, "hidden_size": 48, "num_heads": 4, "num_classes": 10, "base_size": 4}


def randomised(config: Config, seed: int = 0) -> DiT:
    """A model with every parameter random, so that no branch is silent."""
    torch.manual_seed(seed)
    model = DiT(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    return model.eval()


def into_diffusers(model: DiT) -> nn.Module:
    """diffusers' class with the model's weights. It is made to agree in what it does otherwise:
    norms with eps 1e-5, an embedder of time and class in each block, frequencies over 127."""
    from diffusers import DiTTransformer2DModel
    from diffusers.models.embeddings import Timesteps

    c = model.config
    peer = DiTTransformer2DModel(
        num_attention_heads=c.num_heads,
        attention_head_dim=c.hidden_size // c.num_heads,
        in_channels=4,
        out_channels=8,
        num_layers=c.depth,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=c.num_classes,
        norm_eps=1e-6,
    ).eval()
    ours, state = model.state_dict(), {}
    for kind in ("weight", "bias"):
        state[f"pos_embed.proj.{kind}"] = ours[f"x_embedder.proj.{kind}"]
        state[f"proj_out_1.{kind}"] = ours[f"final_layer.adaLN_modulation.1.{kind}"]
        state[f"proj_out_2.{kind}"] = ours[f"final_layer.linear.{kind}"]
        for i in range(c.depth):
            mine, its = f"blocks.{i}.", f"transformer_blocks.{i}."
            embedder = f"{its}norm1.emb.timestep_embedder."
            state[f"{embedder}linear_1.{kind}"] = ours[f"t_embedder.mlp.0.{kind}"]
            state[f"{embedder}linear_2.{kind}"] = ours[f"t_embedder.mlp.2.{kind}"]
            state[f"{its}norm1.linear.{kind}"] = ours[f"{mine}adaLN_modulation.1.{kind}"]
            parts = ours[f"{mine}attn.qkv.{kind}"].chunk(3)
            for name, part in zip("qkv", parts, strict=True):
                state[f"{its}attn1.to_{name}.{kind}"] = part
            state[f"{its}attn1.to_out.0.{kind}"] = ours[f"{mine}attn.proj.{kind}"]
            state[f"{its}ff.net.0.proj.{kind}"] = ours[f"{mine}mlp.fc1.{kind}"]
            state[f"{its}ff.net.2.{kind}"] = ours[f"{mine}mlp.fc2.{kind}"]
    for i in range(c.depth):
        table = f"transformer_blocks.{i}.norm1.emb.class_embedder.embedding_table.weight"
        state[table] = ours["y_embedder.embedding_table.weight"]
    found = peer.load_state_dict(state, strict=False)
    assert not found.unexpected_keys and found.missing_keys in ([], ["pos_embed.pos_embed"])
    for block in peer.transformer_blocks:
        block.norm1.emb.time_proj = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)
    return peer


def test_forward_equals_diffusers() -> None:
    model = randomised(Config(**SMALL))
    peer = into_diffusers(model)
    x, t, label = (
        torch.randn(3, 4, 8, 8),
        torch.tensor([0.0, 417.0, 999.0]),
        torch.tensor([3, 9, 10]),
    )
    with torch.no_grad():
        out = model(x, t, Cond(label=label))
        theirs = peer(x, timestep=t, class_labels=label).sample
    both = torch.cat([out.value, out.aux["variance"]], dim=1)
    assert both.std() > 0.1
    assert (both - theirs).abs().max() <= 1e-5 * both.abs().max()


@pytest.mark.parametrize(("name", "millions"), [("s-2", 33), ("b-2", 130), ("l-2", 458)])
def test_published_sizes(name: str, millions: int) -> None:
    assert abs(published_count(name) / 1e6 - millions) < 1  # as the paper rounds


def test_published_size_of_xl() -> None:
    assert published_count("xl-2") == 675_129_632


def published_count(name: str) -> int:
    """Parameters as the authors count them: with the position table, which they store."""
    with torch.device("meta"):
        model = DiT(SIZES[name])
    positions = SIZES[name].base_size ** 2 * SIZES[name].hidden_size
    return sum(p.numel() for p in model.parameters()) + positions


def test_initial_output_is_zero_and_learns() -> None:
    model = DiT(Config(**SMALL))
    out = model(
        torch.randn(2, 4, 8, 8), torch.tensor([0.0, 999.0]), Cond(label=torch.tensor([0, 10]))
    )
    assert not out.value.any() and not out.aux["variance"].any()
    out.value.sum().backward()
    assert model.final_layer.linear.weight.grad.abs().sum() > 0


def test_no_class_is_the_last_row() -> None:
    model, x, t = randomised(Config(**SMALL)), torch.randn(2, 4, 8, 8), torch.ones(2)
    cond = Cond(label=torch.tensor([3, 4]))
    null = model.null(cond)
    assert null.label.tolist() == [10, 10] and cond.label.tolist() == [3, 4]
    with torch.no_grad():
        before = model(x, t, cond).value, model(x, t, null).value
        model.y_embedder.embedding_table.weight[10] += 1
        after = model(x, t, cond).value, model(x, t, null).value
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


@pytest.mark.parametrize("label", [-1, 11])
def test_labels_out_of_range_are_refused(label: int) -> None:
    model = DiT(Config(**SMALL))
    with pytest.raises(GessoError, match=f"label {label} is out of range: this dit has 10 classes"):
        model(torch.zeros(2, 4, 8, 8), torch.zeros(2), Cond(label=torch.tensor([0, label])))
    with pytest.raises(GessoError, match="takes class labels"):
        model(torch.zeros(2, 4, 8, 8), torch.zeros(2), Cond())


# Published checkpoints.


def original(model: DiT) -> dict[str, Tensor]:
    """The model's tensors as the authors store them."""
    c = model.config
    table = sincos_2d(c.base_size, c.base_size, c.hidden_size, c.base_size)
    return {**model.state_dict(), "pos_embed": table[None]}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_published_file_is_read(tmp_path: Path, suffix: str) -> None:
    from safetensors.torch import save_file

    model = randomised(Config(**{**SMALL, "hidden_size": 384, "num_heads": 6}))
    file = tmp_path / f"DiT{suffix}"
    if suffix == ".pt":
        torch.save(original(model), file)
    else:
        save_file(original(model), file)
    spec, state = read_dit(file)
    again = DiT(Config(**{k: v for k, v in spec.items() if k != "name"})).eval()
    again.load_state_dict(state, strict=True)
    x, t, cond = torch.randn(1, 4, 8, 8), torch.tensor([300.0]), Cond(label=torch.tensor([7]))
    with torch.no_grad():
        assert torch.equal(model(x, t, cond).value, again(x, t, cond).value)


def test_keys_of_the_published_file() -> None:
    """Names and shapes of DiT-XL-2-256x256.pt, as its authors' code makes them."""
    block = {
        "attn.qkv": (3456, 1152),
        "attn.proj": (1152, 1152),
        "mlp.fc1": (4608, 1152),
        "mlp.fc2": (1152, 4608),
        "adaLN_modulation.1": (6912, 1152),
    }
    layers = {f"blocks.{i}.{name}": shape for i in range(28) for name, shape in block.items()}
    layers |= {
        "x_embedder.proj": (1152, 4, 2, 2),
        "t_embedder.mlp.0": (1152, 256),
        "t_embedder.mlp.2": (1152, 1152),
        "final_layer.linear": (32, 1152),
        "final_layer.adaLN_modulation.1": (2304, 1152),
    }
    expected = {f"{name}.weight": shape for name, shape in layers.items()}
    expected |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    expected |= {"y_embedder.embedding_table.weight": (1001, 1152)}
    with torch.device("meta"):
        state = DiT(SIZES["xl-2"]).state_dict()
    assert {k: tuple(v.shape) for k, v in state.items()} == expected


def test_other_files_are_refused(tmp_path: Path) -> None:
    torch.save({"t_block.1.weight": torch.zeros(2, 2)}, tmp_path / "x.pt")
    with pytest.raises(GessoError, match="none of a DiT's tensors"):
        read_dit(tmp_path / "x.pt")
    tensors = original(randomised(Config(**SMALL)))
    torch.save(tensors | {"pos_embed": tensors["pos_embed"] + 1}, tmp_path / "y.pt")
    with pytest.raises(GessoError, match="positions of its own"):
        read_dit(tmp_path / "y.pt")


# Class names as prompts.


def test_class_names_and_numbers_are_prompts() -> None:
    encoder = classes.build(classes.Config(classes=["Red_Circle", "tabby cat", "7"]))
    cond = encoder(encoder.prepare(["red  circle", "tabby_cat", "", "7", "1"]))
    assert cond.label.tolist() == [0, 1, 3, 2, 1]
    assert cond.ids is None and cond.mask is None and len(encoder.prepare([])) == 0
    with pytest.raises(GessoError, match="class 3 is out of range: this model knows 3 classes"):
        encoder.prepare(["3"])
    with pytest.raises(GessoError, match="did you mean 'tabby cat'"):
        encoder.prepare(["tabby rat"])


def test_class_lists_that_cannot_be_meant() -> None:
    with pytest.raises(GessoError, match="no classes"):
        classes.build(classes.Config())
    with pytest.raises(GessoError, match="'a b' twice"):
        classes.build(classes.Config(classes=["a b", "c", "A_B"]))
