"""PixArt against diffusers' PixArtTransformer2DModel on shared random weights, and its contract."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gesso.backbones.pixart import SIZES, Config, PixArt
from gesso.nn.position import sincos_2d
from gesso.types import Cond, GessoError

SMALL = {"depth": 2, "hidden_size": 48, "num_heads": 4, "text_dim": 20}


def randomised(config: Config, seed: int = 0) -> PixArt:
    """A model with every parameter random, so that no branch is silent."""
    torch.manual_seed(seed)
    model = PixArt(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    return model.eval()


def text(batch: int = 2, length: int = 7, width: int = 20, seed: int = 1) -> Cond:
    g = torch.Generator().manual_seed(seed)
    mask = torch.arange(length)[None] < torch.tensor([[length - 3], [length]] * batch)[:batch]
    size = 512 * torch.rand(batch, 2, generator=g) + 256
    return Cond(
        tokens=torch.randn(batch, length, width, generator=g),
        mask=mask,
        size=size,
        aspect=size[:, :1] / size[:, 1:],
    )


def diffusers_state(model: PixArt) -> dict[str, Tensor]:
    """The model's weights under diffusers' names (fact: PixArt's conversion table)."""
    renames = {
        "x_embedder.proj": "pos_embed.proj",
        "y_embedder.y_proj.fc1": "caption_projection.linear_1",
        "y_embedder.y_proj.fc2": "caption_projection.linear_2",
        "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
        "csize_embedder.mlp.0": "adaln_single.emb.resolution_embedder.linear_1",
        "csize_embedder.mlp.2": "adaln_single.emb.resolution_embedder.linear_2",
        "ar_embedder.mlp.0": "adaln_single.emb.aspect_ratio_embedder.linear_1",
        "ar_embedder.mlp.2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
        "t_block.1": "adaln_single.linear",
        "final_layer.linear": "proj_out",
        "final_layer.scale_shift_table": "scale_shift_table",
        "attn.proj": "attn1.to_out.0",
        "cross_attn.q_linear": "attn2.to_q",
        "cross_attn.proj": "attn2.to_out.0",
        "mlp.fc1": "ff.net.0.proj",
        "mlp.fc2": "ff.net.2",
    }
    state = {}
    for key, value in model.state_dict().items():
        if key == "y_embedder.y_embedding":
            continue
        if not key.startswith("blocks."):
            stem = next(s for s in renames if key.startswith(s))
            state[key.replace(stem, renames[stem])] = value
            continue
        _, i, rest = key.split(".", 2)
        prefix = f"transformer_blocks.{i}."
        kind = rest.rsplit(".", 1)[-1]
        if rest.startswith("attn.qkv"):
            for name, part in zip("qkv", value.chunk(3), strict=True):
                state[f"{prefix}attn1.to_{name}.{kind}"] = part
        elif rest.startswith("cross_attn.kv_linear"):
            for name, part in zip("kv", value.chunk(2), strict=True):
                state[f"{prefix}attn2.to_{name}.{kind}"] = part
        else:
            stem = rest if "table" in rest else rest.rsplit(".", 1)[0]
            state[prefix + rest.replace(stem, renames.get(stem, stem))] = value
    return state


@pytest.mark.parametrize(
    ("scale", "height", "width", "micro"),
    [(0.5, 8, 8, False), (1, 8, 8, True), (1, 12, 6, False), (2, 16, 16, True), (4, 6, 20, True)],
)
def test_forward_equals_diffusers(scale: float, height: int, width: int, micro: bool) -> None:
    from diffusers import PixArtTransformer2DModel

    config = Config(**SMALL, base_size=4, interpolation_scale=scale, micro_conditions=micro)
    model = randomised(config)
    peer = PixArtTransformer2DModel(
        num_attention_heads=4,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=48,
        caption_channels=20,
        sample_size=8,
        interpolation_scale=scale,
        use_additional_conditions=micro,
    ).eval()
    peer.load_state_dict(diffusers_state(model), strict=True)
    x = torch.randn(2, 4, height, width)
    t, cond = torch.tensor([3.25, 998.0]), text()
    with torch.no_grad():
        ours = model(x, t, cond)
        theirs = peer(
            x,
            encoder_hidden_states=cond.tokens,
            timestep=t,
            added_cond_kwargs={"resolution": cond.size, "aspect_ratio": cond.aspect}
            if micro
            else {"resolution": None, "aspect_ratio": None},
            encoder_attention_mask=cond.mask,
        ).sample
    both = torch.cat([ours.value, ours.aux["variance"]], dim=1)
    assert both.std() > 0.1
    assert (both - theirs).abs().max() <= 1e-5 * max(1.0, both.abs().max().item())


@pytest.mark.parametrize("scale", [0.5, 1, 2, 4])
def test_positions_equal_diffusers(scale: float) -> None:
    from diffusers.models.embeddings import get_2d_sincos_pos_embed

    for grid in ((8, 8), (16, 16), (6, 10)):
        theirs = get_2d_sincos_pos_embed(48, grid, base_size=8, interpolation_scale=scale)
        assert torch.allclose(sincos_2d(*grid, 48, 8, scale), theirs.float(), atol=1e-6)


def test_positions_put_the_horizontal_axis_first() -> None:
    wide = sincos_2d(3, 5, 16, 4).view(3, 5, 16)
    tall = sincos_2d(5, 3, 16, 4).view(5, 3, 16)
    assert torch.equal(wide[:, :, :8], tall.transpose(0, 1)[:, :, 8:])
    assert (wide[0, :, :8] == wide[2, :, :8]).all()  # the first half does not see the row


def test_positions_made_while_sampling_serve_training() -> None:
    sincos_2d.cache_clear()
    model = PixArt(Config(**SMALL))
    with torch.inference_mode():
        model(torch.randn(1, 4, 4, 4), torch.zeros(1), text(1))
    model(torch.randn(1, 4, 4, 4), torch.zeros(1), text(1)).value.sum().backward()
    assert model.final_layer.linear.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("name", "parameters", "keys"),
    [("xl-256", 610_856_096, 437), ("xl-1024", 611_349_152, 445), ("sigma-2k", 610_856_096, 437)],
)
def test_published_sizes(name: str, parameters: int, keys: int) -> None:
    with torch.device("meta"):
        model = PixArt(SIZES[name])
    count = sum(p.numel() for k, p in model.named_parameters() if "y_embedding" not in k)
    assert count == parameters
    assert len(model.state_dict()) + 1 == keys  # the authors also store the position table


