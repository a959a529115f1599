"""PixArt's names in every format, and what tensors tell about the model they belong to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from published_fakes import transformer
from torch import Tensor

from gesso.backbones.pixart import SIZES, Config, PixArt
from gesso.convert import pixart, variants
from gesso.convert.checkpoint import Checkpoint
from gesso.convert.network import network_of
from gesso.convert.pixart import from_diffusers, to_diffusers, to_original
from gesso.convert.variants import Hints, identify
from gesso.nn.init import WithoutWeights
from gesso.types import GessoError

PUBLISHED = [n for n in SIZES if n != "demo"]


def on_meta(config: Config) -> dict[str, Tensor]:
    with torch.device("meta"):
        return PixArt(config).state_dict()


def original_on_meta(name: str) -> dict[str, Tensor]:
    config = SIZES[name]
    positions = torch.empty(1, config.base_size**2, config.hidden_size, device="meta")
    return {**on_meta(config), "pos_embed": positions}


@pytest.mark.parametrize(
    ("name", "original", "diffusers"),
    [("xl-256", 437, 603), ("xl-1024", 445, 611), ("sigma-2k", 437, 603)],
)
def test_key_sets_equal_the_published_ones(name: str, original: int, diffusers: int) -> None:
    from diffusers import PixArtTransformer2DModel

    config = SIZES[name]
    state = on_meta(config)
    assert len(to_original(state, config)) == original
    theirs = to_diffusers(state)
    assert len(theirs) == diffusers
    with torch.device("meta"):
        peer = PixArtTransformer2DModel(
            sample_size=2 * config.base_size,
            caption_channels=4096,
            use_additional_conditions=config.micro_conditions,
        ).state_dict()
    assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in peer.items()}
    back = from_diffusers(theirs)
    assert {k: v.shape for k, v in back.items()} == {
        k: v.shape for k, v in state.items() if k != pixart.NULL
    }


def test_the_kv_compressed_original_has_56_keys_more_and_no_place_in_diffusers() -> None:
    config = SIZES["sigma-2k-kv"]
    state = on_meta(config)
    assert len(to_original(state, config)) == 437 + 56
    with pytest.raises(GessoError, match=r"no place for blocks\.14\.attn\.norm\.bias.* 52 more"):
        to_diffusers(state)


def test_there_and_back_is_bit_exact() -> None:
    torch.manual_seed(0)
    theirs = transformer(use_additional_conditions=True).state_dict()
    again = to_diffusers(from_diffusers(theirs))
    assert again.keys() == theirs.keys()
    assert all(torch.equal(again[k], theirs[k]) for k in theirs)


def test_early_exports_carry_the_null_caption() -> None:
    theirs = transformer().state_dict()
    early = {**theirs, "caption_projection.y_embedding": torch.randn(120, 16)}
    assert from_diffusers(early)[pixart.NULL].shape == (120, 16)
    config, family = identify(from_diffusers(early), None, diffusers_hints(), "file")
    assert (config.null_tokens, family) == (120, "alpha")


def test_networks_without_weights_have_the_same_tensors() -> None:
    config = SIZES["demo"].model_copy(update={"null_tokens": 9, "kv_compress": 2, "kv_blocks": [1]})
    with WithoutWeights():
        empty = PixArt(config)
    tensors = PixArt(config).state_dict()
    assert all(v.is_meta for v in empty.state_dict().values())
    assert {k: v.shape for k, v in empty.state_dict().items()} == {
        k: v.shape for k, v in tensors.items()
    }
    empty.load_state_dict(tensors, assign=True)
    assert not any(p.is_meta or not p.requires_grad for p in empty.parameters())


def test_a_missing_slice_is_named() -> None:
    theirs = transformer().state_dict()
    del theirs["transformer_blocks.1.attn1.to_k.weight"]
    with pytest.raises(GessoError, match=r"transformer_blocks\.1\.attn1\.to_k\.weight"):
        from_diffusers(theirs)


# Detection


@pytest.mark.parametrize("name", PUBLISHED)
def test_an_original_file_tells_its_variant(name: str) -> None:
    tensors = original_on_meta(name)
    network = network_of(Checkpoint(tensors, "file.pth"), Hints())
    assert network.config == SIZES[name]
    assert network.family == ("alpha" if name.startswith("xl") else "sigma")


@pytest.mark.parametrize("name", PUBLISHED)
def test_without_its_buffers_a_file_needs_the_flag(name: str) -> None:
    tensors = {k: v for k, v in on_meta(SIZES[name]).items() if k != pixart.NULL}
    found = Checkpoint(tensors, "file.pth")
    expected = SIZES[name].model_copy(update={"null_tokens": 0})
    if name in ("xl-1024", "sigma-2k-kv"):  # micro-conditions and compression are tensors
        assert network_of(found, Hints()).config == expected
    else:
        with pytest.raises(GessoError, match=r"could be xl-256 or .*--variant"):
            network_of(found, Hints())
    network = network_of(found, Hints(variant=name))
    assert network.config == expected
    assert network.family == ("alpha" if name.startswith("xl") else "sigma")


def test_a_table_of_positions_tells_the_scale_where_rows_are_missing() -> None:
    torch.manual_seed(0)
    for scale in (0.5, 1.0, 2.0, 4.0):
        config = Config(depth=1, hidden_size=72, num_heads=1, base_size=6, null_tokens=300)
        config.interpolation_scale = scale
        tensors = to_original(PixArt(config).state_dict(), config)
        for dtype in (torch.float32, torch.bfloat16):
            cast = {k: v.to(dtype) for k, v in tensors.items()}
            found = network_of(Checkpoint(cast, "file"), Hints())
            assert found.config.interpolation_scale == scale
            assert (found.config.base_size, found.family) == (6, "sigma")


@pytest.mark.parametrize(
    ("tensors", "variant", "says"),
    [
        ("xl-256", "xl-512", "pos_embed has 256 positions, not 1024"),
        ("xl-1024", "sigma-1024", "it has the tensors of micro-conditions"),
        ("sigma-1024", "xl-1024", "it lacks the tensors of micro-conditions"),
        ("sigma-512", "xl-512", "null caption y_embedder.y_embedding has 300 rows, not 120"),
        ("xl-256", "xl-128", "no variant 'xl-128': use one of xl-256"),
    ],
)
def test_a_flag_that_the_tensors_contradict_is_refused(
    tensors: str, variant: str, says: str
) -> None:
    with pytest.raises(GessoError, match=says):
        network_of(Checkpoint(original_on_meta(tensors), "file"), Hints(variant=variant))


def diffusers_hints(**changes: Any) -> Hints:
    values = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 2,
        "sample_size": 8,
        "use_additional_conditions": False,
    }
    return Hints(transformer=values | changes)


def test_diffusers_config_gives_heads_and_positions() -> None:
    state = from_diffusers(transformer().state_dict())
    config, family = identify(state, None, diffusers_hints(), "file")
    assert (config.num_heads, config.base_size, config.interpolation_scale) == (2, 4, 1)
    assert family is None
    config, _ = identify(state, None, diffusers_hints(interpolation_scale=0.5), "file")
    assert config.interpolation_scale == 0.5
    for family in ("alpha", "sigma"):
        hints = replace(diffusers_hints(), family=family)
        assert identify(state, None, hints, "file")[1] == family
    for variant, family in (("xl-512", "alpha"), ("sigma-512", "sigma")):
        hints = replace(diffusers_hints(), variant=variant)
        config, found = identify(state, None, hints, "file")
        assert (config.base_size, found) == (4, family)


@pytest.mark.parametrize(
    ("size", "scale", "micro", "family"),
    [
        (32, None, None, "alpha"),
        (32, 0.5, None, "sigma"),
        (64, None, None, None),
        (128, None, None, "alpha"),
        (128, None, False, "sigma"),
        (256, None, None, "sigma"),
    ],
)
def test_the_family_of_a_lone_diffusers_transformer(size, scale, micro, family) -> None:
    options = {"sample_size": size, "interpolation_scale": scale}
    options["use_additional_conditions"] = micro
    state = from_diffusers(transformer(**options).state_dict())
    config, found = identify(state, None, diffusers_hints(**options), "file")
    assert config.base_size == size // 2
    assert config.interpolation_scale == (scale or max(size // 64, 1))
    assert found == family
    if family is None:
        with pytest.raises(GessoError, match=r"could be xl-512 or sigma-512.*--variant"):
            variants.need_family(found, config, "file")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_layers": 3}, "have depth 2, but config.json says 3"),
        ({"attention_head_dim": 10}, "hidden_size 24, but config.json says 20"),
        ({"use_additional_conditions": True}, "micro_conditions False"),
    ],
)
def test_a_config_of_another_model_is_refused(changes: dict[str, Any], says: str) -> None:
    state = from_diffusers(transformer().state_dict())
    with pytest.raises(GessoError, match=says):
        identify(state, None, diffusers_hints(**changes), "file")


def test_a_config_with_an_impossible_value_is_one_sentence() -> None:
    state = from_diffusers(transformer().state_dict())
    with pytest.raises(GessoError, match=r"file: interpolation_scale = 0.0 is not valid"):
        identify(state, None, diffusers_hints(interpolation_scale=0), "file")


def test_heads_that_nothing_tells_are_not_guessed() -> None:
    with pytest.raises(GessoError, match=r"how many heads.*config\.json"):
        network_of(Checkpoint(dict(transformer().state_dict()), "file"), Hints(variant="xl-512"))


# Strictness


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda s: s.pop("blocks.1.mlp.fc2.bias"), r"lacks the tensors blocks\.1\.mlp\.fc2\.bias"),
        (lambda s: s.update({"blocks.0.attn.q_norm.weight": torch.ones(72)}), "no PixArt has"),
        (lambda s: s.update({"extra": torch.ones(2)}), r"has the tensors extra, which no PixArt"),
        (
            lambda s: s.update({"blocks.0.attn.proj.bias": torch.ones(7)}),
            r"blocks\.0\.attn\.proj\.bias has shape \(7,\) where this PixArt has \(72,\)",
        ),
        (lambda s: s.pop("x_embedder.proj.weight"), r"lacks the tensor x_embedder\.proj\.weight"),
    ],
)
def test_what_disagrees_is_named(damage: Any, says: str) -> None:
    config = Config(depth=2, hidden_size=72, num_heads=1, null_tokens=120, base_size=16)
    tensors = to_original(PixArt(config).state_dict(), config)
    damage(tensors)
    with pytest.raises(GessoError, match=says):
        network_of(Checkpoint(tensors, "file"), Hints()).build()
