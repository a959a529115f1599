"""Stable Diffusion 3's published names: every format and back, and layouts of the real models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gesso.backbones.mmdit import SIZES, Config, MMDiT
from gesso.convert import sd3
from gesso.nn.init import WithoutWeights
from gesso.types import Cond, GessoError

OPTIONS: dict[str, Any] = {
    "depth": 3,
    "hidden_size": 48,
    "num_heads": 3,
    "text_dim": 20,
    "pooled_dim": 12,
    "base_size": 5,
    "table_size": 9,
}
LAYOUTS = {"sd3": {"qk_norm": False}, "sd3.5": {"qk_norm": True, "dual_blocks": 2}}


def network(layout: str) -> MMDiT:
    torch.manual_seed(0)
    model = MMDiT(Config(**OPTIONS | LAYOUTS[layout]))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    return model.eval()


def theirs(config: Config) -> Any:
    from diffusers import SD3Transformer2DModel

    return SD3Transformer2DModel.from_config(sd3.diffusers_config(config))


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_diffusers_class_takes_every_tensor_and_computes_the_same(layout: str) -> None:
    model = network(layout)
    peer = theirs(model.config).eval()
    tensors = sd3.to_diffusers(model.state_dict(), model.config)
    own_table = peer.pos_embed.pos_embed.clone()
    peer.load_state_dict(tensors, strict=True)
    torch.testing.assert_close(peer.pos_embed.pos_embed, own_table, atol=1e-6, rtol=0)
    g = torch.Generator().manual_seed(1)
    x, tokens = torch.randn(2, 4, 8, 10, generator=g), torch.randn(2, 7, 20, generator=g)
    pooled, t = torch.randn(2, 12, generator=g), torch.tensor([17.0, 803.5])
    with torch.no_grad():
        ours = model(x, t, Cond(tokens=tokens, pooled=pooled)).value
        expected = peer(x, tokens, pooled, t).sample
    assert expected.std() > 0.1
    torch.testing.assert_close(ours, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_round_trips_are_exact(layout: str) -> None:
    model = network(layout)
    state, config = model.state_dict(), model.config
    assert equal(sd3.from_diffusers(sd3.to_diffusers(state, config)), state)
    assert equal(sd3.from_original(sd3.to_original(state, config)), state)
    peer = theirs(config).state_dict()
    again = sd3.to_diffusers(sd3.from_diffusers(peer), config)
    del again["pos_embed.pos_embed"], peer["pos_embed.pos_embed"]  # equal to rounding, see above
    assert equal(again, peer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_tell_the_options(dtype: torch.dtype) -> None:
    model = network("sd3.5")
    state = {k: v.to(dtype) for k, v in model.state_dict().items()}
    original = sd3.to_original(state, model.config)
    found = sd3.identify(sd3.from_original(original), original["pos_embed"], None, "x")
    assert found == model.config
    told = sd3.identify(state, None, sd3.diffusers_config(model.config), "x")
    assert told == model.config


@pytest.mark.parametrize("layout", LAYOUTS)
def test_heads_without_a_norm_are_64_wide(layout: str) -> None:
    config = Config(**OPTIONS | LAYOUTS[layout] | {"hidden_size": 128, "num_heads": 2})
    original = sd3.to_original(MMDiT(config).state_dict(), config)
    assert sd3.identify(sd3.from_original(original), original["pos_embed"], None, "x") == config


@pytest.mark.parametrize("name", ["sd3-medium", "sd3.5-medium", "sd3.5-large"])
def test_published_layouts(name: str) -> None:
    """Keys and shapes of diffusers' class at the published sizes, on the meta device."""
    config = SIZES[name]
    with torch.device("meta"):
        peer = theirs(config).state_dict()
    with WithoutWeights():
        state = MMDiT(config).state_dict()
    assert state["x_embedder.proj.weight"].is_meta
    tensors = sd3.to_diffusers(state, config)
    assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in peer.items()}
    back = sd3.from_diffusers(tensors)
    assert {k: v.shape for k, v in back.items()} == {k: v.shape for k, v in state.items()}
    assert sd3.identify(back, None, sd3.diffusers_config(config), name) == config


def test_misfits_are_one_sentence() -> None:
    model = network("sd3.5")
    state, config = model.state_dict(), model.config
    tensors = sd3.to_diffusers(state, config)
    del tensors["transformer_blocks.1.attn.to_k.weight"]
    with pytest.raises(GessoError, match=r"attn.to_q.weight.*without the parts beside"):
        sd3.from_diffusers(tensors)
    with pytest.raises(GessoError, match=r"depth 3, but config.json says 4"):
        sd3.identify(state, None, sd3.diffusers_config(config) | {"num_layers": 4}, "x")
    with pytest.raises(GessoError, match="no position table"):
        sd3.identify(state, None, None, "x")
    table = sd3.positions(config, state["x_embedder.proj.weight"]).clone()
    table[0, 30:50] += 0.5
    with pytest.raises(GessoError, match="positions of its own"):
        sd3.identify(state, table, None, "x")
