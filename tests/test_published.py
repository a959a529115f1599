"""Published PixArt weights to pictures: equal to diffusers' pipelines, from every kind of file."""

from __future__ import annotations

import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from published_fakes import WORDS, pipeline
from safetensors.torch import load_file, save_file

import gesso
from gesso.convert.job import convert
from gesso.convert.published import find
from gesso.types import GessoError

PROMPTS = ["a red circle", "Two blue stars left of a square", "A small cactus"]


@pytest.fixture(scope="module")
def alpha(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("published") / "alpha"
    return folder, pipeline(folder, "alpha")


@pytest.fixture(scope="module")
def sigma(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("published") / "sigma"
    return folder, pipeline(folder, "sigma", seed=1, interpolation_scale=0.5)


def noise(n: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, height // 8, width // 8, generator=g)


def theirs(pipe: Any, prompts: list[str], latents: torch.Tensor, **options: Any) -> np.ndarray:
    height, width = (8 * side for side in latents.shape[2:])
    return pipe(
        prompts,
        **{"negative_prompt": "", "clean_caption": False} | options,
        latents=latents,
        height=height,
        width=width,
        use_resolution_binning=False,
        output_type="np",
    ).images


def ours(pipe: Any, prompts: list[str], latents: torch.Tensor, **options: Any) -> np.ndarray:
    height, width = (8 * side for side in latents.shape[2:])
    pipe.model.sample.use_resolution_binning = False
    images: np.ndarray = pipe(
        prompts, latents=latents, height=height, width=width, output_type="np", **options
    ).images
    return images


def apart(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference in steps of 1/255."""
    return float(np.abs(a - b).max() * 255)


CASES = [
    (64, 64, 4, 4.5, 1),
    (48, 96, 20, 4.5, 2),
    (96, 32, 14, 2.0, 3),
    (64, 64, 15, 1.0, 2),
    (32, 32, 1, 7.0, 1),
]


@pytest.mark.parametrize(("height", "width", "steps", "scale", "n"), CASES)
@pytest.mark.parametrize("family", ["alpha", "sigma"])
def test_pictures_equal_diffusers(request, family, height, width, steps, scale, n) -> None:
    folder, reference = request.getfixturevalue(family)
    if steps == 1 and family == "alpha":
        pytest.skip("diffusers' alpha pipeline takes one step with other schedulers only")
    pipe = gesso.load(folder, device="cpu")
    options = {"num_inference_steps": steps, "guidance_scale": scale}
    latents = noise(n, height, width)
    expected = theirs(reference, PROMPTS[:n], latents, **options)
    assert apart(ours(pipe, PROMPTS[:n], latents, **options), expected) < 1
    assert expected.std() > 0.05
    assert apart(ours(pipe, [WORDS[5]] * n, latents, **options), expected) > 1


def test_negative_prompts_and_published_defaults_equal_diffusers(alpha) -> None:
    folder, reference = alpha
    pipe = gesso.load(folder, device="cpu")
    latents = noise(2, 64, 64)
    negative = ["a blue square", "hat"]
    expected = theirs(reference, PROMPTS[:2], latents, negative_prompt=negative)
    assert apart(ours(pipe, PROMPTS[:2], latents, negative_prompt=negative), expected) < 1
    assert apart(ours(pipe, PROMPTS[:2], latents), expected) > 1


def test_micro_conditions_equal_diffusers(tmp_path: Path) -> None:
    reference = pipeline(
        tmp_path / "ms", sample_size=128, use_additional_conditions=True, interpolation_scale=2
    )
    pipe = gesso.load(tmp_path / "ms", device="cpu")
    assert pipe.model.sample.height == 1024 and pipe.model.backbone.config.micro_conditions
    for height, width in ((64, 64), (64, 128)):
        latents = noise(2, height, width)
        options = {"num_inference_steps": 5}
        expected = theirs(reference, PROMPTS[:2], latents, **options)
        assert apart(ours(pipe, PROMPTS[:2], latents, **options), expected) < 1


def test_a_call_without_options_equals_diffusers_and_bins_sizes_alike(tmp_path: Path) -> None:
    reference = pipeline(tmp_path / "p", "sigma", sample_size=32, interpolation_scale=0.5)
    pipe = gesso.load(tmp_path / "p", device="cpu")
    z = noise(1, 256, 256)
    expected = reference("a red circle", latents=z, output_type="np").images
    assert apart(pipe("a red circle", latents=z, output_type="np").images, expected) < 1
    z = noise(1, 208, 304)  # the bucket of 200 x 300
    size = {"height": 200, "width": 300, "num_inference_steps": 2, "output_type": "np"}
    expected = reference("a red circle", latents=z, **size).images
    assert expected.shape == (1, 200, 300, 3)
    assert apart(pipe("a red circle", latents=z, **size).images, expected) < 1


@pytest.mark.parametrize("family", ["alpha", "sigma"])
def test_with_t5s_own_tokenizer_and_prompts_beyond_its_limit(shared, tmp_path, family) -> None:
    reference = pipeline(tmp_path / "p", family, shared=shared)
    pipe = gesso.load(tmp_path / "p", device="cpu")
    limit = {"alpha": 120, "sigma": 300}[family]
    assert pipe.model.text_encoder.max_tokens == limit
    prompts = ["A small cactus wearing a STRAW hat", "more words than that " * 100]
    latents = noise(2, 32, 64)
    options = {"num_inference_steps": 3}
    expected = theirs(reference, prompts, latents, **options)
    with pytest.warns(UserWarning, match=f"longer than the {limit} tokens"):
        assert apart(ours(pipe, prompts, latents, **options), expected) < 1


@pytest.mark.parametrize(("family", "tokens", "scale"), [("alpha", 120, 1.0), ("sigma", 300, 0.5)])
def test_the_contract_holds_the_published_defaults(request, family, tokens, scale) -> None:
    folder, _ = request.getfixturevalue(family)
    model = find(folder).load()
    contract = model.sample
    assert (contract.sampler, contract.num_inference_steps) == ("dpm_solver", 20)
    assert (contract.guidance_scale, contract.null, contract.final) == (4.5, "empty", "zero")
    assert (contract.height, contract.width, contract.dtype) == (64, 64, "float32")
    assert model.text_encoder.max_tokens == tokens
    assert model.backbone.config.interpolation_scale == scale
    rounded = find(folder).load(["backbone"], "bfloat16")
    assert len(model.description.fingerprint) == 16
    assert rounded.description.fingerprint == model.description.fingerprint
    scaling = {"alpha": 0.18215, "sigma": 0.13025}[family]
    assert torch.allclose(model.image_encoder.scale, torch.tensor(1 / scaling))


def test_a_folder_with_an_lcm_scheduler_samples_as_lcm(alpha, tmp_path) -> None:
    from diffusers import LCMScheduler

    shutil.copytree(alpha[0], tmp_path / "lcm")
    LCMScheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear").save_pretrained(
        tmp_path / "lcm" / "scheduler"
    )
    contract = find(tmp_path / "lcm").load(parts=["backbone"]).sample
    assert (contract.sampler, contract.num_inference_steps, contract.guidance_scale) == (
        "lcm",
        4,
        1,
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("PixArt-LCM-XL-2-1024-MS", ("lcm", 4, 1, "lcm", None)),
        ("PixArt-Alpha-DMD-XL-2-512x512", ("one_step", 1, 1, "linspace", (400,))),
        ("PixArt-XL-2-512x512", ("dpm_solver", 20, 4.5, "linspace", None)),
    ],
)
def test_distilled_models_are_known_by_their_published_names(alpha, tmp_path, name, expected):
    (tmp_path / name).symlink_to(alpha[0])
    c = find(tmp_path / name).load(parts=["backbone"]).sample
    steps = (c.sampler, c.num_inference_steps, c.guidance_scale, c.spacing, c.timesteps)
    assert steps == expected


def test_one_step_pictures_equal_diffusers(tmp_path: Path) -> None:
    from diffusers import DDPMScheduler

    reference = pipeline(tmp_path / "PixArt-Alpha-DMD", "alpha")
    reference.scheduler = DDPMScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False)
    pipe = gesso.load(tmp_path / "PixArt-Alpha-DMD", device="cpu")
    latents = noise(2, 64, 32)
    options = {"timesteps": [400], "num_inference_steps": 1, "guidance_scale": 1.0}
    expected = theirs(reference, PROMPTS[:2], latents, **options)
    assert apart(ours(pipe, PROMPTS[:2], latents), expected) < 1


def test_parts_are_loaded_alone_and_in_bfloat16(alpha) -> None:
    source = find(alpha[0])
    model = source.load(["backbone"], "bfloat16")
    assert model.image_encoder is None and model.text_encoder is None
    assert {p.dtype for p in model.backbone.parameters()} == {torch.bfloat16}
    assert model.sample.dtype == "bfloat16"
    text = source.load(["text_encoder"], "bfloat16")
    assert text.backbone is None
    assert next(text.text_encoder.encoder.parameters()).dtype == torch.bfloat16
    files = source.weight_files()
    assert {k: [f.name for f in v] for k, v in files.items()} == {
        "backbone": ["diffusion_pytorch_model.safetensors"],
        "image_encoder": ["diffusion_pytorch_model.safetensors"],
        "text_encoder": ["model.safetensors"],
    }


def test_the_command_line_paints_and_repaints(alpha, tmp_path, monkeypatch, capsys) -> None:
    from gesso import cli

    def run(*args: Any) -> None:
        monkeypatch.setattr(sys, "argv", ["gesso", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert not stop.value.code, capsys.readouterr().err

    picture, again = tmp_path / "a.png", tmp_path / "b.png"
    # Cleaned as alpha's authors do, this prompt is another than in lower case only.
    prompt = "a <b>red</b> circle &amp; a star"
    args = ("paint", prompt, "--model", alpha[0], "--seed", 3, "--steps", 2)
    run(*args, "--vae", alpha[0], "--clean", "alpha", "--out", picture)
    run("paint", "--like", picture, "--out", again)
    assert capsys.readouterr().err == ""
    assert picture.read_bytes() == again.read_bytes()
    run(*args, "--out", tmp_path / "lower.png")
    assert (np.asarray(Image.open(tmp_path / "lower.png")) != np.asarray(Image.open(again))).any()


# Other files of the same weights


@pytest.fixture(scope="module")
def files(sigma, tmp_path_factory) -> dict[str, Any]:
    """The Sigma pipeline's transformer in every kind of file, by kind."""
    from diffusers import PixArtTransformer2DModel

    folder, _ = sigma
    out = tmp_path_factory.mktemp("files")
    convert(folder, out / "original.pth", "original")
    state = torch.load(out / "original.pth", weights_only=True)
    options, tensors = state["gesso"], state["state_dict"]
    trained = {k: torch.zeros_like(v) for k, v in tensors.items()}
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))]).state_dict()
    training = {"state_dict": trained, "state_dict_ema": tensors, "optimizer": optimizer}
    torch.save(training | {"epoch": 3, "gesso": options}, out / "training.pth")
    prefixed = {f"base_model.model.{k}": v for k, v in tensors.items()}
    torch.save({"state_dict": prefixed, "gesso": options}, out / "prefixed.pth")
    torch.save(tensors | {"gesso": options}, out / "old.pth", _use_new_zipfile_serialization=False)
    convert(folder, out / "comfyui.safetensors", "comfyui")
    whole = load_file(out / "comfyui.safetensors") | {"vae.decoder.conv_in.weight": torch.ones(1)}
    save_file(whole, out / "whole.safetensors", metadata={"gesso": options})
    model = PixArtTransformer2DModel.from_pretrained(folder / "transformer")
    model.save_pretrained(out / "shards", max_shard_size="40KB")
    assert len(list((out / "shards").glob("*.safetensors"))) > 2
    model.save_pretrained(out / "pickled", safe_serialization=False)
    (out / "one_file").mkdir()
    shutil.copy(out / "comfyui.safetensors", out / "one_file")
    convert(folder, out / "gesso", "gesso")
    return {path.name: path for path in out.iterdir()}


