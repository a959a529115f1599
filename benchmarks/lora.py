"""A LoRA of rank 16 on every projection of XL/2 in bfloat16: into the weights and out again.

The peer is peft, merging the same adapter into diffusers' transformer and unmerging it. Both sides
run in turn; medians. Beside the times stands how far the weights are from the original ones
afterwards.

    python benchmarks/lora.py [--depth 28] [--rounds 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import PixArtTransformer2DModel
from peft import LoraConfig, get_peft_model

from gesso.adapters.fused import Adapters, Loaded
from gesso.backbones.pixart import SIZES, PixArt
from gesso.convert.lora import read

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    generator = torch.Generator().manual_seed(0)

    def drawn(network: torch.nn.Module) -> torch.nn.Module:
        network = network.to_empty(device="cpu").bfloat16()
        for p in network.parameters():
            p.data.normal_(std=0.02, generator=generator)
        return network.eval()

    with torch.device("meta"):
        ours = PixArt(SIZES["xl-512"].model_copy(update={"depth": args.depth}))
        theirs = PixArtTransformer2DModel(sample_size=64, num_layers=args.depth)
    network = drawn(ours)
    adapted = get_peft_model(drawn(theirs), LoraConfig(r=16, lora_alpha=16, target_modules=TARGETS))
    for name, p in adapted.named_parameters():
        if "lora_" in name:
            p.data = torch.randn(p.shape, generator=generator).mul_(0.05).bfloat16()
    with tempfile.TemporaryDirectory() as folder:
        adapted.save_pretrained(folder)
        layers = read(Path(folder)).layers
    adapters = Adapters(network)

    def timed(act: Callable[[], object]) -> float:
        start = time.perf_counter()
        act()
        return time.perf_counter() - start

    sides = {
        "gesso": (network, lambda: adapters.add(Loaded("a", 1.0, layers)), adapters.remove),
        "peft": (adapted, adapted.merge_adapter, adapted.unmerge_adapter),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    apart = dict.fromkeys(sides, 0.0)
    for _ in range(args.rounds):
        for name, (held, put, take) in sides.items():
            before = {k: p.detach().clone() for k, p in held.named_parameters()}
            times[name].append((timed(put), timed(take)))
            after = held.named_parameters()
            largest = max(float((p.detach() - before[k]).abs().max()) for k, p in after)
            apart[name] = max(apart[name], largest)
    print(f"{len(layers)} projections, {torch.get_num_threads()} threads")
    medians = {n: [statistics.median(t[i] for t in times[n]) for i in (0, 1)] for n in sides}
    for name, (put_s, take_s) in medians.items():
        print(f"{name:6} in {put_s:6.2f} s  out {take_s:6.2f} s  off by {apart[name]:.1e} after")
    ratios = [medians["peft"][i] / medians["gesso"][i] for i in (0, 1)]
    print(f"peft / gesso: in {ratios[0]:.2f}, out {ratios[1]:.2f}")


if __name__ == "__main__":
    main()
