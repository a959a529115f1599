"""Metrics over whole folders: against torchmetrics, brute force and hand-worked cases."""

import json

import judge_fakes as fakes
import numpy as np
import pytest
import torch
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from gesso.evals import measure as measuring
from gesso.evals.inception import Inception
from gesso.evals.judges import inception
from gesso.evals.judging import open_judge
from gesso.evals.measure import measure, pinned_name
from gesso.evals.metric import Moments, Rows
from gesso.evals.metrics import clip_score, cmmd, fid, kid, precision_recall
from gesso.evals.types import Judge
from gesso.types import GessoError

RNG = np.random.default_rng(0)
D = 12
X = RNG.normal(size=(300, D)) @ RNG.normal(size=(D, D))
Y = RNG.normal(size=(260, D)) @ RNG.normal(size=(D, D)) + 0.3


class Small(Judge):
    """Features of a picture: means over a grid, a network as good as any for these tests."""

    name, fingerprint, abilities = "small-clean:w", "0123456789abcdef", ("features", "similarity")

    def __init__(self):
        self.looked = 0
        self.fail_at = None

    def features(self, images):
        self.looked += len(images)
        if self.fail_at is not None and self.looked > self.fail_at:
            raise KeyboardInterrupt
        return np.stack([i[:16, :16].reshape(4, 4, 4, 4, 3).mean((1, 3)).ravel() for i in images])

    def similarity(self, images, texts):
        return [[len(wordings[0]) / 100 - 0.05 for wordings in some] for some in texts]


class Given(torch.nn.Module):
    """Passes features through, where torchmetrics expects a network."""

    num_features = D

    def forward(self, x):
        return x


def gathered(rows, kind=Moments, sizes=(7, 100)):
    found, start = kind(), 0
    while start < len(rows):
        size = sizes[start % len(sizes)]
        found.add(rows[start : start + size])
        start += size
    return found


def test_fid_is_torchmetrics():
    theirs = FrechetInceptionDistance(feature=Given(), input_img_size=(3, 8, 8))
    theirs.set_dtype(torch.float64)
    theirs.update(torch.from_numpy(Y), real=True)
    theirs.update(torch.from_numpy(X), real=False)
    mine = fid.build(Small()).compute(gathered(X), gathered(Y))
    assert mine["overall"] == pytest.approx(float(theirs.compute()), abs=1e-3)
    assert mine["overall"] > 1 and len(mine["notes"]) == 2


def test_the_root_is_stable_where_there_are_fewer_pictures_than_features():
    few, wide = RNG.normal(size=(10, 64)), RNG.normal(size=(8, 64))
    value = fid.build(Small()).compute(gathered(few), gathered(wide))["overall"]
    # Brute force: the trace of the root is the sum of singular values of the centred sets.
    a, b = (few - few.mean(0)) / 3, (wide - wide.mean(0)) / 7**0.5
    trace = (a**2).sum() + (b**2).sum() - 2 * np.linalg.svd(a @ b.T, compute_uv=False).sum()
    assert value == pytest.approx(((few.mean(0) - wide.mean(0)) ** 2).sum() + trace, rel=1e-6)
    assert fid.build(Small()).compute(gathered(few), gathered(few))["overall"] == pytest.approx(
        0, abs=1e-6
    )


def test_moments_do_not_depend_on_how_rows_are_parted():
    one, parts = gathered(X, sizes=(300,)), gathered(X)
    assert parts.n == 300
    assert np.allclose(parts.covariance, np.cov(X.T), rtol=1e-10, atol=1e-12)
    assert np.allclose(one.covariance, parts.covariance, rtol=1e-10, atol=1e-12)
    far = X + 1e7  # a sum of squares would lose everything here
    assert np.allclose(gathered(far).covariance, np.cov(X.T), rtol=1e-5)
    with pytest.raises(GessoError, match="not finite"):
        Moments().add(np.full((2, 3), np.nan))


