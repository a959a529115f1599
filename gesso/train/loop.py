"""The training loop: one for every objective.

    train(recipe, run, model=..., dataset=...)
        for each step: for each phase of the objective:
            accumulate the gradients of objective.loss(phase, batch, generator)
            clip, check, update; then the moving average

Every random draw follows from (seed, step), so a resumed run is the run that never stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gesso.config import Recipe, resolve
from gesso.device import pick_device
from gesso.model import Model
from gesso.nn.compile import compile_blocks
from gesso.objectives import Objective
from gesso.train import checkpoint, saving
from gesso.train.device import draws
from gesso.train.ema import EMA
from gesso.train.feed import Dataset, Feed
from gesso.train.folder import open_run
from gesso.train.guard import Guard
from gesso.train.heldout import validation_losses
from gesso.train.interrupt import Interrupt
from gesso.train.log import Meter, RunLog
from gesso.train.optim import Optimizer, learning_rate, named_parameters
from gesso.train.parallel import Group
from gesso.types import Batch, GessoError

Painter = Callable[[Model, Path], None]
"""Paints the validation prompts with the model as it is and writes them to a PNG file."""


def train(
    recipe: Recipe,
    run: Path,
    *,
    model: Model,
    dataset: Dataset,
    painter: Painter | None = None,
    group: Group | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a model until its steps or minutes are over, or Ctrl-C or SIGTERM.

    Args:
        recipe: `train`, `objective`, `seed` and `validation` are used here.
        run: the run's folder; `recipe.yaml`, `metrics.jsonl`, `tb/`, `samples/` and
            `checkpoints/` are written into it.
        model: built from the recipe; holds the averaged weights when this returns.
        dataset: gives the batches.
        painter: called with the averaged weights at every validation.
        group: the processes that train together, led by this one; default: it alone.
        resume: continue from the newest checkpoint in `run`.
        quiet: show no progress.

    Returns:
        run, checkpoint, steps, seconds, images_per_second, loss, validation (dict), skipped,
        parameters, and `interrupted` (bool) with `signal` (its number, or None).

    Raises:
        GessoError: the folder holds another run, the loss is not finite or explodes, a checkpoint
            does not fit or cannot be written.
    """
    newest = open_run(run, recipe, resume)
    trainer = Trainer(recipe, run, model, dataset, painter, group)
    if newest is not None:
        saving.restore(trainer, newest)
    log = RunLog(run, trainer.step, quiet)
    try:
        with Interrupt() as interrupt:
            return trainer.fit(log, interrupt)
    finally:
        trainer.feed.close()
        log.close()


def follow(
    group: Group, recipe: Recipe, run: Path, *, model: Model, dataset: Dataset, resume: bool
) -> None:
    """The part of a process that follows another one's `train`, with its arguments."""
    trainer = Trainer(recipe, run, model, dataset, None, group)
    newest = checkpoint.checkpoints(run)[-1:] if resume else []
    for folder in newest:
        saving.restore(trainer, folder)
    trainer.fit(None, None)
    trainer.feed.close()


