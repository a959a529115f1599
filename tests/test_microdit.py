"""MicroDiT against its equations, written out plainly; its published sizes; its experts."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from gesso.backbones.microdit import SIZES, Config, MicroDiT
from gesso.nn.compile import compile_blocks
from gesso.nn.moe import ExpertChoice
from gesso.types import Cond, GessoError

SMALL = {
    "depth": 4,
    "hidden_size": 48,
    "head_dim": 8,
    "mixer_depth": 2,
    "mixer_size": 32,
    "text_dim": 20,
    "multiple_of": 16,
    "mlp_ratio": (0.5, 4.0),
    "attention_ratio": (0.5, 1.0),
    "experts": 4,
}
Weights = dict[str, Tensor]


def randomised(dtype: torch.dtype = torch.float32, **options) -> MicroDiT:
    """A model with every parameter random, so that no branch is silent."""
    torch.manual_seed(0)
    model = MicroDiT(Config(**{**SMALL, **options})).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model.eval()


def text(batch: int = 2, length: int = 5, dtype: torch.dtype = torch.float32) -> Cond:
    g = torch.Generator().manual_seed(1)
    mask = torch.arange(length)[None] < torch.tensor([[length - 2], [length]] * batch)[:batch]
    return Cond(tokens=torch.randn(batch, length, 20, generator=g).to(dtype), mask=mask)


# The network once more, from the equations of the paper's appendix and the authors' names, picture
# by picture and token by token where that is plainer than a batched product.


def norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return x if weight is None else x * weight


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def attention(q: Tensor, k: Tensor, v: Tensor, head: int) -> Tensor:
    """One picture: q [N, D], k, v [M, D]; norms of q and k over all heads together."""
    q, k = norm(q), norm(k)
    parts = []
    for i in range(0, q.shape[1], head):
        weights = (q[:, i : i + head] @ k[:, i : i + head].T / math.sqrt(head)).softmax(-1)
        parts.append(weights @ v[:, i : i + head])
    return torch.cat(parts, dim=1)


def sine(position: Tensor, dim: int) -> Tensor:
    omega = 10000.0 ** (-torch.arange(dim // 2) / (dim / 2))
    return torch.cat([(position[:, None] * omega).sin(), (position[:, None] * omega).cos()], 1)


def experts(x: Tensor, w: Weights, capacity: float) -> Tensor:
    """Each expert takes its tokens of one picture [N, D] in a loop."""
    p = (x @ w["gate.weight"].T).softmax(-1)  # [N, E]
    count = p.shape[1]
    out = torch.zeros_like(x)
    for e in range(count):
        for n in p[:, e].argsort(descending=True)[: int(capacity * len(x) / count)]:
            hidden = F.gelu(x[n] @ w["w1"][e])  # with erf
            out[n] += p[n, e] * (hidden @ w["w2"][e])
    return out


def sub(w: Weights, prefix: str) -> Weights:
    return {k.removeprefix(prefix + "."): v for k, v in w.items() if k.startswith(prefix + ".")}


def gated(x: Tensor, w: Weights) -> Tensor:
    return (F.silu(x @ w["w1.weight"].T) * (x @ w["w2.weight"].T)) @ w["w3.weight"].T


def norm_mlp(x: Tensor, w: Weights) -> Tensor:
    x = norm(gelu_tanh(x @ w["fc1.weight"].T + w["fc1.bias"]), w["norm.weight"])
    return x @ w["fc2.weight"].T + w["fc2.bias"]


def block(x: Tensor, y: Tensor, c: Tensor, w: Weights, head: int) -> Tensor:
    m = gelu_tanh(c) @ w["adaLN_modulation.1.weight"].T + w["adaLN_modulation.1.bias"]
    shift1, scale1, gate1, shift2, scale2, gate2 = m.chunk(6)
    u = norm(x, w["norm1.weight"]) * (1 + scale1) + shift1
    q, k, v = (u @ w["attn.qkv.weight"].T).chunk(3, dim=1)
    x = x + gate1 * (attention(q, k, v, head) @ w["attn.proj.weight"].T)
    k, v = (y @ w["cross_attn.kv_linear.weight"].T).chunk(2, dim=1)
    q = norm(x, w["norm2.weight"]) @ w["cross_attn.q_linear.weight"].T
    x = x + attention(q, k, v, head) @ w["cross_attn.proj.weight"].T
    u = norm(x, w["norm3.weight"]) * (1 + scale2) + shift2
    mlp = sub(w, "mlp")
    return x + gate2 * (experts(u, mlp, 2.0) if "gate.weight" in mlp else gated(u, mlp))


def reference(model: MicroDiT, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """One picture x [C, h, w] at t [] under text [L, text_dim] without padding."""
    config, w = model.config, dict(model.state_dict())
    head, p, (channels, height, width) = config.head_dim, config.patch_size, x.shape
    patches = x.unfold(1, p, p).unfold(2, p, p).permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)
    tokens = patches @ w["x_embedder.proj.weight"].flatten(1).T + w["x_embedder.proj.bias"]
    rows, columns = height // p, width // p
    i = torch.arange(rows) * config.base_size / rows
    j = torch.arange(columns) * config.base_size / columns
    half = config.hidden_size // 2
    place = torch.cat([sine(j.repeat(rows), half), sine(i.repeat_interleave(columns), half)], 1)
    tokens = tokens + place.to(tokens)

    angle = t * 10000.0 ** (-torch.arange(256) / 256)
    c = torch.cat([angle.cos(), angle.sin()]).to(tokens)
    c = gelu_tanh(c @ w["t_embedder.mlp.0.weight"].T + w["t_embedder.mlp.0.bias"])
    c = c @ w["t_embedder.mlp.2.weight"].T + w["t_embedder.mlp.2.bias"]

    y = norm_mlp(y, sub(w, "y_embedder.y_proj"))
    caption = sub(w, "y_emb_preprocess")
    q, k, v = (norm(y, caption["norm1.weight"]) @ caption["attn.qkv.weight"].T).chunk(3, dim=1)
    y = y + attention(q, k, v, head) @ caption["attn.proj.weight"].T
    y = y + gated(norm(y, caption["norm2.weight"]), sub(caption, "mlp"))
    c = c + norm_mlp(y.mean(0), sub(w, "pooled_y_emb_process"))

    def bridge(z: Tensor, name: str) -> Tensor:
        if f"{name}.1.weight" not in w:
            return z
        return norm(z, w[f"{name}.0.weight"]) @ w[f"{name}.1.weight"].T

    if config.mixer_depth:
        narrow = bridge(y, "patch_mixer_map_y")
        tokens = bridge(tokens, "patch_mixer_map_xin")
        for n in range(config.mixer_depth):
            tokens = block(tokens, narrow, c, sub(w, f"patch_mixer.{n}"), head)
        tokens = bridge(tokens, "patch_mixer_map_xout")
    for n in range(config.depth):
        tokens = block(tokens, y, c, sub(w, f"blocks.{n}"), head)
    last = sub(w, "final_layer")
    m = gelu_tanh(c) @ last["adaLN_modulation.1.weight"].T + last["adaLN_modulation.1.bias"]
    shift, scale = m.chunk(2)
    out = (norm(tokens, last["norm_final.weight"]) * (1 + scale) + shift) @ last["linear.weight"].T
    out = (out + last["linear.bias"]).view(rows, columns, p, p, channels)
    return out.permute(4, 0, 2, 1, 3).reshape(channels, height, width)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (4, 8, 12)),
        ({"mixer_size": 48}, (4, 8, 8)),
        ({"mixer_depth": 0, "experts": 0}, (4, 4, 8)),
        ({"patch_size": 1, "in_channels": 3, "base_size": 4}, (3, 4, 5)),
    ],
)
def test_forward_equals_the_equations(options, shape) -> None:
    model = randomised(torch.float64, **options)
    x = torch.randn(2, *shape, dtype=torch.float64)
    t, cond = torch.tensor([-1.3, 0.8], dtype=torch.float64), text(dtype=torch.float64)
    with torch.no_grad():
        ours = model(x, t, cond).value
        for i, length in enumerate((3, 5)):  # padding is neither attended to nor averaged
            theirs = reference(model, x[i], t[i], cond.tokens[i, :length])
            # The sinusoids of time and place are float32.
            assert (ours[i] - theirs).abs().max() < 1e-5 * theirs.abs().max()
    assert ours.std() > 0.1


def test_without_a_mask_all_tokens_count() -> None:
    model, x, cond = randomised(), torch.randn(2, 4, 4, 4), text()
    with torch.no_grad():
        all_real = cond.replace(mask=torch.ones_like(cond.mask))
        bare = model(x, torch.zeros(2), cond.replace(mask=None)).value
        assert torch.allclose(bare, model(x, torch.zeros(2), all_real).value, atol=1e-5)
        assert not torch.allclose(bare, model(x, torch.zeros(2), cond).value, atol=1e-3)


def test_prepared_conditions_give_the_same() -> None:
    model, x, t, cond = randomised(), torch.randn(2, 4, 8, 8), torch.rand(2), text()
    with torch.no_grad():
        assert torch.allclose(
            model(x, t, model.prepare(cond)).value, model(x, t, cond).value, atol=1e-5
        )


def test_gradients_are_those_of_differences() -> None:
    """In float64, in random directions through every parameter, the router's included."""
    model = randomised(torch.float64, depth=2, hidden_size=16, mixer_size=8, multiple_of=8)
    x, cond = torch.randn(1, 4, 4, 4, dtype=torch.float64), text(1, dtype=torch.float64)
    t = torch.tensor([0.3], dtype=torch.float64)

    def loss() -> Tensor:
        return model(x, t, cond).value.square().sum()

    loss().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.any(), name
        direction = torch.randn(p.shape, dtype=torch.float64)
        direction /= direction.norm()
        values = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                p.add_(step * direction)
                values.append(loss())
                p.sub_(step * direction)
        slope = (values[0] - values[1]) / 2e-5
        expected = (p.grad * direction).sum()
        assert slope.item() == pytest.approx(expected.item(), rel=1e-4, abs=1e-3), name


