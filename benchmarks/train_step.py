"""Training speed of a small PixArt on this machine, against diffusers' model in the same run.

    python benchmarks/train_step.py            # wall time, all cores
    python benchmarks/train_step.py --threads 1

Both networks have 6 layers of 256 and 4 heads, learn 16 x 16 latents (64 tokens) with 20 text
tokens of 256 in batches of 64, under bfloat16 autocast with AdamW and the same loss. One step of
each is timed in turn, so that a busy machine slows all alike, together with two limits: the rate
of one large bfloat16 product, and that of the step's own products with nothing between them.

With two threads or more there is also gesso as `train.processes: 0` runs it: a process for each
core, each with its part of the batch, averaging their gradients.

Processor time is printed beside wall time: with --threads 1 it hardly sees other programs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from gesso.backbones.pixart import Config, PixArt
from gesso.nn.compile import compile_blocks
from gesso.train import launch, parallel
from gesso.types import Cond

LAYERS, WIDTH, HEADS, SIDE, TEXT, TEXT_WIDTH = 6, 256, 4, 16, 20, 256
SQUARE = 2048  # side of the large product
Step = Callable[[], object]


def data(batch: int) -> tuple[Tensor, Tensor, Tensor, Cond]:
    """(noisy latents, target, timesteps, captions of 5 to 20 tokens)."""
    g = torch.Generator().manual_seed(0)
    x, target = (torch.randn(batch, 4, SIDE, SIDE, generator=g) for _ in range(2))
    t = torch.randint(0, 1000, (batch,), generator=g).float()
    tokens = torch.randn(batch, TEXT, TEXT_WIDTH, generator=g)
    mask = torch.arange(TEXT) < torch.randint(5, TEXT + 1, (batch, 1), generator=g)
    return x, target, t, Cond(tokens=tokens, mask=mask)


def gesso_model() -> PixArt:
    torch.manual_seed(0)
    size = {"depth": LAYERS, "hidden_size": WIDTH, "num_heads": HEADS, "text_dim": TEXT_WIDTH}
    return PixArt(Config(**size, learn_sigma=False))


def gesso_step(model: PixArt, batch: int, group: parallel.Group | None = None) -> Step:
    group = group or parallel.Group()
    rows = slice(group.rank, None, group.size)
    x, target, t, cond = (part[rows] for part in data(batch))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            value = model(x, t, cond).value
        F.mse_loss(value.float(), target).backward()
        group.mean_([p.grad for p in model.parameters() if p.grad is not None])
        optimizer.step()
        optimizer.zero_grad()

    return step


def follow(group: parallel.Group, batch: int) -> None:
    """What the other processes do: a step whenever the leader takes one."""
    model = gesso_model()
    compile_blocks([model])
    step = gesso_step(model, batch, group)
    while not group.agree(0.0, False)[1]:
        step()


def leading_step(group: parallel.Group, batch: int, threads: int) -> Step:
    """A step of all processes, timed in this one."""
    model = gesso_model()
    compile_blocks([model])
    step = gesso_step(model, batch, group)

    def together() -> None:
        torch.set_num_threads(max(1, threads // group.size))
        group.agree(0.0, False)
        step()
        torch.set_num_threads(threads)

    return together


def diffusers_step(batch: int) -> Step:
    from diffusers import PixArtTransformer2DModel

    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        num_layers=LAYERS,
        num_attention_heads=HEADS,
        attention_head_dim=WIDTH // HEADS,
        cross_attention_dim=WIDTH,
        caption_channels=TEXT_WIDTH,
        in_channels=4,
        out_channels=4,
        sample_size=SIDE,
        use_additional_conditions=False,
    )
    x, target, t, cond = data(batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            value = model(
                x,
                encoder_hidden_states=cond.tokens,
                encoder_attention_mask=cond.mask,
                timestep=t,
                added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            ).sample
        F.mse_loss(value.float(), target).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


class Products(TorchDispatchMode):
    """Records the operands' layouts of every matrix product, to replay them bare."""

    KINDS = (torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.addmm.default)

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Tensor], list[Tensor]]] = []
        self.pool: dict[tuple, Tensor] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in self.KINDS:
            product = torch.bmm if func is torch.ops.aten.bmm.default else torch.mm
            self.calls.append((product, [self._like(i, a) for i, a in enumerate(args[-2:])]))
        return func(*args, **(kwargs or {}))

    def _like(self, position: int, operand: Tensor) -> Tensor:
        key = (position, operand.shape, operand.stride(), operand.dtype)
        if key not in self.pool:
            self.pool[key] = torch.empty_strided(*key[1:3], dtype=key[3]).normal_()
        return self.pool[key]

    def replay(self) -> None:
        for product, operands in self.calls:
            product(*operands)


