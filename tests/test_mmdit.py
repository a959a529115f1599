"""MMDiT against diffusers' SD3Transformer2DModel on shared random weights, and its contract."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gesso.backbones.mmdit import SIZES, Config, MMDiT
from gesso.nn.init import WithoutWeights
from gesso.nn.position import sincos_2d_centred
from gesso.types import Cond, GessoError

SMALL = {"depth": 3, "hidden_size": 48, "num_heads": 3, "text_dim": 20, "pooled_dim": 12}


def randomised(config: Config) -> MMDiT:
    torch.manual_seed(0)
    model = MMDiT(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    return model.eval()


def text(batch: int = 2, length: int = 7) -> Cond:
    g = torch.Generator().manual_seed(1)
    return Cond(
        tokens=torch.randn(batch, length, 20, generator=g),
        pooled=torch.randn(batch, 12, generator=g),
    )


def swapped(linear: Tensor) -> Tensor:
    """(shift, scale) rows as (scale, shift): the order of diffusers' continuous norm."""
    return torch.cat(linear.chunk(2)[::-1])


def diffusers_state(model: MMDiT) -> dict[str, Tensor]:
    """The model's weights under diffusers' names (fact: its SD3 conversion script)."""
    own, state = model.state_dict(), {}
    for ending in ("weight", "bias"):
        plain = {
            "pos_embed.proj": "x_embedder.proj",
            "time_text_embed.timestep_embedder.linear_1": "t_embedder.mlp.0",
            "time_text_embed.timestep_embedder.linear_2": "t_embedder.mlp.2",
            "time_text_embed.text_embedder.linear_1": "y_embedder.mlp.0",
            "time_text_embed.text_embedder.linear_2": "y_embedder.mlp.2",
            "context_embedder": "context_embedder",
            "proj_out": "final_layer.linear",
        }
        for theirs, ours in plain.items():
            state[f"{theirs}.{ending}"] = own[f"{ours}.{ending}"]
        state[f"norm_out.linear.{ending}"] = swapped(
            own[f"final_layer.adaLN_modulation.1.{ending}"]
        )
        last = model.config.depth - 1
        for i in range(model.config.depth):
            a, b = f"transformer_blocks.{i}", f"joint_blocks.{i}"
            x, y = f"{b}.x_block", f"{b}.context_block"
            qkv = own[f"{x}.attn.qkv.{ending}"].chunk(3)
            added = own[f"{y}.attn.qkv.{ending}"].chunk(3)
            for part, name in enumerate("qkv"):
                state[f"{a}.attn.to_{name}.{ending}"] = qkv[part]
                state[f"{a}.attn.add_{name}_proj.{ending}"] = added[part]
            pairs = {
                "attn.to_out.0": "attn.proj",
                "ff.net.0.proj": "mlp.fc1",
                "ff.net.2": "mlp.fc2",
            }
            pairs["norm1.linear"] = "adaLN_modulation.1"
            for theirs, ours in pairs.items():
                state[f"{a}.{theirs}.{ending}"] = own[f"{x}.{ours}.{ending}"]
            modulation = own[f"{y}.adaLN_modulation.1.{ending}"]
            state[f"{a}.norm1_context.linear.{ending}"] = (
                swapped(modulation) if i == last else modulation
            )
            if i != last:
                state[f"{a}.attn.to_add_out.{ending}"] = own[f"{y}.attn.proj.{ending}"]
                state[f"{a}.ff_context.net.0.proj.{ending}"] = own[f"{y}.mlp.fc1.{ending}"]
                state[f"{a}.ff_context.net.2.{ending}"] = own[f"{y}.mlp.fc2.{ending}"]
            if i < model.config.dual_blocks:
                again = own[f"{x}.attn2.qkv.{ending}"].chunk(3)
                for part, name in enumerate("qkv"):
                    state[f"{a}.attn2.to_{name}.{ending}"] = again[part]
                state[f"{a}.attn2.to_out.0.{ending}"] = own[f"{x}.attn2.proj.{ending}"]
            if model.config.qk_norm and ending == "weight":
                norms = {"norm_q": f"{x}.attn.ln_q", "norm_k": f"{x}.attn.ln_k"}
                norms |= {"norm_added_q": f"{y}.attn.ln_q", "norm_added_k": f"{y}.attn.ln_k"}
                for theirs, ours in norms.items():
                    state[f"{a}.attn.{theirs}.weight"] = own[f"{ours}.weight"]
                if i < model.config.dual_blocks:
                    for name in ("q", "k"):
                        state[f"{a}.attn2.norm_{name}.weight"] = own[f"{x}.attn2.ln_{name}.weight"]
    return state


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("dual", [0, 2])
@pytest.mark.parametrize("size", [(8, 8), (6, 12)])
def test_equals_diffusers(qk_norm: bool, dual: int, size: tuple[int, int]) -> None:
    from diffusers import SD3Transformer2DModel

    config = Config(**SMALL, qk_norm=qk_norm, dual_blocks=dual, base_size=5, table_size=9)
    model = randomised(config)
    theirs = SD3Transformer2DModel(
        sample_size=10,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=16,
        num_attention_heads=3,
        joint_attention_dim=20,
        caption_projection_dim=48,
        pooled_projection_dim=12,
        pos_embed_max_size=9,
        dual_attention_layers=tuple(range(dual)),
        qk_norm="rms_norm" if qk_norm else None,
    ).eval()
    left = theirs.load_state_dict(diffusers_state(model), strict=False)
    assert left.missing_keys == ["pos_embed.pos_embed"] or not left.missing_keys
    assert not left.unexpected_keys
    x = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(2))
    t, cond = torch.tensor([17.0, 803.5]), text()
    with torch.no_grad():
        ours = model(x, t, cond).value
        expected = theirs(x, cond.tokens, cond.pooled, t).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