@pytest.mark.parametrize(
    ("name", "parameters", "mixer"),
    [("xl", 1_165_442_320, 184_084_992), ("tiny", 200_692_752, 52_979_712)],
)
def test_published_sizes(name, parameters, mixer) -> None:
    with torch.device("meta"):
        model = MicroDiT(SIZES[name])
    assert sum(p.numel() for p in model.parameters()) == parameters
    found = sum(p.numel() for k, p in model.named_parameters() if k.startswith("patch_mixer."))
    assert found == mixer
    kinds = [type(block.mlp).__name__ for block in model.blocks]
    assert kinds[1::2] == ["ExpertChoice"] * (len(kinds) // 2 - 1) + ["SwiGLU"]
    assert set(kinds[::2]) == {"SwiGLU"}


def test_later_blocks_are_wider() -> None:
    with torch.device("meta"):
        blocks = MicroDiT(SIZES["xl"]).blocks
    widths = [block.attn.proj.in_features for block in blocks]
    assert widths[0] == 512 and widths[-1] == 1024 and widths == sorted(widths)
    dense = [block.mlp.w1.out_features for block in blocks[::2]]
    assert dense[0] == 512 and dense[-1] == 2816 and dense == sorted(dense)  # 2/3, in 256es
    assert {block.cross_attn.proj.in_features for block in blocks} == {1024}


def test_every_width_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """More widths than the 8 graphs of one function that the compiler makes by itself."""
    from torch._dynamo.testing import CompileCounter

    graphs = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=graphs))
    torch._dynamo.reset()
    options = SMALL | {"depth": 12, "head_dim": 4, "multiple_of": 4, "mixer_depth": 1}
    model = MicroDiT(Config(**options))
    widths = {tuple(p.shape for p in block.parameters()) for block in model.blocks}
    assert len(widths) == 12
    compile_blocks([model])
    before = graphs.frame_count
    model(torch.randn(2, 4, 4, 4), torch.zeros(2), text()).value.sum().backward()
    assert graphs.frame_count - before == 12 + 1  # and the mixer's


