"""OneIG-Bench's style: CSD's checkpoint through transformers' CLIP, and the score by hand."""

import judge_fakes as fakes
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gesso.evals.benchmarks.oneig import BENCHMARK as OneIG
from gesso.evals.benchmarks.oneig import style_score
from gesso.evals.judging import open_judge
from gesso.evals.networks import clip_pixels
from gesso.evals.types import Options, Picture, Prompt, Style
from gesso.types import GessoError

WIDTH, FEATURES, SIDE, PATCH = 128, 12, 32, 16


class Block(nn.Module):
    """A residual block as OpenAI's CLIP has it."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(WIDTH, WIDTH // 64, batch_first=True)
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mlp = nn.ModuleDict(
            {"c_fc": nn.Linear(WIDTH, 4 * WIDTH), "c_proj": nn.Linear(4 * WIDTH, WIDTH)}
        )

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        inner = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](inner * torch.sigmoid(1.702 * inner))


class Tower(nn.Module):
    """OpenAI's ViT without its projection, written out."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(WIDTH))
        self.positional_embedding = nn.Parameter(torch.zeros((SIDE // PATCH) ** 2 + 1, WIDTH))
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList([Block(), Block()])})

    def forward(self, pixels):
        x = self.conv1(pixels).flatten(2).mT
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1)
        x = self.ln_pre(x + self.positional_embedding)
        for block in self.transformer["resblocks"]:
            x = block(x)
        return self.ln_post(x[:, 0])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    place = tmp_path_factory.mktemp("style")
    generator = torch.Generator().manual_seed(0)
    tower = Tower().eval()
    with torch.no_grad():
        for p in tower.parameters():
            p.copy_((p == 1) + torch.randn(p.shape, generator=generator) * 0.15)
    projection = torch.randn(WIDTH, FEATURES, generator=generator)
    held = {f"module.backbone.{k}": v for k, v in tower.state_dict().items()}
    held |= {"module.last_layer_style": projection, "module.last_layer_content": projection + 1}
    torch.save({"model_state_dict": held}, place / "checkpoint.pth")
    config = CLIPVisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        image_size=SIDE, patch_size=PATCH, projection_dim=20,
    )  # fmt: skip
    size = {"shortest_edge": SIDE}, {"height": SIDE, "width": SIDE}
    processor = CLIPImageProcessor(size=size[0], crop_size=size[1])
    fakes.save(place / "encoder", CLIPVisionModelWithProjection(config), processor)
    return place, tower, projection


def spec(place, csd="checkpoint.pth"):
    return f"oneig-style:path={place / 'encoder'},csd={place / csd},batch_size=2"


def test_styles_are_those_of_openais_tower_and_of_transformers(weights):
    place, tower, projection = weights
    judge = open_judge(spec(place))
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40, 32 + 8 * i, 3)).astype(np.uint8) for i in range(3)]
    with torch.no_grad():
        seen = tower(torch.stack([clip_pixels(i, SIDE) for i in images])) @ projection
        batch = judge.net.processor(images, return_tensors="pt")
        other = judge.net.model(**batch).image_embeds
    told = judge.style(images)
    expected = torch.cat([F.normalize(x, dim=-1) for x in (seen, other)], 1)
    assert np.stack(told) == pytest.approx(expected.numpy(), abs=2e-5)
    assert abs(told[0] - told[1]).max() > 0.01


def test_another_checkpoint_is_one_sentence(weights):
    place, _, _ = weights
    torch.save({"model_state_dict": {"module.backbone.conv1.weight": torch.ones(1)}}, place / "o")
    for file, message in (("o", "is no checkpoint of CSD"), ("nowhere", "no CSD checkpoint")):
        with pytest.raises(GessoError, match=message) as error:
            open_judge(spec(place, file))
        assert "\n" not in str(error.value)


def test_the_likest_reference_of_each_encoder_counts_and_never_below_zero():
    told = np.array([1.0, 0.0, 0.6, 0.8, 0.0])
    csd, other = np.array([[0.0, 1.0], [0.8, 0.6]]), np.array([[-1.0, 0.0, 0.0]])
    assert style_score(told, [csd, other]) == pytest.approx((0.8 + 0) / 2)
    assert style_score(told, [csd, np.array([[0.6, 0.8, 0.0]])]) == pytest.approx((0.8 + 1) / 2)


def test_other_encoders_than_the_references_are_one_sentence():
    with pytest.raises(GessoError, match=r"5 features .* 2 \+ 2"):
        style_score(np.zeros(5), [np.zeros((1, 2))] * 2)


def test_oneig_asks_for_the_style_of_prompts_that_have_one():
    benchmark = OneIG()
    benchmark._references = [{"pop_art": np.array([[1.0, 0.0]])}] * 2
    prompt = Prompt("0", "", {"style": "pop_art"}, ("Anime_Stylization",))
    pictures = [Picture(pixels=np.zeros((8, 8, 3), np.uint8))] * 2
    judging = benchmark.judge(prompt, pictures)
    asks = judging.send(None)
    assert len(asks) == 2 and all(isinstance(ask, Style) for ask in asks)
    with pytest.raises(StopIteration) as end:
        judging.send([np.array([1.0, 0.0, 1.0, 0.0]), np.array([0.0, 1.0, 0.6, 0.8])])
    assert end.value.value.parts == {"style": [pytest.approx((1 + 0.3) / 2)]}
    parts = {"alignment": np.array([0.5]), "style": np.array([0.7])}
    assert benchmark.total(np.array([0.0]), parts) == pytest.approx([0.6])


def test_references_that_are_absent_or_lack_a_style_are_one_sentence(shared, tmp_path):
    import shutil

    place = tmp_path / "oneig"
    shutil.copytree(shared / "benchmarks" / "oneig", place)
    benchmark = OneIG()
    benchmark.abilities = frozenset({"style"})
    with pytest.raises(GessoError, match=r"CSD_embed.pt"):
        benchmark.prompts(Options(prompts=place))
    (place / "scripts/style").mkdir()
    for file in ("CSD_embed.pt", "SE_embed.pt"):
        torch.save({"pop_art": 2 * torch.eye(3)}, place / "scripts/style" / file)
    styles = place / "scripts/style/style.csv"
    styles.write_text(",id,class\n0,000,\n1,001,pop art\n")
    prompts = benchmark.prompts(Options(prompts=place))
    (one,) = [p for p in prompts if "style" in p.meta]
    assert one.id == "Anime_Stylization-001" and one.meta["style"] == "pop_art"
    assert benchmark._references[0]["pop_art"] == pytest.approx(np.eye(3))
    styles.write_text(",id,class\n0,000,Rococo\n")
    with pytest.raises(GessoError, match="'rococo'"):
        benchmark.prompts(Options(prompts=place))