@pytest.mark.parametrize(
    "kind",
    [
        *("original.pth", "training.pth", "prefixed.pth", "old.pth"),
        *("comfyui.safetensors", "whole.safetensors", "shards", "pickled", "one_file", "gesso"),
    ],
)
def test_every_file_of_the_same_weights_paints_the_same_picture(sigma, files, kind) -> None:
    folder, reference = sigma
    given = {} if kind == "gesso" else {"vae": folder, "text_encoder": folder}
    if kind in ("shards", "pickled"):
        given["variant"] = "sigma-256"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        pipe = gesso.load(files[kind], device="cpu", **given)
    averaged = [w for w in said if "averaged weights" in str(w.message)]
    assert len(averaged) == (kind == "training.pth")
    # Files of the authors' layout come with their own endpoints and read captions raw.
    original = kind.endswith(".pth")
    assert pipe.model.sample.spacing == ("continuous" if original else "linspace")
    pipe.model.sample.spacing, pipe.model.sample.final = "linspace", "zero"
    latents = noise(1, 64, 32)
    expected = theirs(reference, ["a red circle"], latents, num_inference_steps=4)
    assert apart(ours(pipe, ["a red circle"], latents, num_inference_steps=4), expected) < 1


def test_averaged_weights_keep_the_trained_null_caption(tmp_path) -> None:
    """The authors' averaging leaves that buffer random; their `state_dict` has the right one."""
    from gesso.convert.checkpoint import read

    null, other = torch.ones(120, 4), torch.zeros(120, 4)
    key = "y_embedder.y_embedding"
    states = {"state_dict": {key: null, "a": null}, "state_dict_ema": {key: other, "a": other}}
    torch.save(states, tmp_path / "x.pth")
    found = read([tmp_path / "x.pth"])
    assert torch.equal(found.tensors[key], null) and torch.equal(found.tensors["a"], other)
    assert "averaged weights" in found.notes[0]