def test_initial_state() -> None:
    torch.manual_seed(0)
    model = MicroDiT(Config(depth=4, hidden_size=256, mixer_size=256, experts=4, text_dim=64))
    out = model(torch.randn(2, 4, 8, 8), torch.zeros(2), Cond(tokens=torch.randn(2, 3, 64)))
    assert not out.value.any()
    out.value.sum().backward()
    assert model.final_layer.linear.weight.grad.any()
    for i, block in enumerate(model.blocks):
        assert not block.adaLN_modulation[1].weight.any()
        expected = 0.02 / math.sqrt(2 * (i + 1))
        assert block.attn.proj.weight.std().item() == pytest.approx(expected, rel=0.03)
        assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.03)
    expected = 0.02 / math.sqrt(2 * 4)
    for block in model.patch_mixer:
        assert block.cross_attn.proj.weight.std().item() == pytest.approx(expected, rel=0.03)
    assert model.blocks[1].mlp.w2.std().item() == pytest.approx(0.02 / 2, rel=0.03)
    assert not model.y_emb_preprocess.attn.proj.weight.any()


@pytest.mark.parametrize("capacity", [1.0, 2.0, 3.7])
def test_experts_choose_as_in_a_loop(capacity) -> None:
    torch.manual_seed(0)
    moe = ExpertChoice(12, 24, 4, capacity, std=0.5, out_std=0.5).double()
    x = torch.randn(3, 10, 12, dtype=torch.float64, requires_grad=True)
    weights = dict(moe.named_parameters())
    loop = torch.stack([experts(picture, weights, capacity) for picture in x])
    out = moe(x)
    assert torch.allclose(out, loop, atol=1e-12)
    direction = torch.randn_like(out)
    inputs = [x, *moe.parameters()]
    ours = torch.autograd.grad((out * direction).sum(), inputs)
    theirs = torch.autograd.grad((loop * direction).sum(), inputs)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, atol=1e-11)


