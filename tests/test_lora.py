"""LoRAs in a network: the outputs of peft's own layers, exact unfusing, several at once, bad ones."""

from __future__ import annotations

import pytest
import torch
from lora_fakes import TRAINER_TARGETS, backbone, ours, peft_adapter, theirs

from gesso.adapters.lora import Adapters, Loaded
from gesso.convert.lora import read
from gesso.types import GessoError

peft = pytest.importorskip("peft")


def attach(model, path, weight=1.0, name="a"):
    adapters = Adapters(model)
    adapters.add(Loaded(name, weight, read(path).layers))
    return adapters


def lora(**options):
    return peft.LoraConfig(**{"r": 3, "lora_alpha": 8, "target_modules": TRAINER_TARGETS, **options})


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
