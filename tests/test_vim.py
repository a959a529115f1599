"""VIM: against GPT-2 of transformers, with and without a cache, and what it refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gesso.backbones.vim import SIZES, VIM, Block, Config
from gesso.draws import Draws
from gesso.nn.dropout import Dropout, dropping
from gesso.nn.init import WithoutWeights
from gesso.nn.kv_cache import Cache
from gesso.nn.recompute import recompute_blocks
from gesso.types import Cond, GessoError

SMALL: dict[str, Any] = {"depth": 2, "hidden_size": 16, "num_heads": 2, "grid": (3, 4)}
SMALL |= {"vocabulary": 11, "in_channels": 4, "text_dim": 6, "pooled_dim": 5}
COUNT = 12  # codes of a picture


def randomised(**options: Any) -> VIM:
    torch.manual_seed(0)
    model = VIM(Config(**(SMALL | options)))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.3)
    return model.eval()


def codes(batch: int = 2, count: int = COUNT) -> Tensor:
    return torch.randint(11, (batch, count), generator=torch.Generator().manual_seed(1))


def text(batch: int = 2, length: int = 5) -> Cond:
    g = torch.Generator().manual_seed(2)
    mask = torch.arange(length) < torch.tensor([[length], [3]])[:batch]
    tokens = torch.randn(2, length, 6, generator=g)[:batch]
    return Cond(tokens=tokens, mask=mask, pooled=torch.randn(2, 5, generator=g)[:batch])


def gpt2(model: VIM) -> nn.Module:
    """transformers' GPT-2 with the weights of a class-conditional VIM, behind its embeddings."""
    from transformers import GPT2Config, GPT2Model

    config = model.config
    made = GPT2Model(
        GPT2Config(
            vocab_size=1,
            n_positions=COUNT,
            n_embd=config.hidden_size,
            n_layer=config.depth,
            n_head=config.num_heads,
            attn_implementation="eager",
        )
    ).eval()
    with torch.no_grad():
        made.wpe.weight.zero_()
        for theirs, ours in zip(made.h, model.blocks, strict=True):
            for a, b in (
                (theirs.attn.c_attn, ours.attn.qkv),
                (theirs.attn.c_proj, ours.attn.proj),
                (theirs.mlp.c_fc, ours.mlp.fc1),
                (theirs.mlp.c_proj, ours.mlp.fc2),
            ):
                a.weight.copy_(b.weight.T)
                a.bias.copy_(b.bias)
            theirs.ln_1.load_state_dict(ours.norm1.state_dict())
            theirs.ln_2.load_state_dict(ours.norm2.state_dict())
        made.ln_f.load_state_dict(model.norm.state_dict())
    return made


def test_equals_gpt2_on_copied_weights() -> None:
    model, label = randomised(num_classes=3), torch.tensor([2, 3])
    seen = codes()[:, :-1]
    with torch.no_grad():
        place = torch.tensor([[divmod(i, 4) for i in range(COUNT - 1)]])  # row, column
        x = model.code(seen) + model.row(place[..., 0]) + model.column(place[..., 1])
        x = torch.cat([model.label.embedding_table(label)[:, None], x], dim=1)
        hidden = gpt2(model)(inputs_embeds=x).last_hidden_state
        expected = hidden @ model.head.weight.T + model.head.bias
        found = model.teach(codes(), Cond(label=label), None)
    assert found.shape == (2, COUNT, 11)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "cond"),
    [({}, text()), ({}, text(1).replace(mask=None)), ({"num_classes": 3}, None)],
)
def test_step_by_step_equals_teacher_forced(options: dict[str, Any], cond: Cond | None) -> None:
    model = randomised(**options)
    cond = cond or Cond(label=torch.tensor([0, 3]))
    given, cache = codes(len(cond)), Cache()
    with torch.no_grad():
        taught = model.teach(given, cond, None)
        steps = [model.follow(given[:, :n], cond, None, cache) for n in range(COUNT)]
    assert all(step.shape == (len(cond), 1, 11) for step in steps)
    torch.testing.assert_close(torch.cat(steps, dim=1), taught, atol=1e-5, rtol=1e-5)


def test_a_code_is_predicted_from_those_before_it_and_the_text() -> None:
    model, given = randomised(), codes()
    changed = given.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    with torch.no_grad():
        a, b = model.teach(given, text(), None), model.teach(changed, text(), None)
        assert torch.equal(a[:, :6], b[:, :6])
        assert (a[:, 6:] - b[:, 6:]).abs().amax(dim=(0, 2)).min() > 1e-4
        other = text()
        other.tokens[0, 0] += 1
        c = model.teach(given, other, None)
    assert (a[0] - c[0]).abs().amax(dim=1).min() > 1e-4  # the text reaches every code
    assert torch.equal(a[1], c[1])


