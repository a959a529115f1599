"""The autoencoder objective: its terms against formulas, what it learns, what it refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from gesso.config import load_recipe
from gesso.draws import Draws
from gesso.encoders.image import tiny
from gesso.objectives import autoencode
from gesso.types import Batch, Cond, GessoError


def seeded(seed: int) -> Draws:
    return Draws("cpu", seed)


def squares(count: int, seed: int) -> Batch:
    """Pictures of one square of a random colour on another colour."""
    g = torch.Generator().manual_seed(seed)
    pixels = (torch.rand(count, 3, 1, 1, generator=g) * 2 - 1).repeat(1, 1, 16, 16)
    for picture in pixels:
        x, y = torch.randint(0, 9, (2,), generator=g).tolist()
        picture[:, y : y + 7, x : x + 7] = torch.rand(3, 1, 1, generator=g) * 2 - 1
    return Batch(keys=[str(i) for i in range(count)], cond=Cond(), pixels=pixels)


def make(**options) -> autoencode.Autoencode:
    torch.manual_seed(0)
    encoder = tiny.build(tiny.Config(width=16, depth=1, weights=None))
    model = SimpleNamespace(image_encoder=encoder)
    return autoencode.build(autoencode.Config(**options), model)


def test_it_declares_what_the_loop_needs():
    objective = make()
    assert objective.needs == "pixels"
    assert [p.name for p in objective.phases] == ["autoencode"]
    assert objective.phases[0].learns == ("image_encoder",)
    assert objective.roles["image_encoder"] is objective.encoder


def test_kl_is_the_closed_form():
    mean = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    std = torch.rand(2, 4, 3, 3, generator=torch.Generator().manual_seed(1)) + 0.1
    expected = kl_divergence(Normal(mean, std), Normal(0.0, 1.0)).mean()
    found = autoencode.kl_divergence(torch.cat([mean, std], dim=1))
    assert torch.allclose(found, expected, atol=1e-6)


def test_edge_loss_sees_blur_and_not_brightness():
    pixels = squares(4, 0).pixels
    assert autoencode.edge_loss(pixels, pixels) == 0
    assert autoencode.edge_loss(pixels, pixels + 0.3) < 1e-5
    blurred = torch.nn.functional.avg_pool2d(pixels, 3, 1, 1, count_include_pad=False)
    assert autoencode.edge_loss(pixels, blurred) > 0.02


def test_edge_loss_of_one_wrong_column():
    """A column that is wrong by 1 in an 8-wide picture makes two wrong differences per row of 7."""
    a = torch.zeros(1, 3, 8, 8)
    b = a.clone()
    b[..., 3] = 1
    assert torch.allclose(autoencode.edge_loss(a, b, scales=1), torch.tensor(2 / 7))


def test_the_loss_is_the_weighted_sum_of_its_terms():
    objective = make(kl=0.01, edges=0.5)
    out = objective.loss("autoencode", squares(4, 0), seeded(0))
    m = out.metrics
    assert torch.allclose(out.loss, m["l1"] + 0.5 * m["edges"] + 0.01 * m["kl"])
    assert m["psnr"] > 0


def test_randomness_comes_from_the_generator_alone():
    losses = [make().loss("autoencode", squares(4, 0), seeded(s)).loss for s in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]


def test_noise_on_latents_is_felt():
    """With a posterior this narrow, only the option can move the decoded picture much."""
    still = [make(noise=0.0).loss("autoencode", squares(4, 0), seeded(s)).loss for s in (1, 2)]
    moved = [make(noise=1.0).loss("autoencode", squares(4, 0), seeded(s)).loss for s in (1, 2)]
    assert abs(still[0] - still[1]) < abs(moved[0] - moved[1])


def test_every_weight_gets_a_gradient():
    objective = make(kl=1e-3)
    step(objective, squares(4, 0), 0, torch.optim.SGD(objective.encoder.parameters(), lr=1e-2))
    objective.loss("autoencode", squares(4, 1), seeded(1)).loss.backward()
    for name, p in objective.encoder.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def step(objective, batch, number, optimizer) -> dict[str, float]:
    out = objective.loss("autoencode", batch, seeded(number))
    optimizer.zero_grad()
    out.loss.backward()
    optimizer.step()
    return {k: float(v) for k, v in out.metrics.items()}


def test_it_learns_and_normalises():
    objective = make(track=0.1)
    optimizer = torch.optim.Adam(objective.encoder.parameters(), lr=3e-3)
    metrics = [step(objective, squares(16, i), i, optimizer) for i in range(120)]
    for term in ("l1", "edges"):
        first, last = (sum(m[term] for m in p) for p in (metrics[:10], metrics[-10:]))
        assert last < 0.8 * first, term
    encoder = objective.encoder
    with torch.no_grad():
        latents = encoder.sample(encoder.encode(squares(64, 999).pixels))
    assert latents.mean((0, 2, 3)).abs().max() < 0.3
    assert (latents.std((0, 2, 3)) - 1).abs().max() < 0.3


def test_validation_does_not_move_the_statistics():
    objective = make()
    before = objective.encoder.shift.clone()
    with torch.no_grad():
        objective.loss("autoencode", squares(4, 0), seeded(0))
    assert torch.equal(objective.encoder.shift, before)


def test_it_refuses_encoders_that_it_cannot_train():
    options = autoencode.Config()
    frozen = SimpleNamespace(image_encoder=tiny.build(tiny.Config()))
    with pytest.raises(GessoError, match=r"frozen: set image_encoder\.weights to null"):
        autoencode.build(options, frozen)
    plain = SimpleNamespace(image_encoder=SimpleNamespace(channels=4, raw_channels=4))
    with pytest.raises(GessoError, match="KL autoencoders"):
        autoencode.build(options, plain)


def test_the_recipe_is_what_the_shipped_weights_were_trained_with():
    recipe = load_recipe("tiny-autoencoder")
    shipped = tiny.Config()
    spec = recipe.image_encoder
    assert (spec["width"], spec["depth"], spec["weights"]) == (shipped.width, shipped.depth, None)
    assert (recipe.train.steps, recipe.train.batch_size, recipe.train.lr) == (5000, 16, 3e-3)
    objective = {k: v for k, v in recipe.objective.items() if k != "name"}
    assert autoencode.Config(**objective) == autoencode.Config(kl=1e-4, edges=1.0, noise=0.1)
