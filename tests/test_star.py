"""STAR and the multi-scale codebook: exact round trips, causality, and brute force."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gesso.backbones.star import STAR, Config
from gesso.nn.kv_cache import Cache
from gesso.nn.multiscale import MultiScaleCodebook
from gesso.nn.rope import grid_positions, rotary, rotate
from gesso.types import Cond, GessoError

SCALES = [1, 2, 3, 4]
COUNT = 1 + 4 + 9 + 16
SMALL = {"depth": 2, "hidden_size": 32, "num_heads": 2, "text_dim": 12, "pooled_dim": 10}
SMALL |= {"in_channels": 6, "vocabulary": 17, "scales": SCALES}


def book(smoothers: int = 4) -> MultiScaleCodebook:
    torch.manual_seed(0)
    return MultiScaleCodebook(17, 6, SCALES, smoothers)


def randomised(**options: object) -> STAR:
    torch.manual_seed(0)
    model = STAR(Config(**{**SMALL, **options}))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model.eval()


def text(batch: int = 2) -> Cond:
    g = torch.Generator().manual_seed(1)
    return Cond(
        tokens=torch.randn(batch, 5, 12, generator=g), pooled=torch.randn(batch, 10, generator=g)
    )


def test_smoothers_are_chosen_as_in_var() -> None:
    ten = MultiScaleCodebook(3, 2, [1, 2, 3, 4, 5, 6, 8, 10, 13, 16])
    assert ten.chosen == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]


def test_codes_are_a_greedy_residual_decomposition() -> None:
    codebook, z = book(), torch.randn(2, 6, 4, 4)
    codes = codebook.codes(z)
    assert codes.shape == (2, COUNT)
    rest, total, at = z.clone(), torch.zeros_like(z), 0
    entries = codebook.codebook.embedding.weight
    with torch.no_grad():
        for k, p in enumerate(SCALES):
            cells = F.adaptive_avg_pool2d(rest, p)  # [2, 6, p, p]
            distance = (cells[:, :, None] - entries.T[None, :, :, None, None]).square().sum(1)
            nearest = distance.argmin(1)  # [2, p, p]
            assert torch.equal(nearest.flatten(1), codes[:, at : at + p * p])
            h = entries[nearest].permute(0, 3, 1, 2)
            if p < 4:
                h = F.interpolate(h, size=(4, 4), mode="bicubic")
            h = 0.5 * h + 0.5 * codebook.smooth[codebook.chosen[k]](h)
            rest, total, at = rest - h, total + h, at + p * p
        torch.testing.assert_close(codebook.look_up(codes), total)


def test_encode_codes_decode_is_exact() -> None:
    codebook, z = book(), torch.randn(2, 6, 4, 4)
    with torch.no_grad():
        found = codebook(z)
        assert torch.equal(codebook.codes(z), found.codes)
        again = codebook.look_up(found.codes)
        torch.testing.assert_close(again, found.value, atol=1e-6, rtol=0)
        *_, last = codebook.sums(found.codes)
        assert torch.equal(last, again)


def test_incremental_inputs_are_the_teachers() -> None:
    codebook = book()
    codes = codebook.codes(torch.randn(2, 6, 4, 4)).clone()
    with torch.no_grad():
        taught = codebook.inputs(codes)
        assert taught.shape == (2, COUNT - 1, 6)
        for known in (1, 5, 14):  # after one, two and three scales
            grown = codebook.inputs(codes[:, :known])
            assert torch.equal(grown, taught[:, : grown.shape[1]])


def test_quantiser_loss_and_gradients() -> None:
    codebook, z = book(), torch.randn(2, 6, 4, 4, requires_grad=True)
    found = codebook(z)
    total = list(codebook.sums(found.codes))
    expected = sum(1.25 * (f - z).square().mean() for f in total) / 4
    torch.testing.assert_close(found.loss, expected)
    weights = torch.randn_like(z)
    (found.value * weights).sum().backward()
    torch.testing.assert_close(z.grad, weights)
    found = codebook(z)
    found.loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in codebook.parameters())


def test_rotary_positions_turn_by_distance() -> None:
    positions = grid_positions(3, 3, 64.0)
    assert positions[4].tolist() == [32, 32]
    assert grid_positions(1, 1, 64.0).tolist() == [[0, 0]]
    assert grid_positions(2, 3)[5].tolist() == [2, 1]
    turn, d = rotary(positions, 8), 8
    q, k = torch.randn(1, 1, 1, d), torch.randn(1, 1, 1, d)
    q, k = rotate(q.expand(-1, -1, 9, -1), turn), rotate(k.expand(-1, -1, 9, -1), turn)
    dots = (q @ k.transpose(2, 3))[0, 0]
    torch.testing.assert_close(dots[0, 1], dots[3, 4])  # one step to the right
    torch.testing.assert_close(dots[0, 4], dots[4, 8])  # one step along the diagonal
    assert abs(float(dots[0, 1] - dots[0, 3])) > 1e-3  # not one step down
    x, j = torch.randn(d), 1
    turned = rotate(x.view(1, 1, 1, d), rotary(torch.tensor([[3.0, 0.0]]), d)).flatten()
    angle = 3 * 10000 ** (-4 * j / d)
    expected = complex(x[2], x[3]) * complex(math.cos(angle), math.sin(angle))
    torch.testing.assert_close(turned[2:4], torch.tensor([expected.real, expected.imag]))


def inputs_for(codes: Tensor) -> Tensor:
    with torch.no_grad():
        return book().inputs(codes)


def test_later_scales_do_not_reach_earlier_ones() -> None:
    model, g = randomised(), torch.Generator().manual_seed(2)
    codes = torch.randint(17, (2, COUNT), generator=g)
    changed = codes.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 17  # the first code of scale 2
    with torch.no_grad():
        a = model(inputs_for(codes), text())
        b = model(inputs_for(changed), text())
    assert torch.equal(a[:, :14], b[:, :14])
    assert (a[:, 14:] - b[:, 14:]).abs().max() > 1e-3


def test_with_a_cache_as_without() -> None:
    model, g = randomised(), torch.Generator().manual_seed(2)
    inputs = inputs_for(torch.randint(17, (2, COUNT), generator=g))
    cache = Cache()
    with torch.no_grad():
        whole = model(inputs, text())
        parts = [model(None, text(), cache)]
        at = 0
        for p in SCALES[1:]:
            parts.append(model(inputs[:, at : at + p * p], text(), cache))
            at += p * p
    assert cache.length == COUNT
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=2e-5, rtol=1e-4)


def test_every_picture_reads_its_own_text() -> None:
    """The reference hands the first picture's text to the whole batch."""
    model, cond = randomised(), text()
    inputs = inputs_for(torch.zeros(2, COUNT, dtype=torch.long))
    with torch.no_grad():
        both = model(inputs, cond)
        alone = torch.cat([model(inputs[i : i + 1], cond[i]) for i in range(2)])
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-4)
    assert (both[0] - both[1]).abs().max() > 1e-2