def test_positions_are_cut_from_the_middle() -> None:
    whole = sincos_2d_centred(9, 9, 16, 5, 9).view(9, 9, 16)
    torch.testing.assert_close(sincos_2d_centred(4, 6, 16, 5, 9).view(4, 6, 16), whole[2:6, 1:7])


@pytest.mark.parametrize(
    ("name", "billions"), [("sd3-medium", 2.03), ("sd3.5-medium", 2.24), ("sd3.5-large", 8.06)]
)
def test_published_sizes(name: str, billions: float) -> None:
    with WithoutWeights():
        model = MMDiT(SIZES[name])
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.005)


def test_starts_at_zero_and_every_parameter_learns() -> None:
    model = MMDiT(Config(**SMALL, dual_blocks=1))
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([1.0, 500.0])
    assert model(x, t, text()).value.abs().max() == 0
    model = randomised(Config(**SMALL, dual_blocks=1)).train()
    model(x, t, text()).value.square().mean().backward()
    unread = "joint_blocks.2.context_block.attn.ln_q.weight"  # the last text queries go nowhere
    for name, p in model.named_parameters():
        assert p.grad is not None and (p.grad.abs().max() > 0) == (name != unread), name


def test_masked_text_is_not_read() -> None:
    model, cond = randomised(Config(**SMALL)), text()
    assert cond.tokens is not None
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([1.0, 500.0])
    mask = torch.arange(7)[None].expand(2, -1) < 4
    with torch.no_grad():
        short = model(x, t, cond.replace(tokens=cond.tokens[:, :4])).value
        masked = model(x, t, cond.replace(mask=mask)).value
        full = model(x, t, cond).value
    torch.testing.assert_close(masked, short, atol=2e-5, rtol=1e-4)
    assert (full - short).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("shape", "cond", "said"),
    [
        ((1, 3, 8, 8), text(1), "4 channels"),
        ((1, 4, 8, 7), text(1), "divisible by 2"),
        ((1, 4, 80, 8), text(1), "up to 64 a side"),
        ((1, 4, 8, 8), text(1).replace(pooled=None), "pooled text of width 12, got none"),
        ((1, 4, 8, 8), text(1).replace(tokens=torch.zeros(1, 2, 5)), "width 20, got width 5"),
    ],
)
def test_misfits_are_one_sentence(shape: tuple[int, ...], cond: Cond, said: str) -> None:
    with pytest.raises(GessoError, match=said):
        MMDiT(Config(**SMALL))(torch.zeros(shape), torch.zeros(1), cond)


def test_a_dual_block_beyond_the_last_is_refused() -> None:
    with pytest.raises(GessoError, match="dual_blocks is 5"):
        MMDiT(Config(**SMALL, dual_blocks=5))
