"""LPIPS and its diversity against torchmetrics' own LPIPS, on random weights of AlexNet."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchmetrics.functional.image import lpips as theirs

from gesso.evals.judges.lpips import load_heads
from gesso.evals.judging import open_judge
from gesso.evals.lpips import AlexNet
from gesso.evals.measure import measure
from gesso.types import GessoError

RNG = np.random.default_rng(0)
PICTURES = [RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8) for _ in range(6)]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file as torchvision's, with the classifier that LPIPS does not use."""
    torch.manual_seed(0)
    state = AlexNet().state_dict() | {"classifier.1.weight": torch.zeros(2, 2)}
    file = tmp_path_factory.mktemp("lpips") / "alexnet.pth"
    torch.save(state, file)
    save_file(state, file.with_suffix(".safetensors"))
    return file


@pytest.fixture(scope="module")
def network(weights):
    """torchmetrics' LPIPS with the same trunk; its learned heads are its own."""
    trunk = AlexNet()
    trunk.load_state_dict(
        {k: v for k, v in torch.load(weights).items() if k.startswith("features")}
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "_get_tv_model_features", lambda *a, **k: trunk.features)
        return theirs._NoTrainLpips(net="alex")


def distance(network, a, b):
    a, b = (torch.from_numpy(x).movedim(-1, 0)[None].float() / 127.5 - 1 for x in (a, b))
    with torch.no_grad():
        return float(network(a, b))


def test_squared_distances_of_vectors_are_torchmetrics_lpips(weights, network):
    judge = open_judge(f"lpips:path={weights},batch_size=4", "cpu")
    rows = judge.features(PICTURES)
    assert rows.shape == (6, 31_872)
    for i, j in ((0, 1), (2, 5), (3, 3)):
        expected = distance(network, PICTURES[i], PICTURES[j])
        assert ((rows[i] - rows[j]) ** 2).sum() == pytest.approx(expected, rel=1e-4, abs=1e-9)
    assert distance(network, PICTURES[0], PICTURES[1]) > 1e-4
    assert all(float(head.min()) >= 0 for head in load_heads())  # else there would be no root
    other = open_judge(f"lpips:{weights.with_suffix('.safetensors')}", "cpu")
    assert np.array_equal(other.features(PICTURES[:2]), judge.features(PICTURES[:2]))


def test_diversity_is_the_mean_over_the_pairs_of_each_prompt(weights, network, tmp_path):
    texts = ["a", "b", "a", "b", "a", "alone"]
    for i, picture in enumerate(PICTURES):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    rows = [json.dumps({"file": f"{i}.png", "prompt": t}) for i, t in enumerate(texts)]
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    (result,) = measure(
        "lpips_diversity", [tmp_path], judges=[f"lpips:{weights}"], out=tmp_path / "o", quiet=True
    )["results"]
    a = np.mean([distance(network, PICTURES[i], PICTURES[j]) for i, j in ((0, 2), (0, 4), (2, 4))])
    b = distance(network, PICTURES[1], PICTURES[3])
    assert result["overall"] == pytest.approx((a + b) / 2, rel=1e-4)
    assert result["name"] == "lpips-diversity-lpips-alex-64px-6"
    assert result["notes"] == ["Prompts with a single picture, which do not count: 1."]


def test_weights_that_are_absent_or_of_another_kind_are_one_sentence(weights, tmp_path):
    with pytest.raises(GessoError, match=r"torchvision's alexnet-owt-7be5be79\.pth"):
        open_judge("lpips:nothing.pth", "cpu")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(GessoError, match="is no AlexNet of torchvision"):
        open_judge(f"lpips:{tmp_path / 'other.pth'}", "cpu")
    with pytest.raises(GessoError, match="lpips:PATH"):
        measure("lpips_diversity", [tmp_path], out=tmp_path, quiet=True)
