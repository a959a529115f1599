"""LoRA files: every format read, written and proven by peft, and bad ones refused."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from lora_fakes import TRAINER_TARGETS, backbone, ours, peer, peft_adapter, theirs
from safetensors.torch import load_file, save_file

from gesso.adapters.fused import Adapters, Loaded
from gesso.convert import lora as lora_module
from gesso.convert.lora import convert, difference, is_lora, read
from gesso.convert.lora_formats import FORMATS, fold
from gesso.convert.lora_projections import fuse, split
from gesso.nn.low_rank import Layer
from gesso.types import GessoError

peft = pytest.importorskip("peft")

FOLDERS = ("peft", "official")
LORAS = ("lora", "stabilised", "some", "dora")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """One folder saved by peft for each kind of adapter."""
    model, folder = backbone(micro_conditions=True), tmp_path_factory.mktemp("lora")
    lora = {"r": 3, "lora_alpha": 8, "target_modules": TRAINER_TARGETS}
    lyco = {"r": 3, "alpha": 5, "target_modules": TRAINER_TARGETS}
    configs = {
        "lora": peft.LoraConfig(**lora, rank_pattern={"to_v": 5}, alpha_pattern={"to_k": 2}),
        "stabilised": peft.LoraConfig(**lora, use_rslora=True),
        "some": peft.LoraConfig(**lora | {"target_modules": ["attn1.to_q", "attn2.to_v", "proj"]}),
        "dora": peft.LoraConfig(**lora, use_dora=True),
        "loha": peft.LoHaConfig(**lyco),
        "lokr": peft.LoKrConfig(**lyco | {"r": 2}, decompose_factor=4),
        "whole": peft.LoKrConfig(**lyco | {"r": 64}, decompose_factor=4),
    }
    return {k: peft_adapter(model, c, folder / k)[1] for k, c in configs.items()}


def out_of(tmp_path, to):
    return tmp_path / (to if to in FOLDERS else f"{to}.safetensors")


def tensors_of(path):
    return load_file(path / "adapter_model.safetensors" if path.is_dir() else path)


CANNOT = {
    ("loha", "official"),
    ("loha", "diffusers"),
    ("loha", "ai-toolkit"),
    *((kind, to) for kind in ("lokr", "whole") for to in ("official", "diffusers")),
    # Projections have LoKrs of their own, which are no LoKr of the fused one.
    *((kind, to) for kind in ("lokr", "whole") for to in ("kohya", "original", "comfyui")),
}


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("kind", ["lora", "stabilised", "some", "dora", "loha", "lokr", "whole"])
def test_every_format_changes_the_same_weights(sources, tmp_path, kind, to):
    out = out_of(tmp_path, to)
    if (kind, to) in CANNOT:
        with pytest.raises(GessoError, match=r"cannot hold|keep a format with split"):
            convert(sources[kind], out, to)
        assert not out.exists()
        return
    report = convert(sources[kind], out, to)
    assert report["largest_difference"] <= 1e-6 and report["largest_output_difference"] <= 1e-6
    assert report["layers"] == len(read(sources[kind]).layers) and is_lora(out)
    assert max(difference(read(sources[kind]).layers, read(out).layers)) <= 1e-6
    back = convert(out, tmp_path / "back", "peft")
    assert back["largest_difference"] <= 1e-6
    before, after = tensors_of(sources[kind]), tensors_of(tmp_path / "back")
    assert before.keys() == after.keys()
    fused = to in ("kohya", "original", "comfyui")
    if kind in ("lokr", "whole") and to not in FOLDERS:
        # A product of whole factors has no scale elsewhere: it is multiplied in.
        exact, whole = True, {k.removesuffix("_w2") for k in before if k.endswith("lokr_w2")}
        before = {k: v for k, v in before.items() if k.rpartition("_w")[0] not in whole}
        assert bool(before) == (kind == "lokr")
    elif fused:
        exact = kind in ("stabilised", "some", "dora")  # alphas alike, and ranks that come apart
    else:
        exact = to not in ("diffusers", "simpletuner") or kind not in LORAS
    if exact:
        assert all(torch.equal(before[k], after[k]) for k in before)


NAMES = {
    "peft": "base_model.model.transformer_blocks.1.attn1.to_q.lora_A.weight",
    "official": "base_model.model.transformer_blocks.1.attn2.to_out.0.lora_B.weight",
    "diffusers": "transformer.transformer_blocks.1.ff.net.0.proj.lora_A.weight",
    "simpletuner": "transformer.adaln_single.emb.timestep_embedder.linear_1.lora_B.weight",
    "onetrainer": "lora_transformer_transformer_blocks_1_attn1_to_out_0.lora_down.weight",
    "ai-toolkit": "lora_transformer_transformer_blocks_1_ff_net_0_proj.alpha",
    "kohya": "lora_unet_blocks_1_cross_attn_kv_linear.lora_up.weight",
    "lycoris": "lycoris_pos_embed_proj.lora_down.weight",
    "original": "blocks.1.attn.qkv.lora_A.weight",
    "comfyui": "diffusion_model.y_embedder.y_proj.fc1.alpha",
    "gesso": "transformer_blocks.1.attn1.to_q.lora_A.weight",
}


@pytest.mark.parametrize("to", FORMATS)
def test_names_are_those_that_the_trainers_write(sources, tmp_path, to):
    convert(sources["lora"], out_of(tmp_path, to), to)
    keys = tensors_of(out_of(tmp_path, to)).keys()
    assert NAMES[to] in keys
    alphas = {k for k in keys if k.endswith(".alpha")}
    assert bool(alphas) == (to not in ("peft", "official", "diffusers", "simpletuner"))


@pytest.mark.parametrize(
    ("kind", "via"),
    [
        *((kind, "onetrainer") for kind in ("lora", "stabilised", "dora", "lokr")),
        *((kind, "lycoris") for kind in ("loha", "lokr", "whole")),
        *((kind, "kohya") for kind in ("lora", "dora", "loha")),
    ],
)
def test_peft_loads_what_was_converted_for_it(sources, tmp_path, kind, via):
    model = backbone(micro_conditions=True)
    convert(sources[kind], tmp_path / "via.safetensors", via)
    convert(tmp_path / "via.safetensors", tmp_path / "peft", "peft")
    adapted = peft.PeftModel.from_pretrained(peer(model), tmp_path / "peft").eval()
    expected = theirs(adapted, micro=True)
    adapters = Adapters(model)
    adapters.add(Loaded("a", 1.0, read(sources[kind]).layers))
    assert (ours(model) - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_peft_loads_the_folded_file_with_alpha_equal_to_rank(sources, tmp_path, kind):
    """As diffusers does with such files: it configures peft so that every scale is 1."""
    convert(sources[kind], tmp_path / "x.safetensors", "diffusers")
    stored = {
        k.replace("transformer.", "base_model.model.", 1): v
        for k, v in load_file(tmp_path / "x.safetensors").items()
    }
    ranks = {
        k.removeprefix("base_model.model.").removesuffix(".lora_A.weight"): v.shape[0]
        for k, v in stored.items()
        if ".lora_A." in k
    }
    config = peft.LoraConfig(
        r=3,
        lora_alpha=3,
        target_modules=list(ranks),
        rank_pattern=ranks,
        alpha_pattern=ranks,
        use_dora=kind == "dora",
    )
    model = backbone(micro_conditions=True)
    adapted = peft.get_peft_model(peer(model), config).eval()
    result = peft.set_peft_model_state_dict(adapted, stored)
    assert not result.unexpected_keys
    Adapters(model).add(Loaded("a", 1.0, read(sources[kind]).layers))
    expected = theirs(adapted, micro=True)
    assert (ours(model) - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max().item())


def test_the_official_layout_has_the_copy_that_the_trainer_writes(sources, tmp_path):
    convert(sources["lora"], tmp_path / "o", "official")
    copy = tmp_path / "o" / "transformer_lora" / "pytorch_lora_weights.safetensors"
    first, second = load_file(tmp_path / "o" / "adapter_model.safetensors"), load_file(copy)
    assert {f"unet.{k}" for k in first} == second.keys()
    assert max(difference(read(copy).layers, read(sources["lora"]).layers)) == 0
    both = tmp_path / "both.safetensors"
    save_file(first | second, both)  # in one file, without the configuration
    assert len(read(both).layers) == len(first) // 2
    assert "alpha 8" in read(both).notes[0]


def renamed(folder, out, change):
    save_file({change(k): v for k, v in tensors_of(folder).items()}, out)
    return out


def unscaled(path):
    """The layers of a file without their alphas, which a renamed file has lost."""
    return [
        Layer(la.target, la.kind, la.factors, la.rank, magnitude=la.magnitude, part=la.part)
        for la in read(path).layers
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda k: k.removeprefix("base_model.model."),
        lambda k: "unet." + k,
        lambda k: k.replace("base_model.model.", "module.transformer."),
        lambda k: k.replace(".weight", ".default.weight"),
        lambda k: k.replace("lora_A", "lora.down").replace("lora_B", "lora.up"),
        lambda k: (
            "lora_transformer__"  # an old ai-toolkit
            + k.removeprefix("base_model.model.").rsplit(".", 2)[0].replace(".", "_")
            + k[-14:].replace("lora_A", "lora_down").replace("lora_B", "lora_up")
        ),
    ],
)
def test_other_spellings_of_the_same_names(sources, tmp_path, change):
    file = renamed(sources["lora"], tmp_path / "x.safetensors", change)
    assert max(difference(unscaled(sources["lora"]), unscaled(file))) == 0


def random_layer(kind, generator, rows=12, columns=8, rank=3, alpha=6.0):
    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    factors = {
        "lora": lambda: {"down": draw(rank, columns), "up": draw(rows, rank)},
        "loha": lambda: {
            "w1_a": draw(rows, rank),
            "w1_b": draw(rank, columns),
            "w2_a": draw(rows, rank),
            "w2_b": draw(rank, columns),
        },
        "lokr": lambda: {"w1": draw(3, 2), "w2_a": draw(rows // 3, rank), "w2_b": draw(rank, 4)},
    }[kind]()
    return Layer("blocks.0.attn.qkv", kind, factors, rank, alpha)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr"])
def test_a_fused_adapter_splits_exactly_and_comes_back_bit_for_bit(kind):
    layer = random_layer(kind, torch.Generator().manual_seed(0))
    parts = split(layer, 3)
    stacked = torch.cat([p.delta() for p in parts])
    assert torch.allclose(stacked, layer.delta(), atol=1e-6)
    assert all(p.rank == layer.rank and p.part == (i, 3) for i, p in enumerate(parts))
    again = fuse(parts, 3)
    assert again.scale == layer.scale and again.part == (0, 1)
    assert all(torch.equal(again.factors[k], v) for k, v in layer.factors.items())


@pytest.mark.parametrize("kind", ["lora", "loha"])
@pytest.mark.parametrize("present", [(0, 1, 2), (0, 2), (1,)])
def test_split_adapters_of_their_own_fuse_into_a_larger_one(kind, present):
    g = torch.Generator().manual_seed(0)
    parts = []
    for i, rank, alpha in zip(present, (3, 2, 4), (6.0, 4.0, None), strict=False):
        one = random_layer(kind, g, rows=4, rank=rank, alpha=alpha)
        parts.append(Layer(one.target, kind, one.factors, rank, alpha, part=(i, 3)))
    fused = fuse(parts, 3)
    expected = torch.zeros(12, 8)
    for part in parts:
        expected[4 * part.part[0] : 4 * part.part[0] + 4] = part.delta()
    assert torch.allclose(fused.delta(), expected, atol=1e-5)
    if kind == "lora":
        again = split(fused, 3)
        assert [p.part[0] for p in again] == list(present)
        assert [p.rank for p in again] == [p.rank for p in parts]  # no larger than they were


def test_a_dora_per_input_is_read_but_not_split(tmp_path):
    """LyCORIS and OneTrainer may keep one norm per input; rows of a fused weight share it."""
    g = torch.Generator().manual_seed(0)
    key = "lora_unet_blocks_0_attn_qkv"
    file = tmp_path / "d.safetensors"
    tensors = {
        f"{key}.lora_down.weight": torch.randn(3, 48, generator=g),
        f"{key}.lora_up.weight": torch.randn(144, 3, generator=g),
        f"{key}.alpha": torch.tensor(3.0),
        f"{key}.dora_scale": torch.rand(1, 48, generator=g) + 1,
    }
    save_file(tensors, file)
    weight = backbone().blocks[0].attn.qkv.weight.detach()
    (layer,) = read(file).layers
    turned = weight + tensors[f"{key}.lora_up.weight"] @ tensors[f"{key}.lora_down.weight"]
    expected = tensors[f"{key}.dora_scale"] * turned / turned.norm(dim=0, keepdim=True)
    assert torch.allclose(weight + layer.change(weight), expected, atol=1e-5)
    with pytest.raises(GessoError, match="one norm per input"):
        convert(file, tmp_path / "o.safetensors", "onetrainer")
    assert convert(file, tmp_path / "c.safetensors", "comfyui")["largest_difference"] == 0


def test_folding_is_exact_where_it_can_be():
    layer = random_layer("lora", torch.Generator().manual_seed(0), rank=4, alpha=8.0)
    half = Layer(layer.target, "lora", {k: v.half() for k, v in layer.factors.items()}, 4, 8.0)
    assert fold(half).factors["up"].dtype == torch.float16  # s = 2
    assert torch.equal(fold(half).delta(), half.delta())
    third = Layer(layer.target, "lora", half.factors, 4, 4 / 3)
    assert fold(third).factors["up"].dtype == torch.float32
    assert torch.allclose(fold(third).delta(), third.delta(), rtol=1e-6)


def test_a_conversion_that_differs_is_refused(sources, tmp_path, monkeypatch):
    def broken(tensors):
        key = next(k for k in tensors if "attn1.to_v.lora_B" in k)
        return real({**tensors, key: tensors[key] * 1.001})

    real = lora_module.encode
    monkeypatch.setattr(lora_module, "encode", broken)
    with pytest.raises(GessoError, match="nothing was written"):
        convert(sources["lora"], tmp_path / "x.safetensors", "diffusers")
    assert not (tmp_path / "x.safetensors").exists()


def lora_of(*paths, shape=(4, 48), prefix="transformer.", generator=None):
    rank, columns = shape
    return {
        f"{prefix}{p}.lora_{ab}.weight": torch.randn(*s, generator=generator)
        for p in paths
        for ab, s in (("A", (rank, columns)), ("B", (48, rank)))
    }


SDXL = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        (lora_of("encoder.layer"), "None of the keys.*transformer.encoder.layer.*base_model.model"),
        (lora_of("encoder.layer", "proj_out"), "2 of the 4 of the keys"),
        (lora_of(SDXL, prefix="unet."), "a LoRA for a Stable Diffusion UNet"),
        (lora_of("double_blocks.0.img_attn.qkv"), "a LoRA for Flux"),
        (lora_of("single_transformer_blocks.3.attn.to_q"), "a LoRA for Flux"),
        ({"transformer.proj_out.lora_A.weight": torch.zeros(4, 48)}, "has only down of"),
        ({"transformer.proj_out.alpha": torch.tensor(1.0)}, "has only alpha or magnitude"),
        (lora_of("proj_out") | {"transformer.proj_out.oft_R.weight": torch.zeros(1)}, "oft_R"),
        ({"x.weight": torch.zeros(1)}, "x.weight, which gesso does not read"),
        ({k: v * float("nan") for k, v in lora_of("proj_out").items()}, "holds NaN"),
        ({"lora_te_encoder_block_0.lora_up.weight": torch.zeros(1, 1)}, "no LoRA for the denoiser"),
    ],
)
def test_what_is_no_lora_for_this_model_says_what_it_is(tmp_path, tensors, says):
    file = tmp_path / "bad.safetensors"
    save_file(tensors, file)
    with pytest.raises(GessoError, match=says) as raised:
        read(file)
    assert "\n" not in str(raised.value)


def test_text_encoder_tensors_are_named_and_not_lost_in_a_conversion(tmp_path):
    file = tmp_path / "te.safetensors"
    text = {"lora_te_encoder_block_0_layer_0_SelfAttention_q.lora_up.weight": torch.zeros(4, 2)}
    save_file(lora_of("transformer_blocks.0.attn1.to_out.0") | text, file)
    assert read(file).left_out == list(text) and "text encoder" in read(file).notes[0]
    with pytest.raises(GessoError, match="also adapts the text encoder"):
        convert(file, tmp_path / "o.safetensors", "kohya")


def test_broken_files_are_one_sentence_and_no_pickle_runs(tmp_path, sources):
    cut = tmp_path / "cut.safetensors"
    whole = (sources["lora"] / "adapter_model.safetensors").read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(GessoError, match="truncated"):
        read(cut)

    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("owned").write_text, ("x",))

    for name in ("evil.pth", "evil.bin"):
        (tmp_path / name).write_bytes(pickle.dumps({"a": Evil()}))
        torch.save({"a": Evil()}, tmp_path / f"zip-{name}")
        for file in (name, f"zip-{name}"):
            with pytest.raises(GessoError):
                read(tmp_path / file)
    assert not (tmp_path / "owned").exists()
    fine = tmp_path / "fine.bin"
    torch.save(tensors_of(sources["lora"]), fine)
    assert max(difference(unscaled(fine), unscaled(sources["lora"]))) == 0
    with pytest.raises(GessoError, match="is no file"):
        read(tmp_path / "absent.safetensors")
    (tmp_path / "empty").mkdir()
    with pytest.raises(GessoError, match="is no LoRA"):
        read(tmp_path / "empty")


def test_models_are_no_loras(tmp_path):
    save_file({"t_block.1.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    assert not is_lora(tmp_path / "model.safetensors")
    assert not is_lora(tmp_path / "absent")


def test_where_a_conversion_goes_and_what_it_is_called(sources, tmp_path):
    with pytest.raises(GessoError, match="There is no LoRA format 'kohia'"):
        convert(sources["lora"], tmp_path / "x.safetensors", "kohia")
    with pytest.raises(GessoError, match="ends so"):
        convert(sources["lora"], tmp_path / "x", "kohya")
    with pytest.raises(GessoError, match="give a folder's name"):
        convert(sources["lora"], tmp_path / "x.safetensors", "peft")
    assert read(sources["lora"]).name == "lora"  # the folder's, as the file is called adapter_model
    convert(sources["lora"], tmp_path / "style.safetensors", "kohya")
    assert read(tmp_path / "style.safetensors").name == "style"


def test_diffusers_configuration_in_the_file_counts(sources, tmp_path):
    file = tmp_path / "meta.safetensors"
    tensors = {
        k.replace("base_model.model.", "transformer."): v
        for k, v in tensors_of(sources["stabilised"]).items()
    }
    config = json.loads((sources["stabilised"] / "adapter_config.json").read_text())
    kept = {f"transformer.{k}": config[k] for k in ("r", "lora_alpha", "use_rslora")}
    save_file(tensors, file, {"lora_adapter_metadata": json.dumps(kept)})
    assert max(difference(read(file).layers, read(sources["stabilised"]).layers)) == 0


def test_a_neighbours_configuration_is_not_taken(tmp_path):
    config = '{"r": 4, "lora_alpha": 8}'
    for folder, taken in (("style", False), ("transformer_lora", True)):
        (tmp_path / folder).mkdir()
        (tmp_path / "adapter_config.json").write_text(config)
        found = lora_module._config(tmp_path / folder / "pytorch_lora_weights.safetensors")
        assert (found is not None) == taken
