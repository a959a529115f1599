"""Training speed: gesso's loop against accelerate with diffusers' model, and what masking saves.

    python benchmarks/train.py cpu                       # demo size and 25 M at 256 tokens
    python benchmarks/train.py masked                    # 75 % of the patches deferred
    python benchmarks/train.py gpu                       # XL/2 at 256 and 512 px; needs CUDA
    python benchmarks/train.py cpu --rounds 5 --json

Both train the same PixArt on the same cached features: latents, 24 text tokens, batches of the same
size, bfloat16 autocast, flow matching, gradients clipped at 1, AdamW, averaged weights. gesso's
side is `gesso.train.loop.Trainer` as `gesso train` runs it, compiled, with a process a core where
that is faster; the other side is the loop that diffusers' training scripts have: a DataLoader,
`Accelerator.prepare`, `backward`, `clip_grad_norm_`, AdamW, `EMAModel`. Steps are timed in turn, so
that a busy machine slows all alike, beside the machine's limit: one large product.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from train_step import SQUARE, Step, measure

from gesso.backbones import dit, pixart
from gesso.config import Recipe, validate
from gesso.draws import EVERY, Draws
from gesso.model import Description, Model
from gesso.train import launch, setup
from gesso.train.loop import Trainer
from gesso.train.parallel import Group
from gesso.types import Batch, Cond

TEXT = 24  # tokens of a caption


@dataclass(frozen=True)
class Size:
    """A model and its batch; side is that of the latents."""

    depth: int
    width: int
    heads: int
    side: int
    batch: int
    processes: int = 1
    text_dim: int = 384


SIZES = {
    "demo": Size(6, 128, 2, 16, 64, processes=2, text_dim=128),
    "25 M, 256 tokens": Size(10, 384, 6, 32, 8),
}


class Features(nn.Module):
    """Stands in for a frozen text encoder: batches hold its features already."""

    trainable = False
    max_tokens = TEXT

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def prepare(self, prompts: list[str]) -> Cond:
        n = len(prompts)
        return Cond(tokens=torch.zeros(n, 1, self.dim), mask=torch.ones(n, 1, dtype=torch.bool))

    def forward(self, cond: Cond) -> Cond:
        return cond


class Random:
    """Cached features of pictures that do not exist; the same for both sides."""

    def __init__(self, size: Size) -> None:
        g = torch.Generator().manual_seed(0)
        n = 4 * size.batch
        self.latents = torch.randn(n, 4, size.side, size.side, generator=g)
        self.tokens = torch.randn(n, TEXT, size.text_dim, generator=g)
        self.mask = torch.arange(TEXT) < torch.randint(8, TEXT + 1, (n, 1), generator=g)

    def batch(self, number: int, batch_size: int, seed: int, rows: slice = EVERY) -> Batch:
        first = number % 4 * batch_size
        own = range(first, first + batch_size)[rows]
        index = torch.tensor(list(own))
        cond = Cond(tokens=self.tokens[index], mask=self.mask[index])
        return Batch([str(i) for i in own], cond, latents=self.latents[index])

    def validation_batches(self, batch_size: int) -> Iterator[Batch]:
        return iter(())


def recipe_of(
    size: Size, masked: float = 0.0, mixer: bool = False, compiled: bool = True
) -> Recipe:
    backbone = {
        "name": "pixart",
        "depth": size.depth,
        "hidden_size": size.width,
        "num_heads": size.heads,
        "learn_sigma": False,
        "text_dim": size.text_dim,
        "base_size": size.side // 2,
    }
    if mixer:
        backbone |= {"mixer_depth": 2, "mixer_size": size.width // 2}
    values = {
        "name": "benchmark",
        "image_encoder": {"name": "tiny"},
        "text_encoder": {"name": "learned"},
        "backbone": backbone,
        "diffusion": {"path": "flow", "prediction": "flow"},
        "objective": {"name": "denoise", "mask_ratio": masked, "caption_dropout": 0.0},
        "train": {
            "batch_size": size.batch,
            "dtype": "bfloat16",
            "compile": compiled,
            "lr": 1e-4,
            "steps": 10**6,
            "ema": 0.999,
        },
    }
    found: Recipe = validate(Recipe, values, "benchmark")
    return found


def trainer_of(recipe: Recipe, size: Size, group: Group | None = None) -> Trainer:
    torch.manual_seed(0)
    described = recipe.model_dump(include=set(Description.model_fields) & set(Recipe.model_fields))
    options = {k: v for k, v in (recipe.backbone or {}).items() if k != "name"}
    model = Model(
        Description(**described),
        nn.Identity(),
        Features(size.text_dim),
        pixart.build(pixart.Config(**options)),
    )
    # Its first step writes nothing, so the folder need not last.
    trainer = Trainer(recipe, Path(tempfile.gettempdir()), model, Random(size), group=group)
    setup.speed_up(trainer.learners.values(), trainer.config)
    return trainer


def follow(group: Group, recipe: Recipe, size: Size) -> None:
    """What the other processes do: a step whenever the leader takes one."""
    trainer = trainer_of(recipe, size, group)
    while not group.agree(0.0, False)[1]:
        trainer._train_step()
    trainer.feed.close()


def gesso_step(recipe: Recipe, size: Size, group: Group, threads: int) -> Step:
    trainer = trainer_of(recipe, size, group)

    def step() -> None:
        torch.set_num_threads(max(1, threads // group.size))
        group.agree(0.0, False)
        trainer._train_step()
        torch.set_num_threads(threads)

    return step


def accelerate_step(size: Size) -> Step:
    from accelerate import Accelerator
    from diffusers import PixArtTransformer2DModel
    from diffusers.training_utils import EMAModel
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_layers=size.depth,
        num_attention_heads=size.heads,
        attention_head_dim=size.width // size.heads,
        cross_attention_dim=size.width,
        caption_channels=size.text_dim,
        in_channels=4,
        out_channels=4,
        sample_size=size.side,
        use_additional_conditions=False,
    )
    data = Random(size)
    loader = DataLoader(TensorDataset(data.latents, data.tokens, data.mask), size.batch, True)
    accelerator = Accelerator(mixed_precision="bf16", cpu=not torch.cuda.is_available())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    average = EMAModel(model.parameters(), decay=0.999)
    network, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    def batches() -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    feed = batches()

    def step() -> None:
        latents, tokens, mask = next(feed)
        t = torch.rand(len(latents), device=latents.device)
        noise = torch.randn_like(latents)
        share = t.view(-1, 1, 1, 1)
        value = network(
            (1 - share) * latents + share * noise,
            encoder_hidden_states=tokens,
            encoder_attention_mask=mask,
            timestep=1000 * t,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
        ).sample
        accelerator.backward(F.mse_loss(value.float(), noise - latents))
        accelerator.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(model.parameters())

    return step


def flops_of(recipe: Recipe, size: Size) -> float:
    """Of one step's forward and backward pass, counted eagerly."""
    trainer = trainer_of(recipe.model_copy(deep=True), size)
    batch = trainer.feed[0]
    for role in trainer.learners.values():
        role.train()
    with FlopCounterMode(display=False) as counter, torch.autocast("cpu", torch.bfloat16):
        out = trainer.objective.loss("denoise", batch, Draws("cpu", 0))
        out.loss.backward()
    trainer.feed.close()
    return float(counter.get_total_flops())