def test_kid_is_torchmetrics_on_one_whole_subset():
    theirs = KernelInceptionDistance(feature=Given(), subsets=1, subset_size=260)
    theirs.update(torch.from_numpy(Y), real=True)
    theirs.update(torch.from_numpy(X[:260]), real=False)
    expected = float(theirs.compute()[0])
    assert kid.subsets(X[:260], Y, 1, 260)[0] == pytest.approx(expected, rel=1e-4)
    result = kid.build(Small()).compute(gathered(X, Rows), gathered(Y, Rows))
    again = kid.build(Small()).compute(gathered(X, Rows), gathered(Y, Rows))
    assert result == again and result["scores"]["std"] > 0


def test_cmmd_and_manifolds_equal_brute_force(monkeypatch):
    monkeypatch.setattr(cmmd, "BLOCK", 17)
    monkeypatch.setattr(precision_recall, "BLOCK", 17)
    x, y = X[:60], Y[:50]

    def kernel(a, b):
        off = ((a[:, None] - b[None]) ** 2).sum(-1)
        return np.exp(-off / 200).mean()

    value = cmmd.build(Small()).compute(gathered(x, Rows), gathered(y, Rows))["overall"]
    expected = 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    assert value == pytest.approx(expected, rel=1e-4)

    def share(points, centers):
        off = np.sqrt(((centers[:, None] - centers[None]) ** 2).sum(-1))
        radius = np.sort(off, 1)[:, 3]
        near = np.sqrt(((points[:, None] - centers[None]) ** 2).sum(-1))
        return (near <= radius).any(1).mean()

    found = precision_recall.build(Small()).compute(gathered(x, Rows), gathered(y, Rows))
    assert found["scores"] == pytest.approx({"precision": share(x, y), "recall": share(y, x)})
    assert 0 < found["scores"]["precision"] < 1


def test_inception_gives_the_features_of_torch_fidelity(tmp_path):
    with torch.device("meta"):
        network = Inception()
    rng = np.random.default_rng(5)
    state = {}
    for name, value in network.state_dict().items():
        drawn = torch.from_numpy(rng.standard_normal(tuple(value.shape), np.float32))
        if name.endswith("conv.weight"):
            state[name] = drawn * (2.0 / value[0].numel()) ** 0.5
        elif name.endswith("running_var"):
            state[name] = 1 + 0.1 * drawn.abs()
        elif name.endswith("bn.weight"):
            state[name] = 1 + 0.1 * drawn
        else:
            state[name] = 0.1 * drawn if value.is_floating_point() else torch.tensor(0)
    file = tmp_path / "inception.pth"
    torch.save(state, file)
    judge = inception.build(inception.Config(path=str(file)), "cpu")
    image = rng.integers(0, 256, (299, 299, 3)).astype(np.uint8)
    (row,) = judge.features([image])
    assert row.shape == (2048,)
    # What FeatureExtractorInceptionV3 of torch-fidelity 0.4.0 gives for these weights and pixels.
    assert row[[0, 1, 2, 1000, 2047]] == pytest.approx(GOLDEN, rel=1e-3)
    assert judge.name == "inception-clean:inception.pth"
    other = inception.build(inception.Config(path=str(file), resize="bilinear"), "cpu")
    assert other.fingerprint != judge.fingerprint
    torch.save({"a": torch.zeros(1)}, file)
    with pytest.raises(GessoError, match="is no Inception-v3 of 2015"):
        inception.build(inception.Config(path=str(file)), "cpu")
    with pytest.raises(GessoError, match="There is no Inception weight file"):
        inception.build(inception.Config(path="nothing.pth"), "cpu")


GOLDEN = [0.0259345, 0.292176, 0.00751946, 0.00559809, 0.488761]


def test_clean_resizing_is_antialiased_and_bilinear_is_not():
    stripes = np.zeros((1196, 1196, 3), np.uint8)
    stripes[:, ::2] = 255
    assert inception.clean(stripes).std() < 0.05 < inception.bilinear(stripes).std() + 0.06
    flat = np.full((20, 30, 3), 128, np.uint8)
    assert (inception.clean(flat) == 0).all() and inception.clean(flat).shape == (3, 299, 299)


# -------------------------------------------------------------------------------------- the job


