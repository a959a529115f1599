"""The training loop: one for every objective, in one process or in many.

    train(recipe, run, model=..., dataset=...)
        for each step: for each phase of the objective:
            accumulate the gradients of objective.loss(phase, batch, generator)
            clip, check, update; then the moving average

Every random draw follows from (seed, step) and the picture's place in the whole batch: a resumed
run is the run that never stopped, and processes that share a batch are one that has it all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from gesso.config import Recipe, resolve
from gesso.device import pick_device
from gesso.draws import Draws
from gesso.model import Model
from gesso.objectives import Follows, Objective
from gesso.train import saving, setup
from gesso.train.averaged import Averaged
from gesso.train.ema import EMA
from gesso.train.feed import Dataset, Feed
from gesso.train.folder import open_run
from gesso.train.guard import Guard
from gesso.train.interrupt import Interrupt
from gesso.train.log import Meter, RunLog
from gesso.train.observe import Observer
from gesso.train.optim import Optimizer, learning_rate, named_parameters
from gesso.train.parallel import Group
from gesso.train.report import Painter, Reporter
from gesso.train.watch import Lost
from gesso.types import Batch, GessoError


def train(
    recipe: Recipe,
    run: Path,
    *,
    model: Model,
    dataset: Dataset,
    painter: Painter | None = None,
    observers: Sequence[Observer] = (),
    group: Group | None = None,
    resume: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Train a model until its steps or minutes are over, or Ctrl-C or SIGTERM.

    Every process of a group calls this with the same arguments. The leader alone writes the run's
    folder (but for each one's pieces of a sharded checkpoint), paints and calls the observers.

    Args:
        recipe: `train`, `objective`, `seed` and `validation` are used here.
        run: the run's folder; `recipe.yaml`, `metrics.jsonl`, `tb/`, `samples/` and
            `checkpoints/` are written into it.
        model: built from the recipe; holds the averaged weights when this returns, unless
            `train.shard` has spread them.
        dataset: gives the batches.
        painter: called with the averaged weights at every validation.
        observers: called after every step and at every validation.
        group: the processes that train together; default: this one alone.
        resume: continue from the newest checkpoint in `run`.
        quiet: show no progress.

    Returns:
        run, checkpoint, steps, seconds, images_per_second, loss, validation (dict), skipped,
        parameters, and `interrupted` (bool) with `signal` (its number, or None). The same in every
        process.

    Raises:
        GessoError: the folder holds another run, the loss is not finite or explodes, a checkpoint
            does not fit or cannot be written, another process is lost.
    """
    group = group or Group()
    trainer = Trainer(recipe, run, model, dataset, group)  # what it refuses leaves no run behind
    newest = group.tell(str(open_run(run, recipe, resume) or "") if group.leads else None)
    if newest:
        saving.restore(trainer, Path(newest))
    log = RunLog(run, trainer.step, quiet) if group.leads else None
    trainer.reporter = Reporter(log, painter, observers)
    try:
        with Interrupt(says=group.leads) as interrupt:
            return trainer.fit(interrupt)
    finally:
        trainer.feed.close()
        if log is not None:
            log.close()