def large_product() -> Step:
    square = torch.randn(SQUARE, SQUARE, dtype=torch.bfloat16)
    return lambda: [square @ square for _ in range(4)]


def table(
    title: str, steps: dict[str, Step], work: dict[str, float], size: Size, rounds: int, ours: str
) -> dict[str, object]:
    """Time, print a row a step, and the ratio of `ours` to the first."""
    for _ in range(2):
        for step in steps.values():
            step()
    seconds = {name: found["wall"] for name, found in measure(steps, rounds).items()}
    median = {name: statistics.median(s) for name, s in seconds.items()}
    rate = {name: work[name] / median[name] for name in steps if name in work}
    limit = rate["large product"]
    print(f"\n{title}: batch {size.batch}, {rounds} rounds")
    print(f"{'':22s} ms, median (min .. max)     images/s  GFLOP/s  of large product")
    for name in steps:
        times = sorted(1e3 * s for s in seconds[name])
        images = f"{size.batch / median[name]:9.2f}" if name != "large product" else " " * 9
        print(
            f"{name:22s} {1e3 * median[name]:7.0f} ({times[0]:6.0f} .. {times[-1]:6.0f})   {images}"
            f" {rate[name] / 1e9:8.0f} {rate[name] / limit:8.0%}"
        )
    first = next(iter(steps))
    pairs = zip(seconds[first], seconds[ours], strict=True)
    ratios = sorted(theirs / own for theirs, own in pairs)
    ratio = statistics.median(ratios)
    print(f"{ours} / {first}: {ratio:.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f})", flush=True)
    return {"seconds": median, "flops": rate, "ratio": ratio, "ratios": ratios}


