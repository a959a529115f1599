"""Inference of PixArt XL/2 against diffusers in the same run, with random weights shared by both.

    python benchmarks/inference.py step                    # one guided step, 256 px, bfloat16, CPU
    python benchmarks/inference.py load                    # weights from safetensors into bfloat16
    python benchmarks/inference.py pictures                # whole pictures at 1024 px on a GPU
    python benchmarks/inference.py pictures --tiny --device cpu    # does that code run at all

step times the sides in turn, so that a busy machine slows all alike, beside one large product,
whose rate is the machine's limit. "gesso" is what the pipeline does for every step: prepared text,
packed weights. What it does once a call (preparing, packing, unpacking) is timed apart and counted
into "per step of 20". pictures runs diffusers' own pipeline and gesso's samplers from the same
noise and text features, eager and compiled, and prints pictures a second and the share of the
card's rate in a large product. load compares with reading the file's bytes into fresh memory, file
cached; mapped weights are touched page by page, so that nothing is left for later.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gesso.backbones.pixart import SIZES, Config, PixArt
from gesso.convert.pixart import to_diffusers
from gesso.diffusion.denoiser import Denoiser
from gesso.diffusion.guidance import guide
from gesso.diffusion.paths import DDPM
from gesso.diffusion.schedules import make_schedule
from gesso.nn.compile import compile_blocks
from gesso.nn.packed import packed
from gesso.samplers import dpm_solver, lcm
from gesso.types import Cond

HALF = torch.bfloat16
XL = SIZES["xl-256"]
TINY = Config(depth=2, hidden_size=96, num_heads=4, text_dim=32, null_tokens=120, base_size=4)
JOBS = (  # sampler, batch, steps, guidance scale
    ("dpm-solver++", 1, 20, 4.5),
    ("dpm-solver++", 8, 20, 4.5),
    ("lcm", 1, 4, 1.0),
    ("lcm", 8, 4, 1.0),
)
Side = Callable[[], Tensor]
Seconds = dict[str, list[float]]


def random_model(config: Config) -> PixArt:
    """gesso's initialisation, with the layers that start at zero drawn like the others."""
    torch.manual_seed(0)
    model = PixArt(config)
    for layer in (*(block.cross_attn.proj for block in model.blocks), model.final_layer.linear):
        nn.init.xavier_uniform_(layer.weight)
    return model.eval().requires_grad_(False)


def peer_of(model: PixArt) -> nn.Module:
    """diffusers' network that shares the model's tensors, in their dtype and on their device."""
    from diffusers import PixArtTransformer2DModel

    config, weight = model.config, model.x_embedder.proj.weight
    options = {
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.hidden_size // config.num_heads,
        "in_channels": config.in_channels,
        "out_channels": 2 * config.in_channels,
        "num_layers": config.depth,
        "cross_attention_dim": config.hidden_size,
        "caption_channels": config.text_dim,
        "sample_size": config.base_size * config.patch_size,
        "interpolation_scale": config.interpolation_scale,
        "use_additional_conditions": config.micro_conditions,
    }
    with torch.device("meta"):
        peer = PixArtTransformer2DModel(**options)
    # The position table is a buffer outside the state dict: built anew, off the meta device.
    embed = type(peer.pos_embed)(
        height=options["sample_size"],
        width=options["sample_size"],
        patch_size=config.patch_size,
        in_channels=config.in_channels,
        embed_dim=config.hidden_size,
        interpolation_scale=config.interpolation_scale,
    )
    peer.pos_embed = embed.to(weight.device, weight.dtype)
    state = {k: v for k, v in to_diffusers(model.state_dict()).items() if "y_embedding" not in k}
    peer.load_state_dict(state, assign=True)
    return peer.eval().requires_grad_(False)


def flops(config: Config, tokens: int, rows: int, text: int, project_text: bool) -> float:
    """Of the products of one evaluation: 2 a multiplication, nothing else counted."""
    d, hidden = config.hidden_size, int(config.hidden_size * config.mlp_ratio)
    block = tokens * (6 * d * d + 2 * d * hidden) + 2 * tokens * (tokens + text) * d
    if project_text:
        block += text * 2 * d * d
    ends = tokens * d * config.in_channels * config.patch_size**2 * 3 + 6 * d * d
    caption = text * (config.text_dim * d + d * d) if project_text else 0
    return 2.0 * rows * (config.depth * block + ends + caption)


def captions(config: Config, lengths: list[int], size: int) -> Cond:
    """Random text features of these lengths, padded to the model's limit."""
    g, limit = torch.Generator().manual_seed(1), config.null_tokens
    pixels = torch.full((len(lengths), 2), float(size))
    return Cond(
        tokens=torch.randn(len(lengths), limit, config.text_dim, generator=g),
        mask=torch.arange(limit) < torch.tensor(lengths)[:, None],
        size=pixels,
        aspect=pixels[:, :1] / pixels[:, 1:],
    )


