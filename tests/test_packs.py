"""Prompt packs, and models whose text encoder and denoiser are never in memory together."""

import json
import shutil
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published_fakes import pipeline
from safetensors.torch import load_file, save_file

from gesso import loading, memory
from gesso.convert.job import convert
from gesso.encoders.pack import Pack
from gesso.loading import load
from gesso.model import Model
from gesso.prompts import encode_prompts
from gesso.types import GessoError

CALL = {"seed": 1, "output_type": "np"}


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("a red circle\n\n  two blue stars above a square  \na red circle\n")
    return file


@pytest.fixture
def frozen_folder(tiny_recipe, tmp_path):
    """A model with a frozen text encoder that lies in a folder of its own."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path / "bert"
    folder.mkdir()
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle", "square"]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(
        vocab_size=len(words), num_hidden_layers=1, max_position_embeddings=40, **sizes
    )
    BertModel(config).save_pretrained(folder)
    tiny_recipe.text_encoder = {"name": "hf", "path": str(folder), "max_tokens": 12}
    model = Model.from_recipe(tiny_recipe)
    with torch.no_grad():
        for p in model.backbone.parameters():
            p.add_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    out = tmp_path / "frozen"
    out.mkdir()
    model.save(out)
    return out


@pytest.fixture(params=["trained", "frozen"])
def any_folder(request):
    """With a text encoder that was trained with the model, and with a frozen one."""
    return request.getfixturevalue(
        "model_folder" if request.param == "trained" else "frozen_folder"
    )


def forbid_text_encoders(monkeypatch):
    """Building any text encoder fails from here on."""
    from gesso import config, model

    def build(kind, spec):
        assert kind != "encoders.text", "a text encoder was built"
        return config.build(kind, spec)

    monkeypatch.setattr(model, "build", build)


def test_a_pack_paints_the_same_pictures_without_a_text_encoder(any_folder, prompts, monkeypatch):
    made = encode_prompts(prompts, model=str(any_folder), negative="a blue square", device="cpu")
    assert made["prompts"] == 2 and Path(made["pack"]) == prompts.with_suffix(".safetensors")
    texts, negative = ["two blue stars above a square", "a red circle"], "a blue square"
    wanted = load(any_folder, device="cpu")(texts, **CALL).images
    avoided = load(any_folder, device="cpu")(texts, negative, **CALL).images
    forbid_text_encoders(monkeypatch)
    pipe = load(any_folder, device="cpu", pack=made["pack"])
    assert np.abs(pipe(texts, **CALL).images - wanted).max() < 1 / 255
    assert np.abs(pipe(texts, negative, **CALL).images - avoided).max() < 1 / 255
    assert np.abs(wanted - avoided).max() > 1 / 255
    with pytest.raises(AssertionError, match="was built"):  # the guard guards
        load(any_folder, device="cpu", low_memory=False)


def test_a_pack_holds_the_prompts_once_and_the_empty_one(model_folder, prompts):
    made = encode_prompts(prompts, model=str(model_folder), device="cpu")
    pack = Pack.read(Path(made["pack"]))
    assert pack.prompts == ["a red circle", "two blue stars above a square"]
    assert list(pack.rows) == [*pack.prompts, ""]
    cond = pack.prepare(["a red circle", "two blue stars above a square"])
    assert cond.mask.sum(1).tolist() == [4, 7] and cond.tokens.shape == (2, 7, 32)
    means = [row[:n].mean(0) for row, n in zip(cond.tokens, (4, 7), strict=True)]
    torch.testing.assert_close(cond.pooled, torch.stack(means))
    assert pack.prepare([""]).pooled.shape == (1, 32)
    with pytest.raises(GessoError, match="no prompt 'a star' among its 3"):
        pack.prepare(["a star"])


def test_a_pack_of_another_encoder_is_refused(
    model_folder, frozen_folder, prompts, tiny_model, tmp_path
):
    trained = encode_prompts(prompts, tmp_path / "t.pack", model=str(model_folder), device="cpu")
    frozen = encode_prompts(prompts, tmp_path / "f.pack", model=str(frozen_folder), device="cpu")
    with torch.no_grad():
        tiny_model.text_encoder.norm.weight.mul_(1.5)
    other = tmp_path / "other"
    other.mkdir()
    tiny_model.save(other)
    with pytest.raises(GessoError, match=r"text encoder of model \w+ where this model has \w+"):
        load(other, device="cpu", pack=trained["pack"])
    with pytest.raises(GessoError, match="text encoder of"):
        load(frozen_folder, device="cpu", pack=trained["pack"])
    with pytest.raises(GessoError, match="text encoder of"):
        load(model_folder, device="cpu", pack=frozen["pack"])
    # A frozen encoder with other weights of the same architecture.
    described = json.loads((frozen_folder / "gesso.json").read_text())
    described["encoder_fingerprints"]["text_encoder"] = "0" * 16
    (frozen_folder / "gesso.json").write_text(json.dumps(described))
    with pytest.raises(GessoError, match=r"fingerprint \w+ where this model has 0000"):
        load(frozen_folder, device="cpu", pack=frozen["pack"])
    # Where no fingerprint is known, the encoder's options must agree.
    described["encoder_fingerprints"] = {}
    (frozen_folder / "gesso.json").write_text(json.dumps(described))
    load(frozen_folder, device="cpu", pack=frozen["pack"])
    described["text_encoder"]["max_tokens"] = 20
    (frozen_folder / "gesso.json").write_text(json.dumps(described))
    with pytest.raises(GessoError, match="max_tokens 12 where this model has 20"):
        load(frozen_folder, device="cpu", pack=frozen["pack"])


def test_broken_packs_and_prompt_files_are_one_sentence(model_folder, prompts, tmp_path):
    made = Path(encode_prompts(prompts, model=str(model_folder), device="cpu")["pack"])

    def refused(pack, says):
        with pytest.raises(GessoError, match=says):
            load(model_folder, device="cpu", pack=pack)

    refused(tmp_path / "none", "no prompt pack")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(made.read_bytes()[:200])
    refused(cut, "truncated or no safetensors file")
    refused(model_folder / "model.safetensors", "is no prompt pack")
    short = tmp_path / "short.safetensors"
    tensors = load_file(made)
    from safetensors import safe_open

    with safe_open(made, framework="pt") as f:
        told = f.metadata()
    save_file(tensors | {"tokens": tensors["tokens"][1:].clone()}, short, told)
    refused(short, "does not hold what it describes")
    for content, says in (("", "holds no prompt"), (b"\xff\xfe\xff", "cannot be read as text")):
        file = tmp_path / "odd.txt"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(GessoError, match=says):
            encode_prompts(file, model=str(model_folder))
    with pytest.raises(GessoError, match="There is no file"):
        encode_prompts(tmp_path / "absent.txt", model=str(model_folder))
    before = prompts.read_bytes()
    with pytest.raises(GessoError, match=r"cannot be .*prompts\.txt, which is there"):
        encode_prompts(prompts, prompts, model=str(model_folder))
    assert prompts.read_bytes() == before
    save_file(tensors | {"lengths": tensors["lengths"][:0]}, short, told)
    refused(short, "does not hold what it describes")


@pytest.mark.parametrize("family", ["alpha", "sigma"])
def test_packs_of_published_weights_need_no_text_encoder_files(tmp_path, family, monkeypatch):
    folder = tmp_path / family
    pipeline(folder, family, interpolation_scale=0.5 if family == "sigma" else 1.0)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\ntwo blue stars")
    made = encode_prompts(prompts, model=str(folder), device="cpu")
    size = {"height": 64, "width": 64, "num_inference_steps": 2}
    whole = load(folder, device="cpu")(["a red circle"], **CALL, **size).images
    for part in ("text_encoder", "tokenizer"):
        shutil.rmtree(folder / part)
    forbid_text_encoders(monkeypatch)
    pipe = load(folder, device="cpu", pack=made["pack"])
    assert np.abs(pipe(["a red circle"], **CALL, **size).images - whole).max() < 1 / 255
    with pytest.raises(GessoError, match="comes without a text encoder"):
        load(folder, device="cpu")
    other = tmp_path / "other"
    pipeline(other, "sigma" if family == "alpha" else "alpha")
    with pytest.raises(GessoError, match=r"text encoder of \w+ \w+ where this model has"):
        load(other, device="cpu", pack=made["pack"])


def test_a_lone_file_of_weights_is_encoded_for_and_quantised_by_options(
    call, tmp_path, monkeypatch
):
    whole = tmp_path / "alpha"
    pipeline(whole, "alpha")
    convert(whole, "alpha.pth", "original")
    Path("p.txt").write_text("a red circle")
    code, _, err = call(
        "encode", "--prompts", "p.txt", "--model", "alpha.pth", "-o", "p.safetensors"
    )
    assert code == 2 and "(--text-encoder)" in err
    given = ("--model", "alpha.pth", "--text-encoder", whole)
    code, _, err = call("encode", "--prompts", "p.txt", "-o", "p.safetensors", *given)
    assert code == 0, err
    forbid_text_encoders(monkeypatch)
    args = ("paint", "--model", "alpha.pth", "--vae", whole, "--pack", "p.safetensors")
    code, _, err = call(*args, "--size", "64", "--steps", "1", "--seed", "1")
    assert code == 0, err


# Low memory.


def test_low_memory_paints_the_same_and_never_holds_both(any_folder, monkeypatch):
    wanted = load(any_folder, device="cpu", low_memory=False)(["a red circle", "blue"], **CALL)
    alive, read = {}, Model.load.__func__

    def watched(cls, folder, parts=loading.PARTS, *rest, **more):
        held = {name for name, ref in alive.items() if ref() is not None}
        assert not (held | set(parts)) >= {"text_encoder", "backbone"}
        model = read(cls, folder, parts, *rest, **more)
        alive.update({name: weakref.ref(part) for name, part in model.parts().items()})
        return model

    monkeypatch.setattr(Model, "load", classmethod(watched))
    pipe = load(any_folder, device="cpu", low_memory=True)
    for _ in range(2):  # a second call takes turns again
        images = pipe(["a red circle", "blue"], batch_size=1, **CALL).images
        assert np.abs(images - wanted.images).max() < 1 / 255
    with pytest.raises(AssertionError):  # the guard guards
        load(any_folder, device="cpu", low_memory=False)


def test_low_memory_is_chosen_where_memory_is_short(frozen_folder, monkeypatch):
    size = memory.total_bytes(
        [
            frozen_folder / "model.safetensors",
            *(frozen_folder.parent / "bert").glob("*.safetensors"),
        ]
    )
    monkeypatch.setattr(loading, "available_bytes", lambda device: int(size * 1.05))
    with pytest.warns(UserWarning, match=r"hold 0.0 GiB and 0.0 GiB of memory are free"):
        pipe = load(frozen_folder, device="cpu")
    assert pipe.model.text_encoder is None and pipe.model.backbone is None
    files = loading.Folder(frozen_folder).weight_files()
    assert [f.parent.name for f in files["text_encoder"]] == ["bert"]
    monkeypatch.setattr(loading, "available_bytes", lambda device: int(size * 1.2))
    assert load(frozen_folder, device="cpu").model.backbone is not None


def test_available_memory_respects_a_containers_limit(monkeypatch, tmp_path):
    free = memory.available_bytes()
    assert free > 0
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    unlimited = memory.available_bytes()
    for name, text in (
        ("memory.max", "3000000"),
        ("memory.current", "2500000"),
        ("memory.stat", "anon 1500000\ninactive_file 100000\n"),
    ):
        (tmp_path / name).write_text(text)
    assert memory.available_bytes() == 600_000 < unlimited
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_bytes() > 600_000


# The command line.


def test_encode_then_paint_every_prompt_of_a_pack(call, model_folder, prompts, monkeypatch):
    code, out, err = call("encode", "--prompts", prompts, "-o", "p.pack", "-m", model_folder)
    assert code == 0, err
    assert "2 prompts" in out and f"gesso paint --pack p.pack --model {model_folder}" in out
    forbid_text_encoders(monkeypatch)
    code, out, err = call("paint", "--pack", "p.pack", "-m", model_folder, "--seed", 4, "--json")
    assert code == 0, err
    names = [Path(f).name for f in json.loads(out)["images"]]
    assert names == ["a-red-circle-4.png", "two-blue-stars-above-a-square-5.png"]
    code, _, err = call("encode")
    assert code == 2 and "nothing to encode" in err
    code, _, err = call("encode", "demo", "--prompts", prompts)
    assert code == 2 and "not both" in err


def test_a_painted_over_picture_is_repainted_like_it(call, model_folder, tmp_path):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(small).resize((64, 64)).save("photo.png")
    white = np.zeros((64, 64), np.uint8)
    white[16:40, 16:40] = 255
    Image.fromarray(white).save("mask.png")
    over = ("--image", "photo.png", "--strength", 0.7, "--mask", "mask.png")
    code, _, err = call(
        "paint", "a red circle", "-m", model_folder, "--seed", 5, *over, "--out", "first.png"
    )
    assert code == 0, err
    first = np.asarray(Image.open("first.png")).astype(int)
    before = np.asarray(Image.open("photo.png")).astype(int)
    assert np.array_equal(first[white == 0], before[white == 0])
    assert np.abs(first - before)[white > 0].max() > 1
    code, _, err = call("paint", "--like", "first.png", "--out", "again.png")
    assert code == 0, err
    assert np.array_equal(np.asarray(Image.open("again.png")), first)
    # Beside the painting is as good as where it was; elsewhere, or changed, is not.
    for name in ("first.png", "photo.png", "mask.png"):
        target = tmp_path / "moved" / name
        target.parent.mkdir(exist_ok=True)
        Path(name).rename(target)
    code, _, err = call("paint", "--like", "moved/first.png", "--out", "third.png")
    assert code == 0, err
    assert np.array_equal(np.asarray(Image.open("third.png")), first)
    Image.fromarray(255 - white).save("moved/mask.png")
    code, _, err = call("paint", "--like", "moved/first.png")
    assert code == 2 and "mask.png, which has changed since" in err
    Path("moved/photo.png").unlink()
    code, _, err = call("paint", "--like", "moved/first.png")
    assert code == 2 and "photo.png, which is not there: name the picture with --image" in err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--image", "none.png"], "none.png cannot be painted over: The picture file does not"),
        (["--image", "text.png"], "text.png cannot be painted over"),
        (["--image", "a.png", "--mask", "b.png"], "mask has 32x64 pixels where the picture has 64"),
        (["--mask", "b.png"], "give an image"),
        (["--strength", "0.5"], "give an image"),
        (["--image", "a.png", "--strength", "1.5"], "strength 1.5 is not above 0 and at most 1"),
        (["--pack", "none.pack"], "no prompt pack none.pack"),
        (["--device", "foo"], "device 'foo' cannot be used"),
        (["--device", "cuda:99"], "device 'cuda:99' cannot be used"),
    ],
)
def test_bad_input_is_one_sentence(call, model_folder, args, says):
    Path("text.png").write_text("no picture")
    Image.new("RGB", (64, 64)).save("a.png")
    Image.new("L", (64, 32)).save("b.png")
    code, out, err = call("paint", "a red circle", "-m", model_folder, *args)
    assert code == 2 and out == "" and says in err
    assert len(err.strip().splitlines()) == 1
