"""What a training will cost, before anything runs: `plan_recipe`."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import psutil

from gesso.config import Recipe
from gesso.memory import give_back
from gesso.train.plan import accelerators
from gesso.train.plan.captions import Captions, look_at_data
from gesso.train.plan.cost import Seconds, kernels_of, measured, roofline
from gesso.train.plan.encoders import Encoders, look_at
from gesso.train.plan.memory import ALLOCATOR, COMPILER, Memory, memory_of
from gesso.train.plan.probe import MOST, SECONDS, Rates, probe
from gesso.train.plan.step import StepTrace, trace_step
from gesso.train.plan.target import Target, target_of
from gesso.train.plan.text import memory as size_of
from gesso.train.run import with_vocabulary
from gesso.types import GessoError

DAY = 86400
HALF = 2  # bytes of a cached number


class Planner:
    """Plans one recipe for one target; traces and rates are found once.

    Args:
        recipe: any.
        target: what it runs on.
        seconds: how long the machine may be measured.

    Raises:
        GessoError: parts of the recipe do not fit each other, or their shapes cannot be known.
    """

    def __init__(self, recipe: Recipe, target: Target, seconds: float = SECONDS) -> None:
        self.target = target
        self.recipe = _with_words(recipe)
        self.config = recipe.train
        self.encoders: Encoders = look_at(recipe.image_encoder, self.recipe.text_encoder)
        self.batch = self.config.batch_size // target.count
        self.captions: Captions = look_at_data(recipe, self.encoders, self.batch)
        self.program: float = accelerators.CONTEXT
        self.step = self.trace(self.batch, recipe.data.size)
        self.rates: Rates | None = None
        if target.device is None:
            self._probe(seconds)
            give_back()
            self.program = _private_bytes() + ALLOCATOR + self.config.compile * COMPILER

    def trace(self, batch: int, size: int, update: bool = True) -> StepTrace:
        """A step with so many pictures in a process."""
        return trace_step(
            self.recipe,
            self.encoders,
            batch=batch,
            size=(size, size),
            length=self.captions.longest,
            accelerator=self.target.device is not None,
            update=update,
        )

    def _probe(self, seconds: float) -> None:
        held = sum(k.bytes for k in kernels_of(self.step)) * self.target.count
        batch = max(1, int(self.batch * min(1.0, MOST / held)))
        step = self.step if batch == self.batch else self.trace(batch, self.recipe.data.size)
        self.rates = probe(kernels_of(step), processes=self.target.count, seconds=seconds)
        self.taken = measured(
            step, self.rates, compiled=self.config.compile, scale=self.batch / batch
        )

    def seconds(self, step: StepTrace) -> Seconds:
        """Of a step: as measured, or by the rates of the step that was."""
        compiled = self.config.compile
        if self.target.device is not None:
            return roofline(step, self.target.device, compiled=compiled, devices=self.target.count)
        if step is self.step:
            return self.taken
        assert self.rates is not None
        share = step.flops / self.step.flops
        taken = self.taken
        return Seconds(taken.products * share, taken.others * share, taken.update, taken.exchange)

    def memory(self, step: StepTrace) -> Memory:
        """Of one accelerator, or of all processes of this machine together."""
        gpu, own = self.target.device is not None, self.target.own
        full = self.config.shard == "full" or (gpu and self.target.count > 1)
        parts = memory_of(
            step,
            compiled=self.config.compile,
            program=self.program,
            shards=self.target.count if full else 1,
            slack=accelerators.SLACK if gpu else 0.0,
            reused=gpu,
        )
        return Memory(**{name: own * value for name, value in asdict(parts).items()})

    def cache(self) -> dict[str, Any]:
        """What the feature cache costs: bytes and FLOPs of a picture with its captions."""
        data, encoders, captions = self.recipe.data, self.encoders, self.captions
        if self.recipe.backbone is None:
            return {}
        image, text = encoders.image, encoders.text
        side = data.size // image.factor
        latent = HALF * image.raw_channels * side**2
        token = 8 if text is None or not hasattr(text, "width") else HALF * text.width
        each = latent + captions.each * captions.mean * token
        flops: float = encoders.image_flops(data.size, data.size)
        flops += captions.each * encoders.text_flops(max(1, round(captions.mean)))
        n = captions.pictures
        device = self.target.device
        rate = accelerators.PRODUCTS * device.flops * self.target.count if device else self._rate()
        return {
            "pictures": n,
            "bytes_per_picture": each,
            "bytes": None if n is None else n * each,
            "flops_per_picture": flops,
            "seconds": None if n is None else n * flops / rate,
        }

    def _rate(self) -> float:
        assert self.rates is not None
        return max(self.rates.flops, 1.0)

    def table(self) -> list[dict[str, Any]]:
        """Sizes and batches that fit, up to twice the recipe's size."""
        rows = []
        whole, b, s = self.target.memory, self.batch, self.recipe.data.size
        passing = _passing(self.memory(self.step))
        double = _passing(self.memory(self.trace(2 * b, s, update=False)))
        fixed = self.memory(self.step).peak - passing
        constant = max(0.0, 2 * passing - double)
        factor = 2 * self.encoders.image.factor
        for size in sorted({s, 2 * s, max(factor, s // 2 // factor * factor)}):
            try:
                step = self.step if size == s else self.trace(b, size, update=False)
            except GessoError:  # the backbone cannot
                continue
            slope = (_passing(self.memory(step)) - constant) / b
            seconds = self.seconds(step)
            fitting = (whole - fixed - constant) / max(slope, 1)
            for n in _batches(b, fitting):
                taken = (seconds.products + seconds.others) * n / b
                taken += self.seconds(self.step).update + self.seconds(self.step).exchange
                rows.append(
                    {
                        "size": size,
                        "batch": n * self.target.count,
                        "memory": fixed + constant + slope * n,
                        "seconds_per_step": taken,
                        "pictures_per_second": n * self.target.count / taken,
                    }
                )
        return rows


def _batches(own: int, most: float) -> list[int]:
    """The recipe's own batch, its halves and doubles as far as they fit, and the largest."""
    doubles = [own * 2**i for i in range(-8, 12)]
    near = [n for n in (own // 2, own, 2 * own, 4 * own) if 1 <= n <= most]
    largest = [int(n) for n in doubles if n >= 1 and n == int(n) and n <= most][-1:]
    return sorted({*near, *largest})


def _passing(memory: Memory) -> float:
    return memory.activations + memory.workspace + memory.gradients


def plan_recipe(
    recipe: Recipe,
    *,
    gpus: int | None = None,
    gpu: str | None = None,
    price: float | None = None,
    seconds: float = SECONDS,
    table: bool = True,
) -> dict[str, Any]:
    """Predict what a training costs.

    Args:
        recipe: any.
        gpus: how many share every batch; None: 1, or the recipe's processes on this processor.
        gpu: a name of `accelerators.ACCELERATORS` or "cpu"; None: what is here.
        price: dollars an hour of one GPU, or of the machine.
        seconds: how long this machine may be measured, where it is the one.
        table: also look at other sizes and batches.

    Returns:
        recipe, device, devices, parameters, trained, flops_per_picture, flops, steps, pictures,
        memory (parts and peak, bytes of one device or of this machine), memory_of_device,
        seconds_per_step, seconds (parts), pictures_per_second, rate (FLOP/s of one step), days,
        device_days, dollars (None without a price), cache, table, fits, notes.

    Raises:
        GessoError: see `target_of` and `Planner`; or not even one picture fits, with the largest
            part.
    """
    if price is not None and price < 0:
        raise GessoError(f"The price {price} is negative: give dollars an hour.")
    target = target_of(recipe, gpus, gpu)
    plan = Planner(recipe, target, seconds)
    memory, taken = plan.memory(plan.step), plan.seconds(plan.step)
    rows = plan.table() if table else []
    fits = memory.peak <= target.memory
    notes = [*plan.encoders.notes, *plan.captions.notes]
    if not fits:
        notes.insert(0, _too_large(plan, memory))
    config = recipe.train
    pictures = config.batch_size * config.accumulate
    steps = round(60 * config.minutes / taken.step) if config.minutes else config.steps
    days = steps * taken.step / DAY
    count = target.count if target.device is not None else 1
    flops = plan.step.flops * target.count
    return {
        "recipe": recipe.name,
        "device": target.name,
        "devices": target.count,
        "parameters": plan.step.parameters,
        "trained": plan.step.trained,
        "flops_per_picture": flops / pictures,
        "flops": flops * steps,
        "steps": steps,
        "pictures": pictures * steps,
        "memory": asdict(memory) | {"peak": memory.peak},
        "memory_of_device": target.memory,
        "seconds_per_step": taken.step,
        "seconds": asdict(taken),
        "pictures_per_second": pictures / taken.step,
        "rate": flops / taken.step,
        "days": days,
        "device_days": days * count,
        "dollars": None if price is None else 24 * days * count * price,
        "cache": plan.cache(),
        "table": rows,
        "fits": fits,
        "notes": notes,
    }


def _too_large(plan: Planner, memory: Memory) -> str:
    """Why the recipe does not fit and what would.

    Raises:
        GessoError: not even one picture would.
    """
    part, size = memory.largest()
    least = memory.peak
    if plan.batch > 1:
        least = plan.memory(plan.trace(1, plan.recipe.data.size)).peak
    needs = (
        f"{plan.recipe.name} needs {size_of(memory.peak)} where {plan.target.name} has "
        f"{size_of(plan.target.memory)}; the largest part is {part} ({size_of(size)})"
    )
    if least > plan.target.memory:
        raise GessoError(
            f"{needs}, and one picture alone needs {size_of(least)}: use more or larger GPUs, or a "
            "smaller model."
        )
    more = "" if plan.config.checkpoint_activations else " or set train.checkpoint_activations=true"
    return f"{needs}: lower train.batch_size (see the table){more}"


def _with_words(recipe: Recipe) -> Recipe:
    """The recipe with its vocabulary, where the source is at hand."""
    try:
        return with_vocabulary(recipe)
    except GessoError:
        return recipe


def _private_bytes() -> int:
    """What this process holds that is not a file's: libraries, and kernels made at run time."""
    process = psutil.Process(os.getpid())
    info = process.memory_info()
    return int(info.rss - getattr(info, "shared", 0))
