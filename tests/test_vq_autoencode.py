"""Training of tokenizers: every term, the discriminator, codebook usage, and both encoders."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gesso.draws import Draws
from gesso.encoders.image import multiscale_vq, vit_vqgan
from gesso.nn.discriminator import Discriminator, gradient_penalty, spread
from gesso.nn.features import Features
from gesso.objectives.vq_autoencode import Config, VQAutoencode, build
from gesso.types import Batch, Cond, GessoError


def vit(**options: object) -> Any:
    small: dict[str, object] = {"image_size": 16, "patch_size": 4, "depth": 1, "hidden_size": 16}
    small |= {"num_heads": 1, "head_dim": 16, "mlp_size": 16, "codes": 8, "code_dim": 4}
    torch.manual_seed(0)
    return vit_vqgan.build(vit_vqgan.Config(**(small | options)))


def multiscale() -> Any:
    torch.manual_seed(0)
    return multiscale_vq.build(multiscale_vq.Config(width=8, codes=8, code_dim=4, scales=[1, 2]))


def batch(n: int = 8) -> Batch:
    g = torch.Generator().manual_seed(1)
    cells = torch.rand(n, 3, 2, 2, generator=g).repeat_interleave(8, 2).repeat_interleave(8, 3)
    pixels = 2 * cells - 1  # four colours
    return Batch([str(i) for i in range(n)], Cond(), pixels=pixels)


def objective(encoder: Any, **options: Any) -> VQAutoencode:
    torch.manual_seed(1)
    return build(Config(size=16, **options), SimpleNamespace(image_encoder=encoder))  # type: ignore


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    encoder = vit()
    made = objective(encoder, l2=0.7, laplace=0.3, adversarial=0.2)
    out = made.loss("autoencode", batch(), Draws("cpu", 0))
    m = out.metrics
    expected = m["vq"] + 0.7 * m["l2"] + 0.3 * m["laplace"] + 0.2 * m["adversarial"]
    torch.testing.assert_close(out.loss.detach(), expected)
    x = batch().pixels
    with torch.no_grad():
        y = encoder.decode(encoder.sample(encoder.encode(x)))
    torch.testing.assert_close(m["l2"], F.mse_loss(y, x))
    assert made.discriminator is not None
    with torch.no_grad():
        fooled = F.softplus(-made.discriminator(y)).mean()
    torch.testing.assert_close(m["adversarial"], fooled)


@pytest.mark.parametrize("make", [vit, multiscale])
def test_each_phase_reaches_its_own_network_only(make: Any) -> None:
    encoder = make()
    made = objective(encoder)
    made.loss("autoencode", batch(), Draws("cpu", 0)).loss.backward()
    assert made.discriminator is not None
    assert all(p.grad is None for p in made.discriminator.parameters())
    assert all(p.requires_grad for p in made.discriminator.parameters())
    # Two scales use the first and the last of four smoothing convolutions.
    unused = ("quantizer.smooth.1.", "quantizer.smooth.2.")
    for name, p in encoder.named_parameters():
        assert (p.grad is not None) != name.startswith(unused), name
    for p in encoder.parameters():
        p.grad = None
    made.loss("discriminate", batch(), Draws("cpu", 0)).loss.backward()
    assert all(p.grad is None for p in encoder.parameters())
    assert all(p.grad is not None for p in made.discriminator.parameters())


def test_without_an_adversarial_term_there_is_no_discriminator() -> None:
    made = objective(vit(), adversarial=0)
    assert list(made.roles) == ["image_encoder"]
    assert [phase.name for phase in made.phases] == ["autoencode"]


def test_gradient_penalty_of_a_known_function() -> None:
    x = torch.randn(5, 3, 4, 4, requires_grad=True)
    logits = x.square().flatten(1).sum(1)  # gradient 2 x
    expected = (4 * x.detach().square()).flatten(1).sum(1).mean()
    torch.testing.assert_close(gradient_penalty(logits, x).detach(), expected)


def test_spread_is_the_groups_deviation() -> None:
    x = torch.randn(8, 2, 3, 3)
    expected = torch.stack([x[i::2].std(0, correction=0).mean() for i in range(2)])
    torch.testing.assert_close(spread(x)[:2, 0, 0, 0], expected, atol=1e-5, rtol=1e-5)
    assert spread(torch.ones(3, 2, 3, 3)).abs().max() < 1e-3


def test_discriminator_learns_to_tell() -> None:
    torch.manual_seed(0)
    network = Discriminator(16, width=4, most=8)
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    real, fake = torch.rand(16, 3, 16, 16), -torch.rand(16, 3, 16, 16)
    for _ in range(30):
        loss = F.softplus(-network(real)).mean() + F.softplus(network(fake)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert network(real).min() > network(fake).max()


@pytest.mark.parametrize("make", [vit, multiscale])
def test_learns_one_batch(make: Any) -> None:
    encoder = make()
    made = objective(encoder, adversarial=0)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        out = made.loss("autoencode", batch(4), Draws("cpu", 0))
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        losses.append(float(out.metrics["l2"]))
    assert losses[-1] < 0.8 * losses[0]


def test_validation_counts_codes_over_all_batches() -> None:
    encoder = vit()
    made = objective(encoder)
    batches = [batch(4), batch(8)]
    found = made.validate(batches)
    codes = torch.cat([encoder.codes(encoder.encode(b.pixels)).flatten() for b in batches])
    assert found["usage"] == len(codes.unique()) / 8
    assert found["loss"] > 0 and found["psnr"] < 20
    assert made.validate([]) == {}


def tiny_network(folder: Path) -> Path:
    from transformers import ConvNextConfig, ConvNextModel
    from transformers.models.convnext import ConvNextImageProcessor

    torch.manual_seed(0)
    config = ConvNextConfig(hidden_sizes=[4, 8], depths=[1, 1], num_stages=2, patch_size=2)
    ConvNextModel(config).save_pretrained(folder)
    ConvNextImageProcessor().save_pretrained(folder)
    return folder


def test_perceptual_distance_through_a_named_network(tmp_path: Path) -> None:
    path = str(tiny_network(tmp_path / "net"))
    network = Features(path)
    x: Tensor = batch(2).pixels  # type: ignore[assignment]
    y = (x + 0.1).requires_grad_()
    assert float(network.distance(x, x)) == 0
    distance = network.distance(x, y)
    distance.backward()
    assert float(distance) > 0 and y.grad is not None and y.grad.abs().max() > 0
    assert all(p.grad is None for p in network.parameters())
    made = objective(vit(), adversarial=0, features=path)
    assert float(made.loss("autoencode", batch(2), Draws("cpu", 0)).metrics["perceptual"]) > 0


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(GessoError, match="image encoders with a codebook"):
        objective(SimpleNamespace())
    with pytest.raises(GessoError, match="frozen"):
        objective(vit().requires_grad_(False))
    with pytest.raises(GessoError, match="power of two"):
        build(Config(size=24), SimpleNamespace(image_encoder=vit()))  # type: ignore
    with pytest.raises(
        GessoError, match=r"pictures of 32x32 pixels, not 16x16: set objective\.size"
    ):
        Discriminator(32)(batch().pixels)
    with pytest.raises(GessoError, match="could not be loaded"):
        Features(str(tmp_path / "none"))
    with pytest.raises(GessoError, match="16x16 pixels, not 8x8"):
        multiscale().encode(torch.zeros(1, 3, 8, 8))
