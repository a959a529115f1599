"""Peak memory of painting with PixArt-XL/2 and its text encoder, on a CPU.

    python benchmarks/memory.py                  # everything below; some minutes
    python benchmarks/memory.py --only denoiser  # or text, vae

Shapes are the published ones, weights are random: what memory is taken does not depend on them.
Every row is a process of its own, and every figure is what is above its memory before. "weights" is
what the tensors hold. "own" is memory that is no mapped file, after loading, and its largest while
loading and while working (sampled every 10 ms). "resident" also counts the pages of mapped files,
by the kernel's own record (VmHWM); where memory is short the kernel drops them.

- denoiser: XL/2 with micro-conditions at --pixels, one guided step (a batch of 2) under 120 text
  tokens, through `gesso.convert.published` from a float32 file as its authors publish it.
- text: T5 v1.1 XXL's layers, 4096 wide, but only --layers of its 24, as the whole does not fit a
  small machine's patience; two prompts of 120 tokens. The 24 layers are computed from it, not
  measured: embedding + 24 x one layer.
- vae: the published autoencoder's shapes, decoding one picture of --pixels, whole and in tiles of
  half its side.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

MIB = 2**20
T5_LAYERS = 24
DENOISER = "PixArt-XL-2-1024-MS.safetensors"


def resident(what: str = "VmRSS") -> float:
    """MiB of this process, from the kernel."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"the kernel does not tell {what}")


class Watch:
    """Memory above what the process had at the start."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # forget the largest so far
        self.start = {what: resident(what) for what in ("VmRSS", "RssAnon")}
        self.own = 0.0
        threading.Thread(target=self._sample, daemon=True).start()

    def _sample(self) -> None:
        while True:
            self.own = max(self.own, resident("RssAnon") - self.start["RssAnon"])
            time.sleep(0.01)

    def now(self) -> dict[str, float]:
        return {
            "own": resident("RssAnon") - self.start["RssAnon"],
            "resident": resident() - self.start["VmRSS"],
        }

    def peak(self, of: str) -> dict[str, float]:
        """Since the last call of it, or the start."""
        found = {
            f"own, {of}": self.own,
            f"resident, {of}": resident("VmHWM") - self.start["VmRSS"],
        }
        Path("/proc/self/clear_refs").write_text("5")
        self.own = 0.0
        return found


def random_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    import torch

    g = torch.Generator().manual_seed(0)
    return {k: torch.randn(s, generator=g).mul_(0.02) for k, s in shapes.items()}


def write_denoiser(folder: Path, _: int) -> None:
    """XL/2 with micro-conditions as its authors publish it, in float32."""
    from safetensors.torch import save_file

    from gesso.backbones.pixart import SIZES, PixArt
    from gesso.nn.init import WithoutWeights

    with WithoutWeights():
        network = PixArt(SIZES["xl-1024"])
    shapes = {k: tuple(v.shape) for k, v in network.state_dict().items()}
    shapes["pos_embed"] = (1, 4096, 1152)
    save_file(random_weights(shapes), folder / DENOISER)


def denoiser(folder: Path, kind: str, pixels: int) -> dict[str, float]:
    """One guided step."""
    import torch

    from gesso.convert.published import find
    from gesso.diffusion.guidance import guide
    from gesso.diffusion.schedules import make_schedule
    from gesso.nn.quantize import stored_bytes
    from gesso.samplers.euler import sample
    from gesso.types import Cond

    if kind == "int8":
        import torchao.quantization  # noqa: F401  its import is no part of the model
    source = find(folder / DENOISER)
    watch = Watch()
    low = kind in ("bfloat16", "int8 over bfloat16")
    model = source.load({"backbone"}, "bfloat16" if low else "float32")
    if kind.startswith("int8"):
        model.quantize("int8")
    elif kind == "bfloat16 blocks":
        model.quantize("bfloat16")
    row = {"weights": stored_bytes(model.backbone) / MIB, **watch.now()}
    row |= watch.peak("loading")
    cond = Cond(
        tokens=torch.randn(1, 120, 4096),
        mask=torch.ones(1, 120, dtype=torch.bool),
        size=torch.tensor([[float(pixels), float(pixels)]]),
        aspect=torch.ones(1, 1),
    )
    schedule = make_schedule(model.path, 1)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in kind)
    with torch.inference_mode(), autocast:
        denoise = guide(model.denoiser(), cond, cond, guidance_scale=4.5, schedule=schedule)
        sample(denoise, torch.randn(1, 4, pixels // 8, pixels // 8), schedule)
    row |= watch.peak("working")
    return row


def write_text(folder: Path, layers: int) -> None:
    """T5 v1.1 XXL's encoder with few layers, and a tokenizer of one word."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=32128,
        d_model=4096,
        d_kv=64,
        d_ff=10240,
        num_heads=64,
        num_layers=layers,
        feed_forward_proj="gated-gelu",
    )
    with torch.device("meta"):
        network = T5EncoderModel(config)
    network = network.to(torch.bfloat16).to_empty(device="cpu")
    with torch.no_grad():
        for p in network.parameters():
            p.fill_(0.01)
    network.save_pretrained(folder / "text_encoder")
    words = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "w": 2}, unk_token="w"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="w"
    ).save_pretrained(folder / "tokenizer")


