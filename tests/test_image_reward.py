"""ImageReward: the released layout through transformers' BLIP, against its equations."""

import json

import judge_fakes as fakes
import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from gesso.evals.judging import open_judge
from gesso.evals.measure import measure
from gesso.evals.networks import clip_pixels
from gesso.types import GessoError

WIDTH, TEXT, SIDE, PATCH, DEPTH = 128, 64, 32, 16, 2  # two heads that look, one that reads


def released(seed=0):
    """Random tensors with the names and shapes of ImageReward.pt, small."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}

    def linear(name, outputs, inputs):
        tensors[f"{name}.weight"] = torch.randn(outputs, inputs, generator=generator) * 0.15
        tensors[f"{name}.bias"] = torch.randn(outputs, generator=generator) * 0.1

    def norm(name, width):
        tensors[f"{name}.weight"] = 1 + torch.randn(width, generator=generator) * 0.1
        tensors[f"{name}.bias"] = torch.randn(width, generator=generator) * 0.1

    look, read = "blip.visual_encoder", "blip.text_encoder"
    tensors[f"{look}.cls_token"] = torch.randn(1, 1, WIDTH, generator=generator)
    tensors[f"{look}.pos_embed"] = torch.randn(1, 1 + (SIDE // PATCH) ** 2, WIDTH) * 0.5
    linear(f"{look}.patch_embed.proj", WIDTH, 3 * PATCH * PATCH)
    weight = tensors[f"{look}.patch_embed.proj.weight"] * 0.3
    tensors[f"{look}.patch_embed.proj.weight"] = weight.view(WIDTH, 3, PATCH, PATCH)
    for i in range(DEPTH):
        block = f"{look}.blocks.{i}"
        norm(f"{block}.norm1", WIDTH)
        norm(f"{block}.norm2", WIDTH)
        linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        linear(f"{block}.attn.proj", WIDTH, WIDTH)
        linear(f"{block}.mlp.fc1", 2 * WIDTH, WIDTH)
        linear(f"{block}.mlp.fc2", WIDTH, 2 * WIDTH)
    norm(f"{look}.norm", WIDTH)
    words = torch.randn(len(fakes.WORDS), TEXT, generator=generator)
    tensors[f"{read}.embeddings.position_ids"] = torch.arange(40)[None]
    tensors[f"{read}.embeddings.word_embeddings.weight"] = words
    tensors[f"{read}.embeddings.position_embeddings.weight"] = torch.randn(40, TEXT)
    norm(f"{read}.embeddings.LayerNorm", TEXT)
    for i in range(DEPTH):
        layer = f"{read}.encoder.layer.{i}"
        for name, inputs in (("attention", TEXT), ("crossattention", WIDTH)):
            linear(f"{layer}.{name}.self.query", TEXT, TEXT)
            linear(f"{layer}.{name}.self.key", TEXT, inputs)
            linear(f"{layer}.{name}.self.value", TEXT, inputs)
            linear(f"{layer}.{name}.output.dense", TEXT, TEXT)
            norm(f"{layer}.{name}.output.LayerNorm", TEXT)
        linear(f"{layer}.intermediate.dense", 2 * TEXT, TEXT)
        linear(f"{layer}.output.dense", TEXT, 2 * TEXT)
        norm(f"{layer}.output.LayerNorm", TEXT)
    linear("blip.vision_proj", 8, WIDTH)
    linear("blip.text_proj", 8, TEXT)
    inputs = TEXT
    for place, width in zip((0, 2, 4, 6, 7), (1024, 128, 64, 16, 1), strict=True):
        linear(f"mlp.layers.{place}", width, inputs)
        inputs = width
    return tensors


def equations(t, pixels, ids):
    """The reward of pixels [3, S, S] for a prompt's tokens [L], step by step, without padding."""

    def linear(x, name):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    def norm(x, name, eps):
        return F.layer_norm(x, x.shape[-1:], t[f"{name}.weight"], t[f"{name}.bias"], eps)

    def attend(q, k, v, heads):
        q, k, v = (y.view(len(y), heads, -1).transpose(0, 1) for y in (q, k, v))
        weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        return (weights @ v).transpose(0, 1).flatten(1)

    look = "blip.visual_encoder"
    grid = SIDE // PATCH
    patches = pixels.view(3, grid, PATCH, grid, PATCH).permute(1, 3, 0, 2, 4).reshape(grid**2, -1)
    kernel = t[f"{look}.patch_embed.proj.weight"].flatten(1)
    patches = patches @ kernel.T + t[f"{look}.patch_embed.proj.bias"]
    x = torch.cat([t[f"{look}.cls_token"][0], patches]) + t[f"{look}.pos_embed"][0]
    for i in range(DEPTH):
        b = f"{look}.blocks.{i}"
        q, k, v = linear(norm(x, f"{b}.norm1", 1e-6), f"{b}.attn.qkv").chunk(3, -1)
        x = x + linear(attend(q, k, v, WIDTH // 64), f"{b}.attn.proj")
        inner = F.gelu(linear(norm(x, f"{b}.norm2", 1e-6), f"{b}.mlp.fc1"))
        x = x + linear(inner, f"{b}.mlp.fc2")
    seen = norm(x, f"{look}.norm", 1e-6)
    read = "blip.text_encoder"
    h = t[f"{read}.embeddings.word_embeddings.weight"][ids]
    h = h + t[f"{read}.embeddings.position_embeddings.weight"][: len(ids)]
    h = norm(h, f"{read}.embeddings.LayerNorm", 1e-12)
    for i in range(DEPTH):
        layer = f"{read}.encoder.layer.{i}"
        for name, source in (("attention", None), ("crossattention", seen)):
            at = f"{layer}.{name}"
            other = h if source is None else source
            mixed = attend(
                linear(h, f"{at}.self.query"),
                *(linear(other, f"{at}.self.{kind}") for kind in ("key", "value")),
                TEXT // 64,
            )
            h = norm(h + linear(mixed, f"{at}.output.dense"), f"{at}.output.LayerNorm", 1e-12)
        inner = F.gelu(linear(h, f"{layer}.intermediate.dense"))
        h = norm(h + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm", 1e-12)
    y = h[0]
    for place in (0, 2, 4, 6, 7):
        y = linear(y, f"mlp.layers.{place}")
    return (float(y) - 0.16717362830052426) / 1.0333394966054072


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    place = tmp_path_factory.mktemp("reward")
    fakes.bert_tokenizer(place / "words").save_pretrained(place / "words")
    tensors = released()
    torch.save(tensors, place / "ImageReward.pt")
    return place, tensors


def spec(place, file="ImageReward.pt"):
    return f"image-reward:path={place / file},tokenizer={place / 'words'},batch_size=2"


def test_rewards_are_the_equations(weights):
    place, tensors = weights
    judge = open_judge(spec(place))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (32, 32, 3)).astype(np.uint8) for _ in range(5)]
    texts = ["a cat", "two red dog above the blue star", "a cat", "", "photo of a circle ?"]
    ids = [judge.tokenizer(text)["input_ids"] for text in texts]
    expected = [
        equations(tensors, clip_pixels(image, SIDE), torch.tensor(tokens))
        for image, tokens in zip(images, ids, strict=True)
    ]
    assert np.std(expected) > 0.05  # pictures and prompts matter
    assert judge.score(images, texts) == pytest.approx(expected, abs=2e-4)
    # Neither the batch nor the longer prompts beside one change its reward.
    assert judge.score(images[:1], texts[:1]) == pytest.approx(expected[:1], abs=2e-4)
    assert judge.score(images[:1], texts[1:2])[0] != pytest.approx(expected[0], abs=1e-3)


def test_a_picture_is_resized_by_its_shorter_side_and_cut_in_the_middle():
    ramp = np.linspace(0, 255, 96).astype(np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (48, 96, 3))
    pixels = clip_pixels(np.ascontiguousarray(image), 24)
    assert pixels.shape == (3, 24, 24)
    back = pixels[0, 12] * 0.26862954 + 0.48145466  # red, the middle row
    assert float(back.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(back[0]) == pytest.approx(0.25, abs=0.02)  # a quarter of the width is cut off
    assert float(back[-1]) == pytest.approx(0.75, abs=0.02)


def test_image_reward_is_a_metric_of_pictures_with_prompts(weights, tmp_path):
    place, _ = weights
    rng = np.random.default_rng(1)
    rows = []
    (tmp_path / "mine").mkdir()
    for i in range(3):
        pixels = rng.integers(0, 256, (40, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"mine/{i}.png")
        rows.append(json.dumps({"file": f"{i}.png", "prompt": "a red cat"}))
    (tmp_path / "mine/metadata.jsonl").write_text("\n".join(rows) + "\n")
    told = measure(
        "image_reward", [tmp_path / "mine"], judges=[spec(place)], out=tmp_path, quiet=True
    )
    judge = open_judge(spec(place))
    images = [np.asarray(Image.open(tmp_path / f"mine/{i}.png")) for i in range(3)]
    assert told["results"][0]["overall"] == pytest.approx(
        np.mean(judge.score(images, ["a red cat"] * 3)), abs=1e-5
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t: t.pop("mlp.layers.7.bias"), "is no ImageReward"),
        (lambda t: t.pop("blip.visual_encoder.norm.weight"), "is no ImageReward"),
        (lambda t: t.pop("blip.text_encoder.embeddings.word_embeddings.weight"), "ImageReward.pt"),
        (lambda t: t.update(extra="text"), "something else than tensors"),
    ],
)
def test_other_weights_are_one_sentence(weights, tmp_path, change, told):
    place, _ = weights
    tensors = released()
    change(tensors)
    torch.save(tensors, place / "other.pt")
    with pytest.raises(GessoError, match=told) as error:
        open_judge(spec(place, "other.pt"))
    assert "\n" not in str(error.value)
    with pytest.raises(GessoError, match="no ImageReward file"):
        open_judge(spec(place, "nowhere.pt"))