def measure(steps: dict[str, Step], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of wall and processor time of every step in every round, interleaved."""
    seconds: dict[str, dict[str, list[float]]] = {k: {"wall": [], "cpu": []} for k in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            wall, cpu = time.perf_counter(), time.process_time()
            step()
            seconds[name]["wall"].append(time.perf_counter() - wall)
            seconds[name]["cpu"].append(time.process_time() - cpu)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", action="store_true", help="print one machine-readable line")
    args = parser.parse_args()
    processes = parallel.count(0, args.batch, torch.device("cpu")) if args.threads > 1 else 1
    with launch.start(processes, follow, (args.batch,), 600.0) as group:
        run(args, group)
        group.agree(0.0, True)


def run(args: argparse.Namespace, group: parallel.Group) -> None:
    torch.set_num_threads(args.threads)
    eager = gesso_step(gesso_model(), args.batch)
    products, flops = Products(), FlopCounterMode(display=False)
    with flops, products:
        eager()
    model = gesso_model()
    start = time.perf_counter()
    compiled = compile_blocks([model])
    ours = gesso_step(model, args.batch)
    ours()
    compile_seconds = time.perf_counter() - start
    square = torch.randn(SQUARE, SQUARE, dtype=torch.bfloat16)
    steps: dict[str, Step] = {
        "diffusers": diffusers_step(args.batch),
        "gesso eager": eager,
        "gesso": ours,
    }
    if group.size > 1:
        steps[f"gesso x {group.size}"] = leading_step(group, args.batch, args.threads)
    steps |= {
        "bare products": products.replay,
        "large product": lambda: [square @ square for _ in range(4)],
    }
    for step in steps.values():
        step()
    seconds = measure(steps, args.rounds)

    work = dict.fromkeys(steps, flops.get_total_flops()) | {"large product": 8 * SQUARE**3}
    result: dict[str, object] = {"compiled": compiled, "compile_seconds": compile_seconds}
    print(f"{args.threads} threads, batch {args.batch}, {args.rounds} rounds; times in ms")
    print(f"compiling and the first step took {compile_seconds:.0f} s")
    for clock in ("wall", "cpu"):
        median = {k: statistics.median(v[clock]) for k, v in seconds.items()}
        rate = {k: work[k] / median[k] / 1e9 for k in steps}
        print(f"\n{clock:14s} median (min .. max)        images/s  GFLOP/s  of large product")
        fastest = max(k for k in steps if k.startswith("gesso") and "eager" not in k)
        if clock == "cpu":  # which does not see the other processes
            fastest = "gesso"
        for name in steps:
            if clock == "cpu" and " x " in name:
                continue
            times = sorted(1e3 * s for s in seconds[name][clock])
            images = f"{args.batch / median[name]:8.1f}" if name != "large product" else " " * 8
            print(
                f"{name:14s} {1e3 * median[name]:7.0f} ({times[0]:6.0f} .. {times[-1]:6.0f})"
                f"      {images} {rate[name]:8.0f} {rate[name] / rate['large product']:8.0%}"
            )
        paired = zip(seconds["diffusers"][clock], seconds[fastest][clock], strict=True)
        ratios = sorted(theirs / ours for theirs, ours in paired)
        bound = median["diffusers"] / median["bare products"]
        ratio = statistics.median(ratios)
        print(
            f"{fastest} / diffusers: {ratio:.2f} ({ratios[0]:.2f} .. {ratios[-1]:.2f}),"
            f" {bound:.2f} if nothing but the products took time"
        )
        result[clock] = {"seconds": median, "gflops": rate, "ratio": ratio, "bound": bound}
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
