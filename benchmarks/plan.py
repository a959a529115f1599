"""What `gesso plan` predicts for this machine against what the training then takes.

    python benchmarks/plan.py                      # five configurations, about six minutes
    python benchmarks/plan.py demo wide            # some of them
    python benchmarks/plan.py --json

Each configuration is planned and then trained for 25 steps from a feature cache, each in a process
of its own, as a user does it. The step is the median of steps 6 to 20, the peak that of steps 6 to
20, as the run itself says them beside its plan. Goals: the step within 20 %, the peak within 15 %.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOALS = {"step": 0.20, "peak": 0.15}
WORLD = ["data.source.count=1024", "validation.holdout=16", "validation.prompts=[]"]
SHORT = ["train.steps=25", "train.minutes=null", "train.log_every=5"]
LARGE = "backbone={name: pixart, depth: 10, hidden_size: 384, num_heads: 6, base_size: 16}"

CONFIGURATIONS: dict[str, tuple[str, list[str]]] = {
    "demo": ("demo: 6 layers of 128, bfloat16, compiled, Muon, a process a core", []),
    "eager": (
        "6 layers of 256, float32, eager, AdamW, learned variance, one process",
        [
            "backbone={name: pixart, depth: 6, hidden_size: 256, num_heads: 4}",
            "diffusion={path: ddpm, prediction: epsilon}",
            *("train.processes=1", "train.compile=false", "train.optimizer=adamw"),
            *("train.dtype=float32", "train.batch_size=32"),
        ],
    ),
    "wide": (
        "25 M parameters, 256 tokens, bfloat16, compiled, AdamW, one process",
        [
            LARGE,
            *("data.size=128", "train.processes=1", "train.optimizer=adamw"),
            "train.batch_size=8",
        ],
    ),
    "masked": (
        "25 M and a patch-mixer, 75 % of 256 tokens deferred, bfloat16, eager, two processes",
        [
            LARGE[:-1] + ", mixer_depth: 2, mixer_size: 192, learn_sigma: false}",
            *("objective={name: denoise, mask_ratio: 0.75}", "data.size=128"),
            *("train.processes=2", "train.optimizer=adamw"),
            *("train.batch_size=16", "train.compile=false"),
        ],
    ),
    "recomputed": (
        "25 M parameters, 256 tokens, bfloat16, eager, activations recomputed, two processes",
        [
            LARGE,
            *("data.size=128", "train.processes=2", "train.optimizer=adamw"),
            *("train.batch_size=8", "train.compile=false", "train.checkpoint_activations=true"),
        ],
    ),
}


def gesso(*args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "gesso", *args], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"gesso {' '.join(args)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def compare(name: str, folder: Path) -> dict[str, float]:
    """Plan and train one configuration."""
    overrides = [*WORLD, *SHORT, *CONFIGURATIONS[name][1]]
    run, cache = folder / name, folder / f"cache-{name}"
    gesso("encode", "demo", *overrides, "--out", str(cache), "--json")
    overrides.append(f"data.cache={cache}")
    start = time.perf_counter()
    out = gesso("plan", "demo", *overrides, "--run", str(run), "--json")
    seconds = time.perf_counter() - start
    plan = json.loads(out)["stages"][0]
    gesso("train", "demo", *overrides, "--run", str(run), "--json")
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = next(entry for entry in logged if "step_seconds" in entry)
    return {
        "planning": seconds,
        "step_planned": plan["seconds_per_step"],
        "step": found["step_seconds"],
        "peak_planned": plan["memory"]["peak"],
        "peak": found["peak_bytes"],
        "program": plan["memory"]["program"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(CONFIGURATIONS))
    parser.add_argument("--json", action="store_true", help="print one machine-readable line")
    args = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in args.names or CONFIGURATIONS:
            result = results[name] = compare(name, Path(folder))
            print(f"{name}: {CONFIGURATIONS[name][0]}")
            for what, scale, unit in (("step", 1e3, "ms"), ("peak", 1 / 2**20, "MiB")):
                planned, measured = result[f"{what}_planned"], result[what]
                off = planned / measured - 1
                verdict = "within" if abs(off) <= GOALS[what] else "NOT within"
                print(
                    f"  {what}: planned {planned * scale:.0f} {unit}, measured "
                    f"{measured * scale:.0f} {unit}: {off:+.0%}, {verdict} {GOALS[what]:.0%}"
                )
            print(
                f"  of the peak {result['program'] / 2**20:.0f} MiB are the program; planning took "
                f"{result['planning']:.0f} s",
                flush=True,
            )
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