def test_initial_output_is_zero_and_learns() -> None:
    model = PixArt(Config(**SMALL))
    out = model(torch.randn(2, 4, 8, 8), torch.tensor([0.0, 999.0]), text())
    assert not out.value.any() and not out.aux["variance"].any()
    out.value.sum().backward()
    assert model.final_layer.linear.weight.grad.abs().sum() > 0


def test_padding_changes_nothing_and_a_word_does() -> None:
    model, x, t, cond = randomised(Config(**SMALL)), torch.randn(1, 4, 8, 8), torch.ones(1), text(1)
    with torch.no_grad():
        base = model(x, t, cond).value
        noise = torch.randn_like(cond.tokens)
        padded = torch.where(cond.mask[..., None], cond.tokens, noise)
        assert torch.equal(model(x, t, cond.replace(tokens=padded)).value, base)
        longer = Cond.cat([cond, text(1, length=12)])[0]  # as a longer neighbour pads it
        assert torch.allclose(model(x, t, longer).value, base, atol=1e-5)
        other = torch.where(cond.mask[..., None], noise, cond.tokens)
        assert not torch.allclose(model(x, t, cond.replace(tokens=other)).value, base, atol=1e-2)
        assert model(x, t, cond.replace(mask=torch.zeros_like(cond.mask))).value.isfinite().all()


def test_null_is_learned_and_keeps_the_prompts_mask() -> None:
    model, cond = randomised(Config(**SMALL, null_tokens=9)), text()
    null = model.null(cond)
    assert torch.equal(null.mask, cond.mask) and torch.equal(null.size, cond.size)
    assert torch.equal(null.tokens[1], model.y_embedder.y_embedding[:7])
    model(torch.randn(2, 4, 4, 4), torch.ones(2), null).value.sum().backward()
    assert model.y_embedder.y_embedding.grad[:7].abs().sum() > 0
    with pytest.raises(GessoError, match="12 tokens"):
        model.null(text(length=12))
    with pytest.raises(GessoError, match="null_tokens"):
        PixArt(Config(**SMALL)).null(cond)


@pytest.mark.parametrize(
    ("options", "shape", "changes", "message"),
    [
        ({}, (4, 7, 8), {}, "divisible"),
        ({}, (3, 8, 8), {}, "4 channels"),
        ({}, (4, 8, 8), {"tokens": None}, "text tokens"),
        ({}, (4, 8, 8), {"tokens": torch.zeros(2, 7, 21)}, "width 20"),
        ({"micro_conditions": True}, (4, 8, 8), {"size": None}, "micro-conditions"),
    ],
)
def test_what_does_not_fit_is_refused(options, shape, changes, message) -> None:
    model = PixArt(Config(**SMALL, **options))
    with pytest.raises(GessoError, match=message):
        model(torch.zeros(2, *shape), torch.zeros(2), text().replace(**changes))


def test_impossible_widths_are_refused() -> None:
    with pytest.raises(GessoError, match="num_heads"):
        PixArt(Config(hidden_size=48, num_heads=5))
    with pytest.raises(GessoError, match="divisible by 3"):
        PixArt(Config(hidden_size=64, num_heads=4, micro_conditions=True))


def test_bfloat16_weights_keep_the_timestep_exact() -> None:
    model = randomised(Config(**SMALL)).bfloat16()
    x, cond = torch.randn(1, 4, 8, 8), text(1)
    with torch.no_grad():
        close = [model(x, torch.tensor([t]), cond).value for t in (900.0, 901.0)]
    assert close[0].dtype == torch.bfloat16
    assert not torch.equal(*close)  # 900 and 901 are one number in bfloat16
