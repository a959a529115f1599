"""ViT-VQGAN: codes against brute force, the network against the paper's equations."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gesso.encoders.image.vit_vqgan import SIZES, Config, ViTVQGAN, build
from gesso.nn.codebook import Codebook, usage
from gesso.nn.init import WithoutWeights
from gesso.nn.likelihood import logit_laplace_nll
from gesso.types import GessoError

SMALL = {"depth": 1, "hidden_size": 16, "num_heads": 2, "head_dim": 8, "mlp_size": 24}
SMALL |= {"image_size": 16, "codes": 11, "code_dim": 4, "patch_size": 4}


def randomised(**options: object) -> ViTVQGAN:
    torch.manual_seed(0)
    model = ViTVQGAN(Config(**{**SMALL, **options}))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model.eval()


def pictures(batch: int = 2, size: int = 16) -> Tensor:
    return 2 * torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1)) - 1


@pytest.mark.parametrize("l2_norm", [True, False])
def test_codes_are_the_nearest_entries(l2_norm: bool) -> None:
    torch.manual_seed(0)
    book, z = Codebook(9, 4, l2_norm), torch.randn(2, 5, 4)
    entries = book.embedding.weight
    near = z
    if l2_norm:
        entries, near = F.normalize(entries, dim=1), F.normalize(z, dim=-1)
    distance = (near[:, :, None] - entries).norm(dim=-1)  # [2, 5, 9]
    found = book(z)
    assert torch.equal(found.codes, distance.argmin(-1))
    torch.testing.assert_close(found.value, entries[found.codes])
    torch.testing.assert_close(found.loss, 1.25 * (near - entries[found.codes]).square().mean())


def test_gradients_pass_straight_through_and_to_the_entries() -> None:
    torch.manual_seed(0)
    book, z = Codebook(9, 4), torch.randn(3, 4, requires_grad=True)
    weights = torch.randn(3, 4)
    (book(z).value * weights).sum().backward()
    torch.testing.assert_close(z.grad, weights)  # against z as given, not as normalised
    assert book.embedding.weight.grad is None
    found = book(z)
    found.loss.backward()
    used = book.embedding.weight.grad.abs().sum(1) > 0
    assert used.nonzero().flatten().tolist() == sorted(set(found.codes.tolist()))


def test_usage_of_known_codes() -> None:
    share, perplexity = usage(torch.tensor([[0, 0], [3, 3]]), 8)
    assert share == 0.25
    assert perplexity == pytest.approx(2)


def reference(model: ViTVQGAN, x: Tensor) -> Tensor:
    """The encoder by the letter of a pre-norm transformer, one head after another."""
    enc, options = model.encoder, model.config
    patch = enc.to_patch_embedding[0]
    x = F.conv2d((x + 1) / 2, patch.weight, patch.bias, stride=4)
    _, d, h, w = x.shape
    position = torch.zeros(h, w, d)
    for row in range(h):
        for column in range(w):
            for half, place in enumerate((column, row)):
                for k in range(d // 4):
                    angle = place / 10000 ** (k / (d // 4))
                    position[row, column, half * d // 2 + k] = math.sin(angle)
                    position[row, column, half * d // 2 + d // 4 + k] = math.cos(angle)
    x = x.flatten(2).transpose(1, 2) + position.flatten(0, 1)
    for attention, feed in enc.transformer.layers:
        y = F.layer_norm(x, (d,), attention.norm.weight, attention.norm.bias)
        q, k, v = (y @ attention.fn.to_qkv.weight.T).chunk(3, dim=-1)
        heads = []
        for i in range(options.num_heads):
            part = slice(8 * i, 8 * i + 8)
            logits = q[..., part] @ k[..., part].transpose(1, 2) / 8**0.5
            heads.append(logits.softmax(-1) @ v[..., part])
        x = x + F.linear(torch.cat(heads, -1), attention.fn.to_out.weight, attention.fn.to_out.bias)
        y = F.layer_norm(x, (d,), feed.norm.weight, feed.norm.bias)
        first, _, second = feed.fn.net
        y = torch.tanh(F.linear(y, first.weight, first.bias))
        x = x + F.linear(y, second.weight, second.bias)
    x = F.layer_norm(x, (d,), enc.norm.weight, enc.norm.bias)
    z = F.linear(x, model.pre_quant.weight, model.pre_quant.bias)
    return z.transpose(1, 2).unflatten(2, (h, w))


def test_encoder_equals_its_equations() -> None:
    model = randomised()
    with torch.no_grad():
        torch.testing.assert_close(
            model.encode(pictures()), reference(model, pictures()), atol=1e-5, rtol=1e-5
        )


def test_codes_and_latents_are_two_views() -> None:
    model = randomised()
    with torch.no_grad():
        raw = model.encode(pictures())
        latents, codes = model.sample(raw), model.codes(raw)
        assert codes.shape == (2, 16)
        torch.testing.assert_close(model.from_codes(codes, (4, 4)), latents)
        # Entries are fixed points: encoding what was decoded to a code gives that code.
        assert torch.equal(model.codes(model.from_codes(codes, (4, 4))), codes)
        assert model.decode(latents).shape == (2, 3, 16, 16)


def test_logit_laplace_is_a_density_and_peaks_at_the_location() -> None:
    mu, log_b = torch.tensor(0.3), torch.tensor(-1.0)
    x = torch.linspace(-1, 1, 20001)  # x' covers 0.1 .. 0.9 of the unit interval
    out = torch.stack([mu, log_b]).view(1, 2, 1, 1).expand(1, 2, 1, len(x))
    out = torch.cat([out[:, :1]] * 3 + [out[:, 1:]] * 3, dim=1)
    nll = torch.stack(
        [
            logit_laplace_nll(out[..., i : i + 1], x[i].expand(1, 3, 1, 1))
            for i in range(0, len(x), 50)
        ]
    )
    inside = torch.trapezoid((-nll).exp(), 0.1 + 0.8 * (x[::50] + 1) / 2)

    def cdf(p: float) -> float:
        u = (math.log(p / (1 - p)) - 0.3) / math.exp(-1)
        return 0.5 * math.exp(u) if u < 0 else 1 - 0.5 * math.exp(-u)

    assert float(inside) == pytest.approx(cdf(0.9) - cdf(0.1), rel=1e-3)


@pytest.mark.parametrize("logit_laplace", [True, False])
def test_every_parameter_learns(logit_laplace: bool) -> None:
    model = randomised(logit_laplace=logit_laplace).train()
    found = model.quantise(model.encode(pictures()))
    out = model.distribution(found.value)
    assert out.shape[1] == (6 if logit_laplace else 3)
    (out.square().mean() + found.loss).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_published_sizes() -> None:
    # One side of 8 blocks at 512 without code layers: 25.3M.
    with WithoutWeights():
        model = ViTVQGAN(SIZES["small"])
    side = sum(p.numel() for p in model.encoder.transformer.parameters())
    assert side / 1e6 == pytest.approx(25.2, abs=0.1)


def test_weights_round_trip_and_misfit(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = randomised()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    again = build(Config(**SMALL, weights=str(tmp_path)))
    assert again.fingerprint() == model.fingerprint()
    assert not any(p.requires_grad for p in again.parameters())
    with pytest.raises(GessoError, match="does not hold a ViT-VQGAN of this shape"):
        build(Config(**{**SMALL, "codes": 12}, weights=str(tmp_path)))
    with pytest.raises(GessoError, match="multiples of 4"):
        model.encode(torch.zeros(1, 3, 16, 18))
    with pytest.raises(GessoError, match="no multiple of patch_size 5"):
        build(Config(**{**SMALL, "patch_size": 5}))