def interleaved(sides: dict[str, Callable[[], object]], rounds: int, device: str) -> Seconds:
    """Seconds of every side in every round."""
    seconds: Seconds = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            synchronize(device)
            start = time.perf_counter()
            side()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def ratios(seconds: Seconds, peer: str, name: str) -> list[float]:
    """peer / name of every round, ascending."""
    return sorted(a / b for a, b in zip(seconds[peer], seconds[name], strict=True))


def spread(values: list[float], form: str = "6.3f") -> str:
    low, high = min(values), max(values)
    return f"{statistics.median(values):{form}} ({low:{form}} .. {high:{form}})"


def relative(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


# One step on a CPU.


def their_step(peer: nn.Module, x: Tensor, t: Tensor, cond: Cond) -> Side:
    dtype = next(peer.parameters()).dtype
    size = {"resolution": None, "aspect_ratio": None}
    mask = cond.mask.to(dtype)
    tokens, x = cond.tokens.to(dtype), x.to(dtype)
    return lambda: (
        peer(
            x,
            encoder_hidden_states=tokens,
            encoder_attention_mask=mask,
            timestep=t,
            added_cond_kwargs=size,
        ).sample
    )


def our_step(model: PixArt, x: Tensor, t: Tensor, cond: Any) -> Side:
    def step() -> Tensor:
        out = model(x, t, cond)
        return torch.cat([out.value, out.aux["variance"]], dim=1)

    return step


def bench_step(args: argparse.Namespace) -> dict[str, Any]:
    config = TINY if args.tiny else XL
    side = 8 * config.base_size * config.patch_size
    model = random_model(config)
    x, t = torch.randn(2, 4, side // 8, side // 8), torch.full((2,), 500.0)
    cond = captions(config, args.lengths, side)
    ready = model.prepare(cond, t[:1])
    fp32 = relative(our_step(model, x, t, ready)(), their_step(peer_of(model), x, t, cond)())

    model.to(HALF)
    peer = peer_of(model)
    half = cond.to(HALF)
    times = make_schedule(DDPM(), 20).t[:-1].float()
    ready = model.prepare(half, torch.cat([times, t[:1]]))
    theirs, ours = their_step(peer, x, t, cond), our_step(model, x, t, ready)
    square = torch.randn(2048, 2048, dtype=HALF)
    sides: dict[str, Callable[[], object]] = {
        "large product": lambda: square @ square,
        "diffusers": theirs,
        "gesso, plain forward": our_step(model, x, t, half),
        "gesso, prepared": ours,
    }
    once: Seconds = {"prepare": [], "pack and unpack": []}
    seconds: Seconds = {name: [] for name in [*sides, "gesso"]}
    for _ in range(args.rounds + 1):  # the first round warms up
        part = interleaved(sides, 1, "cpu")
        part |= {"prepare": interleaved({"p": lambda: model.prepare(half, times)}, 1, "cpu")["p"]}
        start = time.perf_counter()
        with packed(model):
            part |= interleaved({"gesso": ours}, 1, "cpu")
        whole = time.perf_counter() - start
        part["pack and unpack"] = [whole - part["gesso"][0]]
        for name, values in part.items():
            (once if name in once else seconds)[name] += values
    seconds, once = ({k: v[1:] for k, v in s.items()} for s in (seconds, once))
    with packed(model):
        bf16 = relative(ours(), theirs())
        if args.profile:
            profile(ours)

    n, longest = (side // 16) ** 2, cond.tokens.shape[1]
    work = {
        "large product": 2.0 * 2048**3,
        "diffusers": flops(config, n, 2, longest, True),
        "gesso, plain forward": flops(config, n, 2, longest, True),
        "gesso, prepared": flops(config, n, 2, ready.text[0][0].shape[2], False),
    }
    work["gesso"] = work["gesso, prepared"]
    rate = {k: work[k] / statistics.median(v) / 1e9 for k, v in seconds.items()}
    print(
        f"{torch.get_num_threads()} threads, bfloat16, {side} px, 2 rows of {n} tokens, texts of"
        f" {args.lengths}; {args.rounds} rounds; load {os.getloadavg()[0]:.1f}"
    )
    print(f"\n{'':22s} seconds, median (smallest .. largest)   GFLOP/s  of large   diffusers / it")
    for name, values in seconds.items():
        ratio = "" if name == "large product" else spread(ratios(seconds, "diffusers", name), ".2f")
        share = rate[name] / rate["large product"]
        print(f"{name:22s} {spread(values)}    {rate[name]:14.0f} {share:8.0%}    {ratio}")
    for name, values in once.items():
        print(f"{name:22s} {spread(values)}    once a call")
    median = {k: statistics.median(v) for k, v in (seconds | once).items()}
    per_step = median["gesso"] + (median["prepare"] + median["pack and unpack"]) / 20
    limit = rate["large product"] * 1e9
    result = {
        "ratio": statistics.median(ratios(seconds, "diffusers", "gesso")),
        "ratio_20_steps": median["diffusers"] / per_step,
        "bound": median["diffusers"] * limit / work["gesso"],
        "relative_bf16": bf16,
        "relative_fp32": fp32,
        "seconds": median,
        "gflops": rate,
    }
    print(
        f"\ndiffusers / gesso: {result['ratio']:.2f} a step; {result['ratio_20_steps']:.2f} per"
        f" step of 20, all included; {result['bound']:.2f} if gesso's products took all the"
        " time, at the large product's rate"
    )
    print(f"difference from diffusers, relative: bfloat16 {bf16:.1e}, float32 {fp32:.1e}")
    return result


def profile(step: Side) -> None:
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    with record(activities=[ProfilerActivity.CPU]) as recorded:
        step()
    print(recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=12))


# Whole pictures on a GPU.


def their_pictures(
    peer: nn.Module, kind: str, cond: Cond, null: Cond, noise: Tensor, steps: int, scale: float
) -> Side:
    """diffusers' pipeline from text features to latents."""
    from diffusers import DPMSolverMultistepScheduler, LCMScheduler, PixArtAlphaPipeline

    scheduler = LCMScheduler if kind == "lcm" else DPMSolverMultistepScheduler
    pipe = PixArtAlphaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        transformer=peer,
        scheduler=scheduler(beta_start=1e-4, beta_end=0.02, beta_schedule="linear"),
    )
    pipe.set_progress_bar_config(disable=True)
    return lambda: (
        pipe(
            prompt=None,
            negative_prompt=None,
            prompt_embeds=cond.tokens,
            prompt_attention_mask=cond.mask,
            negative_prompt_embeds=null.tokens,
            negative_prompt_attention_mask=null.mask,
            output_type="latent",
            use_resolution_binning=False,
            num_inference_steps=steps,
            guidance_scale=scale,
            height=8 * noise.shape[2],
            width=8 * noise.shape[3],
            latents=noise.to(HALF),
        ).images
    )


def our_pictures(
    model: PixArt, kind: str, cond: Cond, null: Cond, noise: Tensor, steps: int, scale: float
) -> Side:
    """gesso's samplers from text features to latents."""
    schedule = make_schedule(DDPM(), steps, "lcm" if kind == "lcm" else "linspace")
    denoiser = Denoiser(model, DDPM(), "epsilon")
    sample = lcm.sample if kind == "lcm" else dpm_solver.sample

    def paint() -> Tensor:
        denoise = guide(denoiser, cond, null, guidance_scale=scale, schedule=schedule)
        generators = [torch.Generator().manual_seed(i) for i in range(len(noise))]
        return sample(denoise, noise, schedule, generator=generators)

    return paint


def bench_pictures(args: argparse.Namespace) -> dict[str, Any]:
    device = args.device
    config = TINY if args.tiny else SIZES["xl-1024"]
    side = 8 * config.base_size * config.patch_size
    model = random_model(config).to(device, HALF)
    peer = peer_of(model)
    compiled_model, compiled_peer = random_model(config).to(device, HALF), torch.compile(peer)
    if not compile_blocks([compiled_model], learning=False):
        raise SystemExit("torch.compile does not work here")
    edge = 256 if device == "cpu" else 8192
    square = torch.randn(edge, edge, dtype=HALF, device=device)
    large = interleaved({"p": lambda: square @ square}, 12, device)["p"][2:]
    rate = 2 * edge**3 / statistics.median(large)
    print(f"large product ({edge}): {rate / 1e12:.1f} TFLOP/s in bfloat16 on {name_of(device)}")

    result: dict[str, Any] = {"device": name_of(device), "tflops": rate / 1e12, "runs": []}
    for kind, batch, steps, scale in JOBS[::3] if args.tiny else JOBS:
        cond = captions(config, [30] * batch, side).to(device, HALF)
        null = captions(config, [1] * batch, side).to(device, HALF)
        generator = torch.Generator().manual_seed(2)
        noise = torch.randn(batch, 4, side // 8, side // 8, generator=generator).to(device)
        job = (kind, cond, null, noise, steps, scale)
        sides = {
            "diffusers": their_pictures(peer, *job),
            "diffusers, compiled": their_pictures(compiled_peer, *job),
            "gesso": our_pictures(model, *job),
            "gesso, compiled": our_pictures(compiled_model, *job),
        }
        print(f"\n{kind}, {side} px, {steps} steps, guidance {scale}, batch {batch}")
        peak, last = {}, {}
        for name, paint in sides.items():  # compiles, warms up, and takes the memory's peak
            if device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            paint()
            last[name] = paint()
            peak[name] = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0.0
        seconds = interleaved(sides, args.rounds, device)
        rows = batch * (2 if scale > 1 else 1)
        work = steps * flops(config, (side // 16) ** 2, rows, 32, False)  # 30, rounded up to 8s
        print(
            f"{'':20s} seconds a call (min .. max)   pictures/s  of large  peak GiB  diffusers / it"
        )
        for name, values in seconds.items():
            median = statistics.median(values)
            print(
                f"{name:20s} {spread(values)} {batch / median:10.2f} {work / median / rate:9.0%}"
                f" {peak[name]:9.2f}   eager {spread(ratios(seconds, 'diffusers', name), '.2f')},"
                f" compiled {spread(ratios(seconds, 'diffusers, compiled', name), '.2f')}"
            )
        # LCM adds noise after every step, which each side draws for itself.
        far = relative(last["gesso"], last["diffusers"]) if kind != "lcm" else None
        if far is not None:
            print(f"latents of gesso and diffusers differ by {far:.1e}, relative")
        result["runs"].append(
            {"kind": kind, "batch": batch, "seconds": seconds, "peak_gib": peak, "relative": far}
        )
    return result


def name_of(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "the CPU"


# Loading.


def touch(model: nn.Module) -> None:
    """Read a number of every page of every parameter, so that mapped ones are in memory."""
    for p in model.parameters():
        p.detach().reshape(-1)[:: 4096 // p.element_size()].sum()


def bench_load(args: argparse.Namespace) -> dict[str, Any]:
    from gesso.convert.published import find
    from gesso.model import Description, Model

    config = TINY.model_copy(update={"hidden_size": 144, "num_heads": 2}) if args.tiny else XL
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        model = random_model(config).to(HALF)
        state = {k: v.contiguous() for k, v in model.state_dict().items()}
        files = {"original": folder / "original.safetensors", "float32": folder / "f32.safetensors"}
        save_file(state, files["original"])
        save_file({k: v.float() for k, v in state.items()}, files["float32"])
        files["diffusers"] = folder / "diffusers.safetensors"
        split = to_diffusers(state)
        save_file({k: v.contiguous() for k, v in split.items()}, files["diffusers"])
        run = folder / "gesso"
        run.mkdir()
        description = Description(
            name="benchmark",
            image_encoder={"name": "tiny"},
            backbone={"name": "pixart", **config.model_dump()},
            diffusion={"path": "ddpm", "prediction": "epsilon"},  # type: ignore[arg-type]
            sample={"height": 256, "width": 256},  # type: ignore[arg-type]
        )
        whole = Model.build(description, backbone=model)
        whole.save(run)
        files["gesso folder"] = run / "model.safetensors"
        del model, whole, state, split

        def read(file: Path) -> None:
            memory = torch.empty(file.stat().st_size, dtype=torch.uint8)
            with file.open("rb", buffering=0) as f:
                view, done = memoryview(memory.numpy()), 0
                while done < len(view):
                    done += f.readinto(view[done:])

        def load(name: str, file: Path) -> None:
            if name == "gesso folder":
                touch(Model.load(run, {"backbone"}, HALF).backbone)
            else:
                touch(find(str(file), variant="xl-256").network(HALF).build(HALF))

        for name, file in files.items():
            sides = {"read": lambda f=file: read(f), "load": lambda n=name, f=file: load(n, f)}
            interleaved(sides, 1, "cpu")
            seconds = interleaved(sides, args.rounds, "cpu")
            ratio = ratios(seconds, "load", "read")
            result[name] = {"seconds": seconds, "ratio": statistics.median(ratio)}
            print(
                f"{name:13s} {file.stat().st_size / 1e9:.2f} GB   bytes {spread(seconds['read'])} s"
                f"   load {spread(seconds['load'])} s   load / bytes {spread(ratio, '.2f')}"
            )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", choices=["step", "pictures", "load"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: torch's")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="of pictures; default: cuda")
    parser.add_argument("--lengths", type=int, nargs=2, default=[30, 1], metavar="TOKENS")
    parser.add_argument("--tiny", action="store_true", help="a small network, to try the code")
    parser.add_argument("--profile", action="store_true", help="of gesso's step, by operation")
    parser.add_argument("--json", action="store_true", help="print one machine-readable line")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    args.device = args.device or "cuda"
    if args.mode == "pictures" and args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("pictures needs a GPU; --tiny --device cpu only tries the code.")
    warnings.filterwarnings("ignore")
    benches = {"step": bench_step, "pictures": bench_pictures, "load": bench_load}
    with torch.inference_mode():
        result = benches[args.mode](args)
    if args.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()
