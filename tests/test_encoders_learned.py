"""The learned text encoder: words, truncation, masking, training."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gesso.encoders.text import learned
from gesso.types import Cond, GessoError

WORDS = ["a", "red", "circle", "square", "left", "of", ".", "blue"]


def make_learned(**options) -> learned.LearnedTextEncoder:
    torch.manual_seed(0)
    return learned.build(learned.Config(words=WORDS, width=16, heads=2, **options))


def real(cond: Cond, row: int) -> Tensor:
    """The tokens of a row without padding."""
    assert cond.tokens is not None and cond.mask is not None
    return cond.tokens[row, cond.mask[row]]


def test_learned_splits_lower_cases_and_ends():
    encoder = make_learned()
    cond = encoder.prepare(["A RED circle.", "", "a zebra"])
    a, red, circle, stop = (3 + WORDS.index(w) for w in ("a", "red", "circle", "."))
    end, unknown = learned.EOS, learned.UNKNOWN
    expected = [[a, red, circle, stop, end], [end, 0, 0, 0, 0], [a, unknown, end, 0, 0]]
    assert cond.ids.tolist() == expected
    assert cond.mask.sum(1).tolist() == [5, 1, 3]
    assert cond.tokens is None


def test_learned_truncates_and_says_so():
    encoder = make_learned(max_tokens=4)
    cond = encoder.prepare(["a red circle left of a blue square"])
    assert cond.ids.shape == (1, 4)
    assert cond.ids[0, -1] == learned.EOS
    assert encoder.dropped("a red circle left of a blue square") == "left of a blue square"
    assert encoder.dropped("a red circle") == ""


def test_learned_tokens_do_not_depend_on_padding_or_neighbours():
    encoder = make_learned()
    alone = encoder(encoder.prepare(["a red circle"]))
    cond = encoder.prepare(["a red circle", "a blue square left of a red circle"])
    together = encoder(cond)
    assert together.tokens.shape == (2, 9, 16)
    assert torch.allclose(real(alone, 0), real(together, 0), atol=1e-5)
    scrambled = cond.replace(ids=torch.where(cond.mask, cond.ids, learned.UNKNOWN))
    assert torch.allclose(real(encoder(scrambled), 0), real(together, 0), atol=1e-5)


def test_learned_reads_both_ways_and_in_order():
    encoder = make_learned()
    cond = encoder(encoder.prepare(["a red circle", "a red square", "red a circle"]))
    assert (cond.tokens[0, 0] - cond.tokens[1, 0]).abs().max() > 1e-3  # the last word reaches back
    assert (cond.tokens[0, 2] - cond.tokens[2, 2]).abs().max() > 1e-3  # order matters


def test_learned_is_trained_and_normalised():
    encoder = make_learned()
    assert encoder.trainable
    tokens = encoder(encoder.prepare(["a red circle"])).tokens
    assert torch.allclose(tokens.std(-1, correction=0), torch.ones(1, 4), atol=1e-2)
    (tokens * torch.randn(16, generator=torch.Generator().manual_seed(0))).sum().backward()
    for name, p in encoder.named_parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_learned_runs_in_bfloat16():
    encoder = make_learned()
    cond = encoder.prepare(["a red circle", "a"])
    with torch.autocast("cpu", torch.bfloat16):
        low = encoder(cond).tokens
    assert torch.allclose(low.float(), encoder(cond).tokens, atol=0.1)


def test_learned_returns_tokens_that_are_there():
    cond = Cond(tokens=torch.zeros(1, 2, 16), mask=torch.ones(1, 2, dtype=torch.bool))
    assert make_learned()(cond) is cond


def test_learned_refuses_bad_options():
    with pytest.raises(GessoError, match="has no words"):
        learned.build(learned.Config())
    with pytest.raises(GessoError, match="width 10 is no multiple of its 4 heads"):
        learned.build(learned.Config(words=WORDS, width=10))


def test_learned_fingerprint_is_of_the_vocabulary_alone():
    encoder = make_learned()
    before = encoder.fingerprint()
    with torch.no_grad():
        encoder.embed.weight += 1
    assert encoder.fingerprint() == before
    assert make_learned(max_tokens=8).fingerprint() != before
    other = learned.build(learned.Config(words=[*WORDS, "star"], width=16, heads=2))
    assert other.fingerprint() != before


def test_pooled_text_is_the_mean_of_the_real_tokens() -> None:
    """Of a short prompt beside a long one as of it alone."""
    encoder = make_learned()
    both = encoder(encoder.prepare(["red", "a red circle"]))
    alone = encoder(encoder.prepare(["red"]))
    assert both.pooled is not None and alone.pooled is not None and alone.tokens is not None
    assert encoder.pooled_dim == both.pooled.shape[1] == 16
    torch.testing.assert_close(both.pooled[:1], alone.pooled)
    torch.testing.assert_close(alone.pooled, alone.tokens.mean(1))
