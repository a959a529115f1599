"""The battery: what every system must do, run on every `tiny` function of every systems/*.py.

A system is found by its file; nothing here names one. A recipe without a backbone trains a
tokenizer, which is judged by what it decodes instead of what it paints.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from train_fakes import every_tensor

from gesso.config import Recipe, module, modules, resolve
from gesso.draws import Draws
from gesso.model import WEIGHTS, Model
from gesso.objectives import Objective
from gesso.pipeline import Pipeline
from gesso.sizes import latent_shape
from gesso.train.loop import train
from gesso.train.observe import Moment, Observer
from gesso.train.optim import Optimizer
from gesso.train.run import make_dataset, with_vocabulary
from gesso.train.start import make_model
from gesso.types import Batch, GessoError

SECONDS = 3.0  # of processor time to build, train and paint a system once
STEPS, BATCH = 12, 4  # of training on one batch

NAMES = [
    (system, function)
    for system in modules("systems")
    for function in vars(module("systems", system))
    if function == "tiny" or function.startswith("tiny_")
]


@dataclass
class Case:
    """One tiny recipe, and what is made of it once for all tests."""

    system: str
    function: str
    folder: Path

    @cached_property
    def recipe(self) -> Recipe:
        recipe = with_vocabulary(getattr(module("systems", self.system), self.function)())
        distils = hasattr(module("objectives", recipe.objective["name"]), "TEACHER")
        if distils or recipe.adapter is not None:  # behind a silent last layer nothing is learnt
            teacher = Model.from_recipe(recipe.model_copy(update={"adapter": None}))
            _stir(teacher.trained())
            (self.folder / "teacher").mkdir()
            teacher.save(self.folder / "teacher")
            recipe = recipe.model_copy(update={"init": str(self.folder / "teacher")})
        return recipe

    @cached_property
    def dataset(self) -> Any:
        return make_dataset(self.recipe, self.model(), self.folder / "cache", quiet=True)

    @cached_property
    def batch(self) -> Batch:
        return self.dataset.batch(0, BATCH, 0)

    def model(self) -> Model:
        return make_model(self.recipe)

    def objective(self, model: Model) -> Objective:
        found, options = resolve("objectives", self.recipe.objective)
        torch.manual_seed(0)
        built: Objective = found.build(options, model)
        return built

    def run(self, folder: Path, steps: int, **options: Any) -> Path:
        """Train; returns the checkpoint."""
        short = {"steps": steps, "save_every": 2, "keep": 9, "log_every": 1}
        recipe = self.recipe.model_copy(
            update={"train": self.recipe.train.model_copy(update=short)}
        )
        result = train(
            recipe, folder, model=self.model(), dataset=self.dataset, quiet=True, **options
        )
        assert result["steps"] == steps
        return Path(result["checkpoint"])

    def drawn(self) -> Model:
        """The model with weights such that its output depends on all that it is given."""
        model = self.model()
        _stir(model.stored())
        return model


def _stir(parts: Mapping[str, nn.Module]) -> None:
    """Move modules away from their initial zeros."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for part in parts.values():
            part.eval()
            for p in part.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=generator))