def test_an_original_file_with_a_null_caption_guides_with_it(alpha, tmp_path) -> None:
    from gesso.convert import pixart, variants
    from gesso.convert.network import network_of, read_pixart

    tensors = load_file(alpha[0] / "transformer" / "diffusion_pytorch_model.safetensors")
    tensors["caption_projection.y_embedding"] = torch.randn(120, 16)
    shutil.copytree(alpha[0], tmp_path / "early")
    save_file(tensors, tmp_path / "early" / "transformer" / "diffusion_pytorch_model.safetensors")
    convert(tmp_path / "early", tmp_path / "x.pth", "original")
    read = read_pixart([tmp_path / "x.pth"])
    network = network_of(read, variants.Hints())
    assert torch.equal(network.state[pixart.NULL], tensors["caption_projection.y_embedding"])
    pipe = gesso.load(tmp_path / "x.pth", vae=alpha[0], text_encoder=alpha[0], device="cpu")
    assert pipe.model.sample.null == "learned" and pipe.model.text_encoder.max_tokens == 120
    learned = ours(pipe, PROMPTS[:1], noise(1, 32, 32), num_inference_steps=4)
    pipe.model.sample.null = "empty"
    assert apart(ours(pipe, PROMPTS[:1], noise(1, 32, 32), num_inference_steps=4), learned) > 1


