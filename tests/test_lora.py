"""LoRAs in a network: peft's own outputs, exact unfusing, several at once, bad ones."""

from __future__ import annotations

import pytest
import torch
from lora_fakes import TRAINER_TARGETS, backbone, ours, peer, peft_adapter, theirs
from safetensors.torch import save_file

from gesso.adapters.fused import Adapters, Loaded
from gesso.convert.lora import read
from gesso.types import GessoError

peft = pytest.importorskip("peft")


def attach(model, path, weight=1.0, name="a"):
    adapters = Adapters(model)
    adapters.add(Loaded(name, weight, read(path).layers))
    return adapters


def lora(**options):
    return peft.LoraConfig(
        **{"r": 3, "lora_alpha": 8, "target_modules": TRAINER_TARGETS, **options}
    )


CONFIGS = {
    "lora": lambda: lora(),
    "attention": lambda: lora(target_modules=["to_q", "to_v"]),
    "stabilised": lambda: lora(use_rslora=True),
    "patterns": lambda: lora(
        rank_pattern={"to_v": 5, "transformer_blocks.1.ff.net.2": 2}, alpha_pattern={"to_v": 1}
    ),
    "dora": lambda: lora(use_dora=True),
    "loha": lambda: peft.LoHaConfig(r=3, alpha=5, target_modules=TRAINER_TARGETS),
    "loha conv": lambda: peft.LoHaConfig(
        r=3, alpha=5, target_modules=["proj"], use_effective_conv2d=True
    ),
    "lokr": lambda: peft.LoKrConfig(r=2, alpha=5, target_modules=TRAINER_TARGETS),
    "lokr both": lambda: peft.LoKrConfig(
        r=2,
        alpha=5,
        target_modules=TRAINER_TARGETS,
        decompose_both=True,
        decompose_factor=8,
        use_effective_conv2d=True,
    ),
    "lokr whole": lambda: peft.LoKrConfig(r=64, alpha=16, target_modules=TRAINER_TARGETS),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_those_of_peft(name, tmp_path):
    model = backbone(micro_conditions=True)
    before = ours(model)
    adapted, folder = peft_adapter(model, CONFIGS[name](), tmp_path)
    attach(model, folder)
    expected = theirs(adapted, micro=True)
    scale = expected.abs().max().item()
    assert (ours(model) - before).abs().max() > 1e-2 * scale  # it does something
    assert (ours(model) - expected).abs().max() <= 1e-5 * max(1.0, scale)


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """Folders of a LoRA, a DoRA and a LoHa for the same model."""
    model, folder = backbone(micro_conditions=True), tmp_path_factory.mktemp("loras")
    return {k: peft_adapter(model, CONFIGS[k](), folder / k)[1] for k in ("lora", "dora", "loha")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_unfusing_brings_the_original_bits_back(loras, dtype):
    model = backbone(micro_conditions=True).to(dtype)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    adapters = attach(model, loras["lora"], name="a")
    adapters.add(Loaded("b", -0.7, read(loras["dora"]).layers))
    fused = {k: v.clone() for k, v in model.state_dict().items()}
    assert sum(not torch.equal(before[k], fused[k]) for k in before) > 20
    adapters.unfuse()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert [a.name for a in adapters.loaded] == ["a", "b"]
    adapters.fuse()
    adapters.fuse()  # again is no change
    assert all(torch.equal(v, fused[k]) for k, v in model.state_dict().items())
    adapters.remove()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_several_add_up_whatever_their_order_and_weights_count_from_the_original(loras):
    def changed(*parts):
        model = backbone(micro_conditions=True)
        weight = model.blocks[1].attn.qkv.weight
        before = weight.detach().clone()
        adapters = Adapters(model)
        for name, w in parts:
            adapters.add(Loaded(name, w, read(loras[name]).layers))
        return weight.detach() - before, adapters

    one, _ = changed(("lora", 1.0))
    two, _ = changed(("dora", 1.0))
    both, adapters = changed(("lora", 0.5), ("dora", -2.0))
    other, _ = changed(("dora", -2.0), ("lora", 0.5))
    assert torch.allclose(both, 0.5 * one - 2.0 * two, atol=1e-5)
    assert torch.allclose(both, other, atol=1e-6)
    weight = adapters.network.blocks[1].attn.qkv.weight
    base = weight.detach() - both
    adapters.set_weight("dora", 0.0)
    assert torch.allclose(weight - base, 0.5 * one, atol=1e-5)
    adapters.remove("lora")
    assert torch.allclose(weight, base, atol=1e-6)


def test_a_magnitude_of_a_row_of_zeros_is_not_nan(loras):
    layer = next(la for la in read(loras["dora"]).layers if la.target == "final_layer.linear")
    up = layer.factors["up"].clone()
    up[0] = 0
    still = type(layer)(
        layer.target, "lora", {**layer.factors, "up": up}, layer.rank, magnitude=layer.magnitude
    )
    assert torch.equal(still.change(torch.zeros(32, 48))[0], torch.zeros(48))


class Other(torch.nn.Module):
    """A network that is no PixArt."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.ModuleList([torch.nn.Linear(6, 10), torch.nn.Linear(10, 4)])
        self.stem = torch.nn.Conv2d(2, 6, 3, padding=1)

    def forward(self, x):
        x = self.stem(x).mean(dim=(2, 3))
        return self.body[1](self.body[0](x).relu())


@pytest.mark.parametrize("dora", [False, True])
def test_any_network_with_linear_and_convolutional_layers(tmp_path, dora):
    torch.manual_seed(0)
    network, x = Other(), torch.randn(3, 2, 5, 5)
    targets = ["stem", "body.0", "body.1"]
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=targets, use_dora=dora)
    twin = Other()
    twin.load_state_dict(network.state_dict())
    adapted = peft.get_peft_model(twin, config).eval()
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                p.normal_()
    adapted.save_pretrained(tmp_path)
    names = {n for n, _ in network.named_modules()}
    before = network(x)
    Adapters(network).add(Loaded("a", 1.0, read(tmp_path, names).layers))
    assert not torch.allclose(network(x), before, atol=1e-2)
    assert torch.allclose(network(x), adapted(x), atol=1e-5)


def test_another_width_names_the_layer_and_both_shapes(loras):
    for folder in loras.values():
        model = backbone(micro_conditions=True, hidden_size=96)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(GessoError, match=r"another width.* \d+x\d+ where .* \d+x\d+:") as e:
            attach(model, folder)
        assert "\n" not in str(e.value)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_a_deeper_models_lora_names_the_missing_layer(loras):
    with pytest.raises(GessoError, match=r"blocks\.1\.\S+, which this model does not have"):
        attach(backbone(micro_conditions=True, depth=1), loras["lora"])


def test_quantised_weights_take_no_lora_and_are_not_half_restored(loras):
    model = backbone(micro_conditions=True)
    adapters = attach(model, loras["lora"])
    quantised = model.blocks[1].mlp.fc1
    quantised.weight = torch.nn.Parameter(quantised.weight.detach().char(), requires_grad=False)
    fused = {k: v.clone() for k, v in model.state_dict().items()}
    for change in (adapters.unfuse, lambda: attach(model, loras["dora"])):
        with pytest.raises(GessoError, match=r"blocks.1.mlp.fc1 are quantised"):
            change()
    assert all(torch.equal(v, fused[k]) for k, v in model.state_dict().items())


def test_names_are_unique_and_known(loras):
    adapters = attach(backbone(micro_conditions=True), loras["lora"], name="a")
    with pytest.raises(GessoError, match="'a' is loaded already"):
        adapters.add(Loaded("a", 1.0, []))
    for change in (adapters.remove, adapters.get, lambda n: adapters.set_weight(n, 1.0)):
        with pytest.raises(GessoError, match="no LoRA named 'b': loaded are a"):
            change("b")


LYCORIS = {
    "lora tucker": {"algo": "lora", "use_tucker": True, "conv_dim": 2},
    "dora per output": {"algo": "lora", "dora_wd": True, "wd_on_output": True},
    "dora per input": {"algo": "lora", "dora_wd": True, "wd_on_output": False},
    "loha tucker": {"algo": "loha", "use_tucker": True},
    "loha dora": {"algo": "loha", "dora_wd": True, "wd_on_output": False},
    "lokr": {"algo": "lokr"},
    "lokr both": {"algo": "lokr", "factor": 4, "decompose_both": True, "use_tucker": True},
    "lokr whole": {"algo": "lokr", "factor": 4, "full_matrix": True},
    "lokr dora": {"algo": "lokr", "factor": 4, "unbalanced_factorization": True, "dora_wd": True},
}


@pytest.mark.parametrize("name", LYCORIS)
def test_outputs_are_those_of_lycoris(name, tmp_path, monkeypatch):
    pytest.importorskip("lycoris")
    from lycoris import wrapper

    model = backbone(micro_conditions=True)
    other, before = peer(model), ours(model)
    everything = {"target_module": ["PixArtTransformer2DModel"]}
    monkeypatch.setitem(wrapper.PRESET, "pixart", everything)
    network = wrapper.create_lycoris(
        other, linear_dim=3, linear_alpha=2, preset="pixart", **LYCORIS[name]
    )
    network.apply_to()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for key, p in network.named_parameters():
            if "dora" in key:
                p.mul_(0.5 + torch.rand(p.shape, generator=g))
            else:
                p.copy_(0.3 * torch.randn(p.shape, generator=g))
    state = {k: v.detach().clone() for k, v in network.eval().state_dict().items()}
    save_file(state, tmp_path / "x.safetensors")
    attach(model, tmp_path / "x.safetensors")
    expected = theirs(other, micro=True)
    scale = expected.abs().max().item()
    assert (ours(model) - before).abs().max() > 1e-2 * scale
    assert (ours(model) - expected).abs().max() <= 1e-5 * max(1.0, scale)