class Trainer:
    """One run's moving parts. See `train` for the arguments."""

    log: RunLog

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        model: Model,
        dataset: Dataset,
        painter: Painter | None,
        group: Group | None = None,
    ) -> None:
        self.group = group or Group()
        self.recipe, self.config, self.run = recipe, recipe.train, run
        self.device = pick_device(self.config.device, "train.device")
        self.model, self.painter = model.to(self.device), painter
        self.feed = Feed(dataset, self.config.batch_size, recipe.seed, self.device)
        module, options = resolve("objectives", recipe.objective)
        self.objective: Objective = module.build(options, model)
        self.roles, phases = self.objective.roles, self.objective.phases
        for role in self.roles.values():
            role.to(self.device).eval()
        self.learners = {name: self.roles[name] for phase in phases for name in phase.learns}
        self.params = named_parameters(self.learners)
        self.optimizers = {
            phase.name: Optimizer({k: self.roles[k] for k in phase.learns}, self.config)
            for phase in phases
        }
        self.ema = EMA(self.params, self.config.ema)
        self.guard = Guard(run, self.config.max_skipped)
        self.meter = Meter()
        self.step = self.saved_step = 0
        self.saved: Path | None = None
        self.latest: dict[str, float] = {}  # the metrics that were logged last
        self.validation: dict[str, float] = {}
        self.seconds_before = self._share_before = 0.0  # of the sessions before
        self._start = time.perf_counter()
        self.now = 0.0  # `seconds` of the leader before this step: what every process goes by

    @property
    def seconds(self) -> float:
        """Time used, over all sessions of the run."""
        return self.seconds_before + time.perf_counter() - self._start

    @property
    def share(self) -> float:
        """How much of the training is done, 0..1."""
        if self.config.minutes:
            return min(1.0, self.now / (60 * self.config.minutes))
        return min(1.0, self.step / self.config.steps)

    def fit(self, log: RunLog | None, interrupt: Interrupt | None) -> dict[str, Any]:
        """Run until the end or an interrupt; returns what `train` returns.

        Only the leader of a group has a log, and signals to hear.
        """
        if self.config.compile:
            compile_blocks(self.learners.values())
        self._start = time.perf_counter()  # the budget pays for training, not for its set-up
        stop = self._agree(interrupt)
        self._share_before = self.share
        while self.share < 1 and not stop:
            self._train_step()
            stop = self._agree(interrupt)
            if log is not None:
                self._report(log)
        return {} if log is None or interrupt is None else self._finish(log, interrupt)

    def _agree(self, interrupt: Interrupt | None) -> bool:
        """Go by the leader's clock; returns whether it was told to stop."""
        told = interrupt is not None and interrupt.received is not None
        self.now, stop = self.group.agree(self.seconds, told)
        return bool(stop)

    def _report(self, log: RunLog) -> None:
        """After a step: metrics, progress, and in their turn validation and checkpoints."""
        config, self.log = self.config, log
        logs = self.step % config.log_every == 0
        if logs:
            self._log_metrics()
        share = self.share - self._share_before
        left = (1 - self.share) / max(share, 1e-9) * (time.perf_counter() - self._start)
        log.progress(self.share, self.step, self.latest, left, line=logs)
        if self.share < 1 and config.validate_every and self.step % config.validate_every == 0:
            self._validate()
        if self.share < 1 and self.step % config.save_every == 0:
            try:
                saving.save(self)
            except GessoError as e:  # the next one may succeed, and the last one must
                log.say(f"{e} The training goes on.")

    def _finish(self, log: RunLog, interrupt: Interrupt) -> dict[str, Any]:
        self.log, over = log, self.share >= 1
        if self.step > self.saved_step:
            self._log_metrics()
            if over:
                self._validate()
            saving.save(self)
        if not over:
            log.say(f"Stopped at step {self.step}; the same command with --resume continues.")
        self.ema.swap()  # the caller gets the model that was saved
        return {
            "run": str(self.run),
            "checkpoint": str(self.saved) if self.saved else None,
            "steps": self.step,
            "seconds": round(self.seconds, 3),
            "images_per_second": self.latest.get("images_per_second", 0.0),
            "loss": self.latest.get("loss", float("nan")),
            "validation": self.validation,
            "skipped": self.guard.skipped,
            "parameters": sum(p.numel() for p in self.params.values()),
            "interrupted": not over,
            "signal": interrupt.received,
        }

    def _train_step(self) -> None:
        """One step: every phase that is due, then the moving average."""
        config, start = self.config, time.perf_counter()
        first = self.step * config.accumulate
        batches = [self.feed[first + m] for m in range(config.accumulate)]
        lr = learning_rate(config, self.step, self.now)
        for role in self.learners.values():
            role.train()
        for index, phase in enumerate(self.objective.phases):
            if self.step % phase.every:
                continue
            loss, norm = self._gradients(index, batches)
            problem = self.guard.problem(phase.name, loss, norm, self.step >= config.warmup)
            if problem is not None:
                keys = [key for batch in batches for key in batch.keys]
                said = self.guard.skip(self.step, problem, keys, self.saved)
                if self.group.leads:
                    self.log.say(said)
                break
            self.optimizers[phase.name].step(lr)
        else:
            self.ema.update()
        self.step += 1
        self.meter.record({"lr": lr})
        self.meter.time(sum(len(batch.keys) for batch in batches), time.perf_counter() - start)

    def _gradients(self, index: int, batches: list[Batch]) -> tuple[float, float]:
        """A phase's mean gradients over micro-batches, clipped; returns loss and gradient norm."""
        phase = self.objective.phases[index]
        prefix = f"{phase.name}/" if index else ""  # the first phase is the one to watch
        for p in self.params.values():
            p.grad = None
        losses = []
        rank = [self.group.rank] if self.group.rank else []
        for m, batch in enumerate(batches):
            generator = draws(self.device, self.recipe.seed, self.step, index, m, *rank)
            with self._precision():
                out = self.objective.loss(phase.name, self.group.share(batch), generator)
            (out.loss / len(batches)).backward()
            losses.append(out.loss.detach().float())
            self.meter.record({prefix + name: value for name, value in out.metrics.items()})
        mean = torch.stack(losses).mean()
        self.group.mean_([mean, *self.optimizers[phase.name].gradients()])
        norm = self.optimizers[phase.name].clip(self.config.clip)
        # The one place where the loop waits for the device.
        loss, grad_norm = torch.stack([mean, norm.float()]).tolist()
        self.meter.record({f"{prefix}loss": loss, f"{prefix}grad_norm": grad_norm})
        return loss, grad_norm

    def _precision(self) -> torch.autocast:
        enabled = self.config.dtype == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _log_metrics(self) -> None:
        """Write the means since the last call."""
        if means := self.meter.read():
            self.latest = {**means, "seconds": self.seconds}
            self.log.metrics(self.step, self.latest)

    def _validate(self) -> None:
        """Losses on held-out pictures and painted prompts, both with the averaged weights."""
        for role in self.roles.values():
            role.eval()
        with self.ema.applied():
            with self._precision():
                batches = self.feed.validation()
                self.validation = validation_losses(self.objective, batches, self.device)
            self.log.metrics(self.step, self.validation)
            if self.painter is not None:
                file = self.run / "samples" / f"step-{self.step:06d}.png"
                file.parent.mkdir(exist_ok=True)
                self.painter(self.model, file)
                self.log.picture(self.step, file)
