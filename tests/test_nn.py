"""Building blocks: attention kernels, the compiled forms of layers, compilation itself."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gesso.backbones.pixart import Config, PixArt
from gesso.nn import compile as nn_compile
from gesso.nn.attention import attend, attention_by_picture, explicit_attention, mask_bias
from gesso.nn.compile import compile_blocks
from gesso.nn.linear import Linear
from gesso.nn.mlp import gelu_tanh
from gesso.types import Cond

SMALL = Config(depth=3, hidden_size=32, num_heads=2, text_dim=12)


def operands(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    q = torch.randn(2, 9, 3, 8, generator=g).to(dtype).transpose(1, 2)  # [B, H, N, d]
    k, v = (torch.randn(2, 5, 3, 8, generator=g).to(dtype).transpose(1, 2) for _ in range(2))
    return q, k, v, torch.tensor([[True] * 5, [True, True, False, True, False]])


def gradients(f, *inputs: Tensor) -> list[Tensor]:
    inputs = tuple(x.detach().clone().requires_grad_() for x in inputs)
    out = f(*inputs)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, weight)]


@pytest.mark.parametrize("masked", [False, True])
def test_explicit_attention_and_its_gradients_equal_the_fused_kernel(masked: bool) -> None:
    q, k, v, mask = operands()
    bias = mask_bias(mask, q.dtype) if masked else None
    ours = gradients(lambda *x: explicit_attention(*x, bias), q, k, v)
    theirs = gradients(lambda *x: F.scaled_dot_product_attention(*x, attn_mask=bias), q, k, v)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=2e-6)


def test_attention_keeps_its_dtype_and_falls_on_the_same_values() -> None:
    q, k, v, mask = operands()
    exact = explicit_attention(q, k, v, mask_bias(mask, q.dtype))
    for grad in (True, False):  # two kernels
        with torch.set_grad_enabled(grad):
            half = [x.bfloat16() for x in (q, k, v)]
            out = attend(*half, mask_bias(mask, torch.bfloat16))
            assert out.dtype == torch.bfloat16
            assert (out.float() - exact).abs().max() < 0.03
            double = [x.double() for x in (q, k, v)]
            assert attend(*double, mask_bias(mask, torch.float64)).dtype == torch.float64


def test_the_kernel_follows_the_measured_rule(monkeypatch) -> None:
    calls: list[str] = []

    def noted(name: str, f):
        return lambda *a, **k: (calls.append(name), f(*a, **k))[1]

    monkeypatch.setattr(
        "gesso.nn.attention.explicit_attention", noted("explicit", explicit_attention)
    )
    fused = noted("fused", F.scaled_dot_product_attention)
    monkeypatch.setattr("torch.nn.functional.scaled_dot_product_attention", fused)
    monkeypatch.setattr(
        "gesso.nn.attention.attention_by_picture", noted("by picture", attention_by_picture)
    )
    for dtype, heads, n in (
        (torch.bfloat16, 1, 256),
        (torch.bfloat16, 1, 257),
        (torch.float32, 1, 128),
        (torch.bfloat16, 3, 64),
        (torch.bfloat16, 16, 640),
    ):
        x = torch.zeros(1, heads, n, 8, dtype=dtype)
        attend(x, x, x)
        with torch.no_grad():
            attend(x, x, x)
    with_gradients, without = calls[::2], calls[1::2]
    assert with_gradients == ["explicit", "fused", "fused", "explicit", "fused"]
    assert without == ["by picture", "by picture", "fused", "fused", "fused"]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("sharpness", [1.0, 6.0])
def test_attention_by_picture_is_as_exact_as_the_fused_kernel(masked, sharpness) -> None:
    q, k, v, mask = operands()
    half = [(sharpness * x).bfloat16() for x in (q, k, v)]
    bias = mask_bias(mask, torch.bfloat16) if masked else None
    exact = F.scaled_dot_product_attention(
        *(x.float() for x in half), attn_mask=None if bias is None else bias.float()
    )
    fused = F.scaled_dot_product_attention(*half, attn_mask=bias)
    ours = attention_by_picture(*half, bias)
    assert ours.dtype == torch.bfloat16
    assert (ours - exact).norm() < 1.5 * (fused - exact).norm()


@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_form_of_linear_equals_the_plain_one(monkeypatch, autocast: bool) -> None:
    torch.manual_seed(0)
    layer, x = Linear(6, 4), torch.randn(3, 5, 6)
    parameters = (x, layer.weight, layer.bias)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            state = {"weight": weight, "bias": bias}
            return torch.func.functional_call(layer, state, (x,))

    plain = gradients(run, *parameters)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    form = gradients(run, *parameters)
    for a, b in zip(form, plain, strict=True):
        assert a.dtype == b.dtype
        assert torch.allclose(a, b, atol=5e-2 if autocast else 1e-5)
    assert form[0].dtype == (torch.bfloat16 if autocast else torch.float32)


def test_compiled_form_of_gelu_equals_the_plain_one(monkeypatch) -> None:
    x = torch.linspace(-9, 9, 1001, dtype=torch.float32)
    plain = gradients(gelu_tanh, x)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for a, b in zip(gradients(gelu_tanh, x), plain, strict=True):
        assert torch.allclose(a, b, atol=2e-6)
    assert gelu_tanh(x.bfloat16()).dtype == torch.bfloat16


def batch(length: int = 5) -> tuple[Tensor, Tensor, Cond]:
    g = torch.Generator().manual_seed(length)
    mask = torch.arange(length) < torch.tensor([[length], [2]])
    cond = Cond(tokens=torch.randn(2, length, 12, generator=g), mask=mask)
    return torch.randn(2, 4, 8, 8, generator=g), torch.tensor([3.0, 700.0]), cond


def random_model() -> PixArt:
    torch.manual_seed(0)
    model = PixArt(SMALL)
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model


def learn(model: PixArt, length: int) -> list[Tensor]:
    model.zero_grad()
    out = model(*batch(length)).value
    out.square().mean().backward()
    return [out.detach(), *(p.grad for p in model.parameters())]


def test_compiled_blocks_learn_the_same_with_one_graph(monkeypatch) -> None:
    """Traced and differentiated as for real, only not turned into C++, which takes long."""
    graphs = []

    def backend(graph, inputs):
        from torch._dynamo.backends.debugging import aot_eager

        graphs.append(graph)
        return aot_eager(graph, inputs)

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    plain, model = random_model(), random_model()
    names = list(model.state_dict())
    assert compile_blocks([model])
    assert list(model.state_dict()) == names
    graphs.clear()
    for length in (5, 8, 3):  # all padded to 8
        for a, b in zip(learn(model, length), learn(plain, length), strict=True):
            assert torch.allclose(a, b, atol=1e-4, rtol=1e-3)
    assert len(graphs) == 1  # for three blocks and three lengths
    with torch.no_grad():  # sampling stays eager, whatever the size
        assert torch.equal(model(*batch(7)).value, plain(*batch(7)).value)
    assert len(graphs) == 1
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.final_layer.linear.weight)
    assert twin.blocks[0].forward.__self__ is twin.blocks[0]


def test_without_a_compiler_training_goes_on_with_one_warning(monkeypatch) -> None:
    def broken(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nmore lines")

    monkeypatch.setattr(torch, "compile", lambda f: broken)
    model = random_model()
    with pytest.warns(UserWarning, match="no C\\+\\+ compiler$") as found:
        assert not compile_blocks([model])
    assert len(found) == 1
    assert all(x.isfinite().all() for x in learn(model, 5))


def test_padding_hook_leaves_conditions_without_tokens_alone() -> None:
    hook = nn_compile._FixedText()
    ids = Cond(ids=torch.ones(2, 5, dtype=torch.long))
    assert hook(nn.Identity(), (ids, 3)) == (ids, 3)
    (padded,) = hook(nn.Identity(), (Cond(tokens=torch.ones(2, 9, 4)),))
    assert padded.tokens.shape == (2, 16, 4)
    assert padded.mask.sum(1).tolist() == [9, 9]