class Trainer:
    """One run's moving parts. See `train` for the arguments."""

    def __init__(
        self,
        recipe: Recipe,
        run: Path,
        model: Model,
        dataset: Dataset,
        group: Group | None = None,
    ) -> None:
        self.group, self.reporter = group or Group(), Reporter()
        self.recipe, self.config, self.run = recipe, recipe.train, run
        self.device = pick_device(self.config.device, "train.device")
        self.model = model.to(self.device)
        rows, workers = self.group.rows, self.config.workers
        self.feed = Feed(dataset, self.config.batch_size, recipe.seed, self.device, rows, workers)
        module, options = resolve("objectives", recipe.objective)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)  # of networks that only the training has
            self.objective: Objective = module.build(options, model)
        self.roles, phases = self.objective.roles, self.objective.phases
        for role in self.roles.values():
            role.to(self.device).eval()
        self.learners = {name: self.roles[name] for phase in phases for name in phase.learns}
        self.sharded, copied = setup.distribute(recipe, model, self.roles, self.group, self.device)
        self.params = named_parameters(self.learners)
        self.optimizers = {
            phase.name: Optimizer({k: self.roles[k] for k in phase.learns}, self.config)
            for phase in phases
        }
        self.ema = EMA(self.params, self.config.ema)
        shown = copied if self.sharded else (model, self.objective)
        self.averaged = Averaged(shown[0], shown[1], self.roles, self.ema, self.group, self.sharded)
        self.guard = Guard(run, self.config.max_skipped, records=self.group.leads)
        self.meter, self.saver = Meter(), saving.Saver(self)
        self.step = 0
        self.latest: dict[str, float] = {}  # the metrics that were logged last
        self.validation: dict[str, float] = {}
        self.seconds_before = self.share_before = 0.0  # of the sessions before
        self.step_seconds = 0.0  # of the last step
        self.start = time.perf_counter()  # of this session
        self.now = 0.0  # `seconds` of the leader before this step: what every process goes by

    @property
    def seconds(self) -> float:
        """Time used, over all sessions of the run."""
        return self.seconds_before + time.perf_counter() - self.start

    @property
    def share(self) -> float:
        """How much of the training is done, 0..1."""
        if self.config.minutes:
            return min(1.0, self.now / (60 * self.config.minutes))
        return min(1.0, self.step / self.config.steps)

    def fit(self, interrupt: Interrupt) -> dict[str, Any]:
        """Run until the end, or a signal to any process; returns what `train` returns."""
        setup.speed_up(self.learners.values(), self.config)
        self.start = time.perf_counter()  # the budget pays for training, not for its set-up
        stop = self._agree(interrupt)
        self.share_before = self.share
        while self.share < 1 and not stop:
            start = time.perf_counter()
            self._train_step()
            stop = self._agree(interrupt)
            self.step_seconds = time.perf_counter() - start
            self._report()
        return self._finish(interrupt)

    def _agree(self, interrupt: Interrupt) -> bool:
        """Go by the leader's clock; returns whether any process was told to stop."""
        self.now, stop = self.group.agree(self.seconds, interrupt.received is not None)
        return stop

    def _report(self) -> None:
        """After a step: metrics, progress, and in their turn validation and checkpoints."""
        config, more = self.config, self.share < 1
        logs = self.step % config.log_every == 0
        if logs:
            self._log_metrics()
        self.reporter.stepped(self, line=logs)
        if more and config.validate_every and self.step % config.validate_every == 0:
            self._validate()
        keeps = config.keep_every and self.step % config.keep_every == 0
        if more and (keeps or self.step % config.save_every == 0):
            try:
                self.saver.save(wait=not config.save_async)
            except Lost:
                raise
            except GessoError as e:  # the next one may succeed, and the last one must
                self.reporter.say(f"{e} The training goes on.")

    def _finish(self, interrupt: Interrupt) -> dict[str, Any]:
        over = self.share >= 1
        try:
            self.saver.finish()
        except Lost:
            raise
        except GessoError as e:  # what it lacks is written below
            self.reporter.say(str(e))
        if self.step > self.saver.step:
            self._log_metrics()
            if over:
                self._validate()
            self.saver.save()
        if not over:
            self.reporter.say(
                f"Stopped at step {self.step}; the same command with --resume continues."
            )
        if not self.sharded:
            self.ema.swap()  # the caller gets the model that was saved
        told: dict[str, Any] = self.group.tell(self.reporter.result(self, interrupt.received))
        return told

    def _train_step(self) -> None:
        """One step: every phase that is due, then the moving average."""
        config, start = self.config, time.perf_counter()
        first, self.feed.waited = self.step * config.accumulate, 0.0
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
                own = [key for batch in batches for key in batch.keys]
                keys = [key for keys in self.group.gather(own) for key in keys]
                self.reporter.say(self.guard.skip(self.step, problem, keys, self.saver.saved))
                break
            self.optimizers[phase.name].step(lr)
            if isinstance(self.objective, Follows):
                self.objective.updated(phase.name)
        else:
            self.ema.update()
        self.step += 1
        self.meter.record({"lr": lr})
        pictures = config.batch_size * config.accumulate
        self.meter.time(pictures, time.perf_counter() - start, self.feed.waited)

    def _gradients(self, index: int, batches: list[Batch]) -> tuple[float, float]:
        """A phase's mean gradients over micro-batches, clipped; returns loss and gradient norm."""
        phase = self.objective.phases[index]
        optimizer = self.optimizers[phase.name]
        prefix = f"{phase.name}/" if index else ""  # the first phase is the one to watch
        for p in self.params.values():
            p.grad = None
        means: dict[str, list[torch.Tensor]] = {}
        rows, total = self.group.rows, self.config.batch_size
        for m, batch in enumerate(batches):
            numbers = self.recipe.seed, self.step, index, m
            generator = Draws(self.device, *numbers, rows=rows, total=total)
            with self.precision(), self.group.together():
                out = self.objective.loss(phase.name, batch, generator)
                (out.loss / len(batches)).backward()
            for name, value in {**out.metrics, "loss": out.loss}.items():
                value = torch.as_tensor(value, device=self.device)
                means.setdefault(name, []).append(value.detach().float())
        stacked = {name: torch.stack(values).mean() for name, values in means.items()}
        # Sharded gradients are means already.
        self.group.mean_([*stacked.values(), *([] if self.sharded else optimizer.gradients())])
        with self.group.together():
            norm = optimizer.clip(self.config.clip)
        # The one place where the loop waits for the device.
        loss, grad_norm = torch.stack([stacked.pop("loss"), norm.float()]).tolist()
        self.meter.record({prefix + name: value for name, value in stacked.items()})
        self.meter.record({f"{prefix}loss": loss, f"{prefix}grad_norm": grad_norm})
        return loss, grad_norm

    def precision(self) -> torch.autocast:
        enabled = self.config.dtype == "bfloat16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _log_metrics(self) -> None:
        """Write the means since the last call."""
        if means := self.meter.read():
            self.latest = {**means, "seconds": self.seconds}
            self.reporter.metrics(self.step, self.latest)

    def _validate(self) -> None:
        """Judge the averaged weights; every process learns what the leader finds."""
        with self.averaged.shown() as shown:
            found = self.reporter.judge(self, shown)
        self.validation = self.group.tell(found)