def test_kv_compressed_sigma_loads_and_paints(sigma, tmp_path) -> None:
    from gesso.backbones.pixart import Config, PixArt
    from gesso.convert.pixart import to_original

    torch.manual_seed(0)
    config = Config(depth=3, hidden_size=72, num_heads=1, text_dim=16, null_tokens=300, base_size=4)
    config.kv_compress, config.kv_blocks = 2, [1, 2]
    network = PixArt(config)
    with torch.no_grad():
        for p in network.parameters():
            p.normal_(std=0.15)
    torch.save({"state_dict": to_original(network.state_dict(), config)}, tmp_path / "kv.pth")
    pipe = gesso.load(tmp_path / "kv.pth", vae=sigma[0], text_encoder=sigma[0], device="cpu")
    assert pipe.model.backbone.config == config
    a = ours(pipe, PROMPTS[:1], noise(1, 64, 48), num_inference_steps=3)
    pipe.model.backbone = network.eval()
    assert apart(ours(pipe, PROMPTS[:1], noise(1, 64, 48), num_inference_steps=3), a) < 1e-3


# The hub


@pytest.fixture
def hub_cache(sigma, alpha, tmp_path, monkeypatch) -> Path:
    """A cache with org/sigma, a whole pipeline, and org/files, one file; no network."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("sigma", "files"):
        repository = tmp_path / "hub" / f"models--org--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
    snapshots = "snapshots/" + "0" * 40
    shutil.copytree(sigma[0], tmp_path / "hub" / "models--org--sigma" / snapshots)
    convert(sigma[0], tmp_path / "hub" / "models--org--files" / snapshots / "a.pth", "original")
    return tmp_path / "hub"


def test_hub_ids_load_from_the_cache(hub_cache) -> None:
    pipe = gesso.load("org/sigma", device="cpu")
    assert pipe.model.text_encoder.max_tokens == 300
    given = {"vae": "org/sigma", "text_encoder": "org/sigma", "variant": "sigma-256"}
    one = gesso.load("org/files/a.pth", device="cpu", **given)
    both = (pipe.model.backbone.state_dict(), one.model.backbone.state_dict())
    assert all(torch.equal(both[0][k], both[1][k]) for k in both[0])
    with pytest.raises(GessoError, match=r"'org/nothing' is no local path, and the hub does not"):
        gesso.load("org/nothing")


REPOSITORY = [
    *("README.md", "asset/sample.png", "model_index.json", "scheduler/scheduler_config.json"),
    *("text_encoder/config.json", "text_encoder/model-00001-of-00002.safetensors"),
    *("text_encoder/model-00002-of-00002.safetensors", "text_encoder/pytorch_model.bin"),
    *("text_encoder/model.safetensors.index.json", "tokenizer/spiece.model"),
    *("tokenizer/tokenizer_config.json", "transformer/config.json"),
    *("transformer/diffusion_pytorch_model.bin", "vae/config.json", "onnx/model.onnx"),
    *("vae/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.fp16.safetensors"),
]


def test_only_what_is_needed_is_downloaded(tmp_path, monkeypatch) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    from gesso.convert import hub

    def snapshot(repository: str, **patterns: Any) -> str:
        for name in filter_repo_objects(REPOSITORY, **patterns):
            file = tmp_path / repository / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}")
        return str(tmp_path / repository)

    def got(repository: str) -> set[str]:
        folder = tmp_path / repository
        return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    hub.resolve("org/all")
    unwanted = {"README.md", "asset/sample.png", "onnx/model.onnx"}
    unwanted |= {"text_encoder/pytorch_model.bin", "vae/diffusion_pytorch_model.fp16.safetensors"}
    assert got("org/all") == set(REPOSITORY) - unwanted  # the transformer is pickled only
    hub.resolve("org/some", parts=["transformer", "scheduler"])
    assert {n for n in got("org/some") if not n.endswith((".json", ".model"))} == {
        "transformer/diffusion_pytorch_model.bin"
    }


def test_a_cache_of_half_a_repository_is_refused(hub_cache) -> None:
    folder = next((hub_cache / "models--org--sigma" / "snapshots").iterdir())
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(GessoError, match="half-downloaded"):
        gesso.load("org/sigma")
