"""The judge `hf-depth` against transformers' own networks, run and averaged by hand."""

from types import SimpleNamespace

import judge_fakes as fakes
import numpy as np
import pytest
import torch

from gesso.evals.judges import hf_depth
from gesso.evals.judging import Asker, open_judge
from gesso.evals.types import Depth, Picture
from gesso.types import GessoError


def dpt(folder):
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    config = DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
        image_size=32, patch_size=8, backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=8, is_hybrid=False,
        use_batch_norm_in_fusion_residual=False,
    )  # fmt: skip
    processor = DPTImageProcessor(size={"height": 32, "width": 32})
    return fakes.save(folder, DPTForDepthEstimation(config), processor)


def glpn(folder):
    from transformers import GLPNConfig, GLPNForDepthEstimation, GLPNImageProcessor

    config = GLPNConfig(
        hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2], depths=[1, 1, 1, 1],
        decoder_hidden_size=8,
    )  # fmt: skip
    return fakes.save(folder, GLPNForDepthEstimation(config), GLPNImageProcessor())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("depth")


@pytest.mark.parametrize(("make", "sign"), [(dpt, 1), (glpn, -1)])
def test_boxes_have_the_mean_of_their_pixels(folder, make, sign):
    path = make(folder / make.__name__)
    judge = open_judge(f"hf-depth:path={path},batch_size=2")
    rng = np.random.default_rng(0)
    sizes = [(64, 96), (64, 96), (32, 64), (64, 96)]
    images = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in sizes]
    boxes = ((3.7, 5.2, 20.9, 18.4), (0.0, 0.0, 200.0, 200.0), (40.0, 9.0, 40.2, 9.3))
    told = judge.depth(images, [boxes] * 4)
    for image, row in zip(images, told, strict=True):
        batch = judge.net.processor(images=image, return_tensors="pt")
        with torch.no_grad():
            depth = sign * judge.net.model(**batch).predicted_depth  # [1, h, w]
        depth = (depth - depth.min()) / (depth.max() - depth.min())
        whole = torch.nn.functional.interpolate(
            depth[None], image.shape[:2], mode="bilinear", align_corners=True
        )[0, 0].numpy()
        expected = [whole[5:18, 3:20].mean(), whole.mean(), whole[9, 40]]
        assert row == pytest.approx(expected, abs=1e-4)
        assert whole.std() > 0.02  # the network tells something


def test_a_flat_picture_has_no_depth_and_replies_are_kept(folder, tmp_path, monkeypatch):
    judge = open_judge(f"hf-depth:{dpt(folder / 'flat')}")
    flat = SimpleNamespace(predicted_depth=torch.ones(1, 4, 4))
    monkeypatch.setattr(judge.net.model, "forward", lambda **batch: flat)
    ask = Depth(Picture(pixels=np.zeros((32, 32, 3), np.uint8)), ((0.0, 0.0, 9.0, 9.0),))
    assert Asker([judge], tmp_path).replies([ask]) == [[0.0]]
    monkeypatch.setattr(judge, "depth", lambda *args: pytest.fail("asked again"))
    assert Asker([judge], tmp_path).replies([ask]) == [[0.0]]


def test_another_kind_of_network_is_one_sentence(folder):
    path = fakes.detr(folder / "detr")
    with pytest.raises(GessoError, match="DPTForDepthEstimation") as error:
        open_judge(f"hf-depth:{path}")
    assert "\n" not in str(error.value)
    assert hf_depth.ABILITIES == ("depth",)