def test_attention_is_sharp_as_its_scale_says() -> None:
    """Against explicit cosine attention, with the bound on the scale."""
    from gesso.backbones.star import Attention

    torch.manual_seed(0)
    layer, x = Attention(16, 2), torch.randn(1, 4, 16)
    with torch.no_grad():
        layer.scale_mul[1] = 9.0  # beyond log 100
        turn = rotary(torch.zeros(4, 2), 8)
        q, k, v = layer.mat_qkv(x).view(1, 4, 3, 2, 8).permute(2, 0, 3, 1, 4)
        cosine = F.cosine_similarity(q[..., :, None, :], k[..., None, :, :], dim=-1)
        weights = (cosine * torch.tensor([4.0, 100.0]).view(1, 2, 1, 1)).softmax(-1)
        expected = layer.proj((weights @ v).transpose(1, 2).flatten(2))
        torch.testing.assert_close(layer(x, turn, None), expected, atol=1e-5, rtol=1e-4)


def test_every_parameter_learns() -> None:
    model = randomised().train()
    inputs = inputs_for(torch.randint(17, (2, COUNT)))
    loss = F.cross_entropy(model(inputs, text()).transpose(1, 2), torch.randint(17, (2, COUNT)))
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_published_depths() -> None:
    from gesso.nn.init import WithoutWeights

    scales = [1, 2, 3, 4, 5, 6, 8, 10, 13, 16]
    with WithoutWeights():
        model = STAR(
            Config(
                depth=16,
                hidden_size=1024,
                num_heads=16,
                text_dim=1024,
                pooled_dim=1024,
                in_channels=32,
                vocabulary=4096,
                scales=scales,
            )
        )
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(0.27, abs=0.01)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"scales": [1, 3, 2]}, "ascend from 1"), ({"hidden_size": 12}, "divisible by 4")],
)
def test_bad_options(change: dict[str, object], said: str) -> None:
    with pytest.raises(GessoError, match=said):
        STAR(Config(**{**SMALL, **change}))


def test_misfits_are_one_sentence() -> None:
    model = randomised()
    with pytest.raises(GessoError, match="whole scales"):
        model(torch.zeros(2, 3, 6), text())
    with pytest.raises(GessoError, match="pooled text of width 10, got none"):
        model(None, text().replace(pooled=None))


def trained_on_halves(normalise: bool) -> STAR:
    """A model of a last scale of 4 x 4 whose left half has code 1 and whose right half code 2."""
    model = STAR(Config(**{**SMALL, "depth": 1, "scales": [1, 2, 4], "normalise_rope": normalise}))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = F.cross_entropy(
            model(torch.zeros(1, 20, 6), text(1)).transpose(1, 2)[..., 5:], halves(4)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    return model


def halves(side: int) -> Tensor:
    columns = torch.arange(side)
    return torch.where(columns < side // 2, 1, 2).repeat(side)[None]


def test_normalised_positions_carry_over_to_a_larger_grid() -> None:
    """More of what was learnt at 4 x 4 holds at 8 x 8 than where positions are counted."""
    right = {}
    for normalise in (True, False):
        torch.manual_seed(0)
        small = trained_on_halves(normalise)
        options = {**SMALL, "depth": 1, "scales": [1, 2, 8], "normalise_rope": normalise}
        large = STAR(Config(**options))
        large.load_state_dict(small.state_dict())
        with torch.no_grad():
            codes = large(torch.zeros(1, 4 + 64, 6), text(1))[:, 5:].argmax(-1)
        right[normalise] = float((codes == halves(8)).float().mean())
    assert right[True] > right[False] + 0.1, right


def test_codes_do_not_depend_on_the_precision_around_them() -> None:
    codebook, z = book(), torch.randn(2, 6, 4, 4)
    codes = codebook.codes(z)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert torch.equal(codebook.codes(z), codes)
        within = codebook.inputs(codes), codebook.look_up(codes)
    assert torch.equal(within[0], codebook.inputs(codes))
    assert torch.equal(within[1], codebook.look_up(codes))


def test_a_new_codebook_is_used() -> None:
    """Entries that start longer than the vectors are all alike to them: one is hit."""
    torch.manual_seed(0)
    found = MultiScaleCodebook(256, 8, [1, 2, 4]).codes(0.3 * torch.randn(16, 8, 4, 4))
    assert len(found.unique()) > 64