def against_accelerate(name: str, rounds: int, threads: int) -> dict[str, object]:
    size, recipe = SIZES[name], recipe_of(SIZES[name])
    flops = flops_of(recipe_of(size, compiled=False), size)
    with launch.start(size.processes, follow, (recipe, size), 600.0) as group:
        steps = {
            "accelerate, diffusers": accelerate_step(size),
            "gesso": gesso_step(recipe, size, group, threads),
            "large product": large_product(),
        }
        work = dict.fromkeys(steps, flops) | {"large product": 8.0 * SQUARE**3}
        result = table(name, steps, work, size, rounds, "gesso")
        group.agree(0.0, True)
    return result


def masking(rounds: int, threads: int) -> dict[str, object]:
    size = SIZES["25 M, 256 tokens"]
    steps, work = {}, {"large product": 8.0 * SQUARE**3}
    for name, ratio in (("dense", 0.0), ("75 % deferred", 0.75)):
        steps[name] = gesso_step(recipe_of(size, ratio, mixer=True), size, Group(), threads)
        work[name] = flops_of(recipe_of(size, ratio, mixer=True, compiled=False), size)
    steps["large product"] = large_product()
    title = "25 M with a patch-mixer of 2 layers of 192, 256 tokens"
    result = table(title, steps, work, size, rounds, "75 % deferred")
    print(f"FLOPs: {work['dense'] / work['75 % deferred']:.2f} times fewer")
    return result


# PixArt-alpha's schedule (table 4 of the paper): size, pictures in millions.
SCHEDULE = [
    ("dit", 256, 307.2),
    ("pixart", 256, 2734.1),
    ("pixart", 512, 256.0),
    ("pixart", 1024, 6.1),
]


def on_gpu(rounds: int, price: float) -> dict[str, object]:
    """XL/2 from cached features, and what the published schedule would take at this rate."""
    result: dict[str, object] = {}
    square = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    limit = 2 * 8192**3 / _synchronised(lambda: square @ square, rounds)
    print(f"{torch.cuda.get_device_name()}: large bfloat16 product {limit / 1e12:.0f} TFLOP/s")
    share = 0.0
    for pixels, batch in ((256, 64), (512, 16)):
        size = Size(28, 1152, 16, pixels // 8, batch, text_dim=4096)
        trainer = trainer_of(recipe_of(size), size)
        seconds = _synchronised(trainer._train_step, rounds)
        flops = batch * xl_flops("pixart", pixels)
        trainer.feed.close()
        share = flops / seconds / limit
        result[f"XL/2, {pixels} px"] = {"images_per_second": batch / seconds, "share": share}
        print(f"XL/2, {pixels} px: {batch / seconds:.1f} images/s, {share:.0%} of the product")
    total = sum(1e6 * n * xl_flops(kind, pixels) for kind, pixels, n in SCHEDULE)
    days = total / (share * limit) / 86400
    print(
        f"PixArt-alpha's schedule at that rate: {days:.0f} GPU-days, ${24 * days * price:,.0f} at "
        f"${price} an hour; published: 675 to 753 A100-days"
    )
    return result | {"days": days}


def xl_flops(kind: str, pixels: int) -> float:
    """Forward and backward of one picture, counted on the meta device."""
    side = pixels // 8
    with torch.device("meta"):
        x, t = torch.empty(1, 4, side, side), torch.empty(1)
        if kind == "dit":
            model: nn.Module = dit.build(dit.SIZES["xl-2"])
            cond = Cond(label=torch.zeros(1, dtype=torch.long))
        else:
            model = pixart.build(pixart.SIZES["xl-256"])
            cond = Cond(tokens=torch.empty(1, 120, 4096))
        with FlopCounterMode(display=False) as counter:
            model(x, t, cond).value.sum().backward()
    return float(counter.get_total_flops())


def _synchronised(step: Step, rounds: int) -> float:
    import time

    times = []
    for _ in range(rounds + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        step()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[3:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", nargs="*", default=["cpu", "masked", "gpu"], help="cpu masked gpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--price", type=float, default=2.0, help="dollars an hour of the GPU")
    parser.add_argument("--json", action="store_true", help="print one machine-readable line")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results: dict[str, object] = {}
    if "cpu" in args.what:
        for name in SIZES:
            results[name] = against_accelerate(name, args.rounds, args.threads)
    if "masked" in args.what:
        results["masked"] = masking(args.rounds, args.threads)
    if "gpu" in args.what:
        if torch.cuda.is_available():
            results["gpu"] = on_gpu(args.rounds, args.price)
        else:
            print("\nXL/2 at 256 and 512 px on a GPU: not yet measured, as there is none here")
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