@pytest.fixture
def sets(tmp_path, monkeypatch):
    """Two folders of pictures, and the job with small steps and `Small` as its judge."""
    for name, count in (("mine", 45), ("theirs", 40)):
        (tmp_path / name).mkdir()
        for i in range(count):
            pixels = np.random.default_rng([len(name), i]).integers(0, 256, (16, 16, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / name / f"{i:03}.png")
    monkeypatch.setattr(measuring, "CHUNK", 8)
    monkeypatch.setattr(measuring, "SAVE_EVERY", 16)
    judge = Small()
    monkeypatch.setattr(measuring, "open_judge", lambda spec, device: judge)
    return tmp_path, judge


def test_an_interrupted_measurement_ends_with_the_same_digits(sets):
    place, judge = sets
    whole = measure(
        "fid", [place / "mine"], reference=place / "theirs", out=place / "a", quiet=True
    )
    judge.looked, judge.fail_at = 0, 70
    with pytest.raises(KeyboardInterrupt):
        measure("fid", [place / "mine"], reference=place / "theirs", out=place / "b", quiet=True)
    judge.looked, judge.fail_at = 0, None
    again = measure(
        "fid", [place / "mine"], reference=place / "theirs", out=place / "b", quiet=True
    )
    assert judge.looked == 45 - 16  # the reference was done, and two chunks of the pictures
    (one,), (other,) = whole["results"], again["results"]
    assert one["overall"] == other["overall"] > 0
    assert one["name"] == "fid-small-clean-45@theirs"
    assert json.loads((place / "b/fid-small-clean-45@theirs-mine.json").read_text())["n"] == 45
    judge.looked = 0
    kept = measure(
        "fid", [place / "mine"], reference=next((place / "b/gathered").glob("theirs-*")),
        out=place / "b", quiet=True,
    )  # fmt: skip
    assert kept["results"][0]["overall"] == one["overall"] and judge.looked == 0
    assert kept["results"][0]["name"] == one["name"]


def test_references_of_other_tools_and_broken_ones(sets):
    place, judge = sets
    rows = judge.features([np.asarray(Image.open(f)) for f in sorted((place / "theirs").iterdir())])
    np.savez(place / "coco.npz", mu=rows.mean(0), sigma=np.cov(rows.T))
    ours = measure("fid", [place / "mine"], reference=place / "theirs", out=place, quiet=True)
    npz = measure("fid", [place / "mine"], reference=place / "coco.npz", out=place, quiet=True)
    assert npz["results"][0]["overall"] == pytest.approx(ours["results"][0]["overall"], rel=1e-6)
    assert npz["results"][0]["name"].endswith("@coco")
    np.savez(place / "pickled.npz", mu=np.array([{}], object), sigma=np.eye(2))
    (place / "broken.safetensors").write_bytes(b"123")
    for name, said in (
        ("pickled.npz", "no .npz"),
        ("broken.safetensors", "damaged"),
        ("x", "no ref"),
    ):
        with pytest.raises(GessoError, match=said):
            measure("fid", [place / "mine"], reference=place / name, out=place, quiet=True)
    with pytest.raises(GessoError, match="needs pictures"):
        measure("kid", [place / "mine"], reference=place / "coco.npz", out=place, quiet=True)


def test_bad_folders_are_one_sentence_and_cost_nothing(sets):
    place, _ = sets
    (place / "mine" / "020.png").write_bytes(b"not a picture")
    with pytest.raises(GessoError, match=r"020\.png: .*Mend or remove it"):
        measure("fid", [place / "mine"], reference=place / "theirs", out=place / "o", quiet=True)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(place / "mine" / "020.png")
    (place / "empty").mkdir()
    for folder, said in ((place / "empty", "no pictures"), (place / "none", "no folder")):
        with pytest.raises(GessoError, match=said):
            measure("fid", [folder], reference=place / "theirs", out=place / "o", quiet=True)
    with pytest.raises(GessoError, match="--reference"):
        measure("fid", [place / "mine"], out=place / "o", quiet=True)
    with pytest.raises(GessoError, match="needs 4 or more"):
        measure(
            "precision_recall", [place / "mine"], reference=place / "theirs", limit=3,
            out=place / "o", quiet=True,
        )  # fmt: skip


def test_scores_of_single_pictures_need_their_prompts(sets):
    place, _ = sets
    with pytest.raises(GessoError, match="has no prompt"):
        measure("clip_score", [place / "mine"], out=place, quiet=True)
    texts = ["abc" if i % 2 else "a longer prompt" for i in range(45)]
    rows = [json.dumps({"file": f"{i:03}.png", "prompt": t}) for i, t in enumerate(texts)]
    (place / "mine/metadata.jsonl").write_text("\n".join(rows) + "\n")
    (result,) = measure("clip_score", [place / "mine"], out=place, quiet=True)["results"]
    expected = np.mean([0 if len(t) == 3 else 10.0 for t in texts])  # below zero counts zero
    assert result["overall"] == pytest.approx(expected)
    assert result["interval"][0] < expected < result["interval"][1]
    (plain,) = measure("pick_score", [place / "mine"], out=place, quiet=True)["results"]
    assert plain["overall"] == pytest.approx(np.mean([len(t) - 5 for t in texts]))


def test_a_name_pins_what_the_number_hangs_on(tmp_path):
    judge = Small()
    assert pinned_name("fid", judge, 30_000, tmp_path / "coco2014val.npz") == (
        "fid-small-clean-30k@coco2014val"
    )
    assert pinned_name("clip_score", judge, 1234, None) == "clip-score-small-clean-1234"


def test_the_aesthetic_head_is_the_product_of_its_layers(tmp_path):
    path = fakes.clip(tmp_path / "clip")
    rng = np.random.default_rng(1)
    widths, tensors = (12, 1024, 128, 64, 16, 1), {}
    for i, place in enumerate((0, 2, 4, 6, 7)):
        shape = (widths[i + 1], widths[i])
        tensors[f"layers.{place}.weight"] = torch.from_numpy(rng.normal(0, 0.1, shape)).float()
        tensors[f"layers.{place}.bias"] = torch.from_numpy(rng.normal(0, 0.1, shape[0])).float()
    torch.save(tensors, tmp_path / "head.pth")
    judge = open_judge(f"aesthetic:path={path},head={tmp_path / 'head.pth'}")
    images = [rng.integers(0, 256, (32, 32, 3)).astype(np.uint8) for _ in range(3)]
    x = judge.clip.embed(images).T
    for place in (0, 2, 4, 6, 7):
        x = tensors[f"layers.{place}.weight"].numpy() @ x
        x = x + tensors[f"layers.{place}.bias"].numpy()[:, None]
    assert judge.score(images, [""] * 3) == pytest.approx(x[0].tolist(), abs=1e-4)
    torch.save({"a": torch.zeros(1)}, tmp_path / "head.pth")
    with pytest.raises(GessoError, match="is no aesthetic head"):
        open_judge(f"aesthetic:path={path},head={tmp_path / 'head.pth'}")


def test_clip_score_is_torchmetrics(tmp_path):
    from torchmetrics.multimodal.clip_score import CLIPScore
    from transformers import CLIPModel, CLIPProcessor

    path = fakes.clip(tmp_path / "clip")
    rng = np.random.default_rng(2)
    images = [rng.integers(0, 256, (40, 48, 3)).astype(np.uint8) for _ in range(6)]
    texts = ["a cat", "two dogs", "a red star", "the light", "no", "what"]

    class Tensors(CLIPModel):
        """torchmetrics 1.9 takes features as tensors; transformers 5 gives them in an output."""

        def get_image_features(self, *given):
            return super().get_image_features(*given).pooler_output

        def get_text_features(self, *given):
            return super().get_text_features(*given).pooler_output

    theirs = CLIPScore(lambda: (Tensors.from_pretrained(path), CLIPProcessor.from_pretrained(path)))
    theirs.update([torch.from_numpy(i).movedim(-1, 0) for i in images], texts)
    found = clip_score.build(open_judge(f"clip:path={path},batch_size=4", "cpu"))
    rows = found.look(images, texts)
    mine = gathered(rows, Rows, (2,))
    cosines = found.judge.similarity(images, [((t,),) for t in texts])
    # Theirs floors the mean at zero; ours each picture's cosine, as the paper's equation 1 does.
    assert 100 * np.mean(cosines) == pytest.approx(float(theirs.compute()), abs=1e-3)
    assert np.mean(cosines) > 0
    assert found.compute(mine, None)["overall"] == pytest.approx(
        100 * np.maximum(cosines, 0).mean(), abs=1e-5
    )