@pytest.fixture(scope="module", params=NAMES, ids=lambda pair: "-".join(pair))
def case(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Case(*request.param, tmp_path_factory.mktemp("case"))
    torch.set_num_threads(threads)


def test_every_system_has_a_tiny_recipe() -> None:
    assert {system for system, function in NAMES if function == "tiny"} == set(modules("systems"))


def test_every_phase_has_a_finite_loss_and_reaches_what_it_trains(case: Case) -> None:
    objective = case.objective(case.model())
    learners = {name for phase in objective.phases for name in phase.learns}
    _stir({name: objective.roles[name] for name in learners})
    for role in objective.roles.values():
        role.train()
    for index, phase in enumerate(objective.phases):
        loss = objective.loss(phase.name, case.batch, Draws("cpu", 0, index)).loss
        assert loss.shape == () and loss.isfinite()
        for role in objective.roles.values():
            role.zero_grad()
        loss.backward()
        for name in phase.learns:
            if not any(p.requires_grad for p in objective.roles[name].parameters()):
                continue  # an adapter learns alone
            gradients = [p.grad for p in objective.roles[name].parameters() if p.grad is not None]
            assert any(g.abs().sum() > 0 for g in gradients), f"{phase.name}: {name}"
            assert all(g.isfinite().all() for g in gradients)


def test_every_phase_learns_one_batch(case: Case) -> None:
    """Each phase from the start, the others at rest: its own loss of one batch must fall."""
    phases = case.objective(case.model()).phases
    for index, phase in enumerate(phases):
        objective = case.objective(case.model())
        optimizer = Optimizer({k: objective.roles[k] for k in phase.learns}, case.recipe.train)
        losses = []
        for _ in range(STEPS):
            for role in objective.roles.values():
                role.zero_grad()
            loss = objective.loss(phase.name, case.batch, Draws("cpu", 0, index)).loss
            loss.backward()
            optimizer.clip(1.0)
            optimizer.step(case.recipe.train.lr)
            losses.append(loss.item())
        assert min(losses[-3:]) < losses[0], f"{phase.name}: {losses}"


class _Dies(Observer):
    def on_step(self, moment: Moment) -> None:
        if moment.step == 3:
            raise KeyboardInterrupt


def test_a_resumed_training_is_the_one_that_never_stopped(case: Case) -> None:
    torch.manual_seed(1)  # what a training draws follows from its own seed, not from this one
    whole = case.run(case.folder / "whole", 4)
    torch.manual_seed(2)
    with pytest.raises(KeyboardInterrupt):
        case.run(case.folder / "parts", 4, observers=[_Dies()])
    torch.manual_seed(3)
    resumed = case.run(case.folder / "parts", 4, resume=True)
    first, second = every_tensor(whole), every_tensor(resumed)
    assert first.keys() == second.keys() and any("optimizer" in key for key in first)
    assert not [key for key in first if not torch.equal(first[key], second[key])]


def _made(case: Case, model: Model, rows: slice = slice(None)) -> Tensor:
    """[N, H, W, 3] in [0, 1]: validation prompts painted, or pictures through the tokenizer."""
    pipe = None if model.backbone is None else Pipeline(model)
    with torch.no_grad():
        if pipe is None:
            assert case.batch.pixels is not None
            encoder = model.image_encoder
            pixels = encoder.decode(encoder.sample(encoder.encode(case.batch.pixels[rows])))
            return (pixels.permute(0, 2, 3, 1).clamp(-1, 1) + 1) / 2
    prompts = case.recipe.validation.prompts[rows]
    seeds = list(range(len(case.recipe.validation.prompts)))[rows]
    return torch.from_numpy(pipe(prompts, seed=seeds, output_type="np", **_few(model)).images)


def _few(model: Model) -> dict[str, int]:
    """Few steps, where the model leaves a choice."""
    if model.coded or model.sample.timesteps:
        return {}
    return {"num_inference_steps": min(2, model.sample.num_inference_steps)}


def test_what_is_made_has_its_shape_and_does_not_depend_on_the_batch(case: Case) -> None:
    model = case.drawn()
    many = _made(case, model)
    sample, data = case.recipe.sample, case.recipe.data
    size = (sample.height, sample.width) if model.backbone is not None else (data.size, data.size)
    assert many.shape[0] > 1 and many.shape[1:] == (*size, 3)
    assert many.dtype == torch.float32 and many.isfinite().all()
    assert many.min() >= 0 and many.max() <= 1 and many.std() > 0.01
    single = torch.cat([_made(case, model, slice(i, i + 1)) for i in range(len(many))])
    assert (single - many).abs().max() <= 1 / 255
    assert (many[0] - many[1]).abs().max() > 1 / 255
    if model.backbone is not None:
        latents = Pipeline(model)("", seed=0, output_type="latent", **_few(model)).images
        assert latents.shape == (1, *latent_shape(model, sample)) and latents.isfinite().all()


def test_a_checkpoint_round_trips_and_is_strict(case: Case, tmp_path: Path) -> None:
    model = case.drawn()
    model.save(tmp_path)
    again = Model.load(tmp_path)
    state, loaded = model.state(), again.state()
    assert state.keys() == loaded.keys()
    assert all(torch.equal(state[key], loaded[key]) for key in state)
    for part in again.parts().values():
        part.eval()
    # Weights that are mapped from the file lie at other addresses: products may round otherwise.
    assert torch.allclose(_made(case, model), _made(case, again), atol=1e-5)

    tensors = load_file(tmp_path / WEIGHTS)
    key = max(tensors, key=lambda k: tensors[k].numel())
    broken: list[dict[str, Tensor]] = [
        {k: v for k, v in tensors.items() if k != key},
        {**tensors, "backbone.left_over": torch.zeros(1)},
        {**tensors, key: tensors[key].flatten()[:-1].clone()},
    ]
    for state in broken:
        save_file(state, tmp_path / WEIGHTS)
        with pytest.raises(GessoError):
            Model.load(tmp_path)


def test_it_is_small_enough_for_a_processor(case: Case, tmp_path: Path) -> None:
    assert case.dataset is not None  # encoded once, before the clock starts
    start = time.process_time()
    case.run(tmp_path, 2)
    _made(case, case.drawn())
    assert time.process_time() - start < SECONDS