def test_padding_and_neighbours_change_nothing() -> None:
    model, given, cond = randomised(), codes(), text()
    with torch.no_grad():
        both = model.teach(given, cond, None)
        other = cond.replace(tokens=cond.tokens.clone())
        other.tokens[1, 3:] = 9.0  # padding
        torch.testing.assert_close(model.teach(given, other, None), both, atol=1e-6, rtol=0)
        short = Cond(tokens=cond.tokens[1:, :3], pooled=cond.pooled[1:])
        alone = model.teach(given[1:], short, None)
    torch.testing.assert_close(alone, both[1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{}, {"num_classes": 3}])
def test_every_parameter_learns(options: dict[str, Any]) -> None:
    model = randomised(**options).train()
    cond = Cond(label=torch.tensor([0, 3])) if options else text()
    logits = model.teach(codes(), cond, None)
    F.cross_entropy(logits.flatten(0, 1), codes().flatten()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def test_dropout_follows_from_the_draws_alone() -> None:
    layer, x = Dropout(0.3).train(), torch.ones(64, 50)
    assert torch.equal(layer(x), x)
    with dropping(layer, Draws("cpu", 1, 2)):
        once, twice = layer(x), layer(x)
    assert torch.equal(once, twice) and torch.equal(layer(x), x)
    assert set(once.unique().tolist()) == {0.0, float(torch.ones(()) / (1 - 0.3))}
    assert 0.25 < float((once == 0).float().mean()) < 0.35
    parts = []
    for rows in (slice(0, 24), slice(24, 64)):  # two processes that share the batch
        with dropping(layer, Draws("cpu", 1, 2, rows=rows, total=64)):
            parts.append(layer(x[rows]))
    assert torch.equal(torch.cat(parts), once)
    with dropping(layer.eval(), Draws("cpu", 1, 2)):
        assert torch.equal(layer(x), x)


def test_layers_drop_apart_and_recomputed_blocks_drop_alike() -> None:
    grads = []
    for again in (False, True):
        model = randomised(dropout=0.4).train()
        if again:
            recompute_blocks([model])
        with dropping(model, Draws("cpu", 1)):
            model.teach(codes(), text(), None).square().mean().backward()
        grads.append([p.grad for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)
    layers = nn.ModuleList([Dropout(0.5), Dropout(0.5)]).train()
    with dropping(layers, Draws("cpu", 1)):
        a, b = (layer(torch.ones(100)) for layer in layers)
    assert not torch.equal(a, b)


def test_published_sizes() -> None:
    """24 and 36 blocks of 12 D^2 products; the paper counts 0.65 and 1.70 billion."""
    for name, billions in (("base", 0.71), ("large", 1.85)):
        with WithoutWeights():
            model = VIM(SIZES[name])
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(billions, abs=0.01)
        assert all(isinstance(block, Block) for block in model.blocks)


def test_bad_input_is_one_sentence() -> None:
    model = randomised()
    with pytest.raises(GessoError, match=r"12 codes a picture, a grid of 3x4.* has 9"):
        model.teach(codes(count=9), text(), None)
    with pytest.raises(GessoError, match="grid of 3x4, and pictures of this size have 4x4"):
        model.groups((4, 4))
    assert model.groups((3, 4)) == [1] * COUNT
    with pytest.raises(GessoError, match="pooled text of width 5, got none"):
        model.teach(codes(), text().replace(pooled=None), None)
    with pytest.raises(GessoError, match="takes class labels"):
        randomised(num_classes=3).teach(codes(), text(), None)
    with pytest.raises(GessoError, match=r"class label 4 is out of range: this vim has 3 classes"):
        randomised(num_classes=3).teach(codes(1), Cond(label=torch.tensor([4])), None)
    tokenizer = SimpleNamespace(vocabulary=12, channels=4, codes=None)
    with pytest.raises(GessoError, match="tokenizer of 11 codes, and this one has 12"):
        model.check(tokenizer)
    with pytest.raises(GessoError, match="several scales"):
        model.check(SimpleNamespace(vocabulary=11, channels=4, codes=None, scales=[1, 2]))
    model.check(SimpleNamespace(vocabulary=11, channels=4, codes=None))