def test_every_expert_takes_its_share_of_each_picture() -> None:
    """Also of a picture whose tokens all like one expert; what nobody takes stays zero."""
    moe = ExpertChoice(8, 8, 4, capacity=1.0, std=1.0, out_std=1.0)
    with torch.no_grad():
        moe.gate.weight.copy_(torch.eye(8)[:4])
    x = torch.zeros(2, 16, 8)
    x[:, :, 0] = torch.linspace(1, 2, 16)  # all for expert 0, and the same ones most
    out = moe(x)
    taken = out.abs().sum(-1) > 0
    assert taken[:, -4:].all()  # the favourites of expert 0
    assert 4 <= taken[0].sum() <= 16 - 4
    with pytest.raises(GessoError, match="capacity"):
        ExpertChoice(8, 8, 4, capacity=4.5, std=1.0, out_std=1.0)


@pytest.mark.parametrize(
    ("options", "shape", "changes", "message"),
    [
        ({}, (4, 7, 8), {}, "divisible"),
        ({}, (3, 8, 8), {}, "4 channels"),
        ({}, (4, 8, 8), {"tokens": None}, "text tokens"),
        ({}, (4, 8, 8), {"tokens": torch.zeros(2, 7, 21)}, "width 20"),
        ({"hidden_size": 44}, None, {}, "hidden_size 44"),
        ({"mixer_size": 36}, None, {}, "mixer_size 36"),
    ],
)
def test_what_does_not_fit_is_refused(options, shape, changes, message) -> None:
    with pytest.raises(GessoError, match=message):
        model = MicroDiT(Config(**{**SMALL, **options}))
        model(torch.zeros(2, *shape), torch.zeros(2), text().replace(**changes))


def test_null_is_zeroed_text() -> None:
    model, cond = randomised(), text()
    null = model.null(cond)
    assert not null.tokens.any() and torch.equal(null.mask, cond.mask)