def text(folder: Path, kind: str, _: int) -> dict[str, float]:
    """Two prompts of 120 tokens."""
    import torch
    import transformers.models.t5.modeling_t5  # noqa: F401

    from gesso.encoders.text import t5
    from gesso.nn.quantize import quantize_blocks, stored_bytes

    if kind.startswith("int8"):
        import torchao.quantization  # noqa: F401
    watch = Watch()
    dtype: Any = "float32" if kind == "float32" else "bfloat16"
    encoder = t5.build(t5.Config(path=str(folder), max_tokens=120, dtype=dtype))
    if kind.startswith("int8"):
        quantize_blocks(encoder, "int8")
    embedding = stored_bytes(encoder.encoder.shared) / MIB
    row = {"weights": stored_bytes(encoder) / MIB, "embedding": embedding, **watch.now()}
    row |= watch.peak("loading")
    with torch.inference_mode():
        encoder.prepare([" ".join(["w"] * 120)] * 2)
    row |= watch.peak("working")
    return row


def vae(_: Path, kind: str, pixels: int) -> dict[str, float]:
    """One picture out of its latents."""
    import torch
    from diffusers import AutoencoderKL

    from gesso.encoders.image.kl import KLAutoencoder
    from gesso.nn.quantize import stored_bytes

    watch = Watch()
    network = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        sample_size=512,
    )
    encoder = KLAutoencoder(network)
    if kind == "in tiles":
        network.enable_tiling()
        network.tile_sample_min_size, network.tile_latent_min_size = pixels // 2, pixels // 16
    row = {"weights": stored_bytes(encoder) / MIB, **watch.now()}
    row |= watch.peak("loading")
    with torch.inference_mode():
        encoder.decode(torch.randn(1, 4, pixels // 8, pixels // 8))
    row |= watch.peak("working")
    return row


KINDS = {
    "denoiser": ("float32", "bfloat16", "bfloat16 blocks", "int8", "int8 over bfloat16"),
    "text": ("float32", "bfloat16", "int8 over bfloat16"),
    "vae": ("whole", "in tiles"),
}
WRITERS = {"denoiser": write_denoiser, "text": write_text}
ROWS = {"denoiser": denoiser, "text": text, "vae": vae}


def apart(*arguments: object) -> str:
    """The last line that this script prints in a process of its own."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return (done.stdout.splitlines() or [""])[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=list(KINDS))
    parser.add_argument("--layers", type=int, default=2, help="of T5's 24")
    parser.add_argument("--pixels", type=int, default=512)
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        WRITERS[args.write[0]](Path(args.write[1]), args.layers)
        return
    if args.row:
        part, folder, kind = args.row
        print(json.dumps(ROWS[part](Path(folder), kind, args.pixels)))
        return
    columns = ["weights", "own"]
    columns += [f"{what}, {of}" for of in ("loading", "working") for what in ("own", "resident")]
    print("| MiB | " + " | ".join(columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for part in [args.only] if args.only else KINDS:
        with tempfile.TemporaryDirectory() as folder:
            if part in WRITERS:
                apart("--write", part, folder, "--layers", args.layers)
            for kind in KINDS[part]:
                row: dict[str, float] = json.loads(
                    apart("--row", part, folder, kind, "--pixels", args.pixels)
                )
                name = f"{part}, {args.layers} layers" if part == "text" else part
                shown = " | ".join(f"{row[c]:,.0f}" for c in columns)
                print(f"| {name}, {kind} | {shown} |", flush=True)
                if part == "text":
                    layer = (row["weights"] - row["embedding"]) / args.layers
                    whole = row["embedding"] + T5_LAYERS * layer
                    print(
                        f"| text, {T5_LAYERS} layers, {kind}: computed | {whole:,.0f} | | | | | |"
                    )


if __name__ == "__main__":
    main()
