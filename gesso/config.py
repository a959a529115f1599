"""Typed configurations. An unknown key is an error that names the nearest known one.

A recipe is one `Recipe`. Parts that are chosen by name (a backbone, an encoder, a source, an
objective) are written `{name: pixart, depth: 6, ...}`: `resolve("backbones", spec)` imports
`gesso.backbones.pixart` and validates the rest with that module's `Config`. So adding a part adds
a file and edits no list.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import pkgutil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from gesso.types import GessoError

Spec = dict[str, Any]
"""`{"name": ..., option: value, ...}`: a part chosen by name."""


Null = Literal["empty", "learned", "zero"]
"""No caption: the encoded prompt "", the backbone's own null caption, or text features of zeros."""


class Config(BaseModel):
    """Base of every configuration: unknown keys are refused, fields are validated on change."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class DiffusionConfig(Config):
    """The noise path, what the network predicts on it, and where training puts its timesteps."""

    path: Literal["ddpm", "flow", "edm"] = "ddpm"
    prediction: Literal["epsilon", "x0", "v", "flow", "edm"] = "epsilon"
    # Where training puts its timesteps: see `gesso.diffusion.timesteps.draw`.
    timesteps: Literal["uniform", "logit_normal", "mode", "cosmap", "lognormal"] = "uniform"
    logit_mean: float = 0.0
    logit_std: float = 1.0
    mode_scale: float = Field(default=1.29, ge=-1, le=1.7519)  # beyond, mode's law runs backwards
    shift: float = 1.0  # flow only: t -> shift t / (1 + (shift - 1) t)
    # Flow only: side in pixels of the square at which `shift` holds; a picture of m pixels is
    # shifted by sqrt(m) / side times as much, in training and in painting. None: all alike.
    shift_base: int | None = Field(default=None, ge=1)
    sigma_data: float = Field(default=0.5, gt=0)  # edm only: standard deviation of the latents
    p_mean: float = -1.2  # edm only: log(sigma) is normal with this mean
    p_std: float = Field(default=1.2, gt=0)  # and this standard deviation


class DataConfig(Config):
    """Where pictures come from and how they are cut and captioned."""

    source: Spec = Field(default_factory=lambda: {"name": "scenes"})
    size: int = 64  # base size in pixels: pictures have about size**2 pixels
    buckets: bool = False  # aspect-ratio buckets around `size`; False: centre-cropped squares
    captions: list[str] = Field(default_factory=list)  # JSONL files laid over the source's captions
    caption_weights: dict[str, float] | None = None  # by caption kind; None: all captions alike
    cache: str | None = None  # folder written by `gesso encode`; None: encode at the start
    limit: int | None = None  # use only the first so many pictures
    background: str = "white"  # RGBA pictures are composited on this colour


class TrainConfig(Config):
    """The loop: length, optimiser, precision, what is logged and kept."""

    steps: int = Field(default=1000, ge=1)
    # Wall-clock budget; the schedule follows time instead of steps.
    minutes: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=64, ge=1)  # per optimiser step, before accumulation
    accumulate: int = Field(default=1, ge=1)  # micro-batches per step, batch_size pictures each
    optimizer: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup: int = Field(default=100, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # after the warm-up
    lr_floor: float = Field(default=0.0, ge=0, le=1)  # share of lr that the schedule ends at
    clip: float = Field(default=1.0, ge=0)  # gradient norm; 0: off
    ema: float = 0.999
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the forward pass; weights stay float32
    compile: bool = False
    checkpoint_activations: bool = False  # recompute blocks in the backward pass: less memory
    float8: bool = False  # products of the blocks' linear layers; needs a GPU that has it
    device: str = "auto"
    processes: int = Field(default=1, ge=0)  # that share each batch on a CPU; 0: one a core
    shard: Literal["none", "full"] = "none"  # full: weights and moments lie spread over processes
    timeout: float = Field(default=600, gt=0)  # seconds until a silent process counts as lost
    workers: int = Field(default=1, ge=1)  # threads in each process that read batches ahead
    log_every: int = Field(default=20, ge=1)
    # Steps between validation pictures and losses; 0: at the end only.
    validate_every: int = Field(default=0, ge=0)
    save_every: int = Field(default=500, ge=1)
    keep: int = 2  # checkpoints kept for resuming
    # Steps between checkpoints that are kept for good; 0: none.
    keep_every: int = Field(default=0, ge=0)
    save_async: bool = False  # write checkpoints while the training goes on
    max_skipped: int = 0  # non-finite or exploding losses that may be skipped before stopping
    learns: list[str] | None = None  # names of the parameters that train, as globs; None: all


def _sampler(name: str) -> str:
    if name not in modules("samplers"):
        raise ValueError(f"there is no such sampler, {nearest(name, modules('samplers'))}")
    return name


class SampleConfig(Config):
    """The generation contract: what makes a picture besides prompt and seed."""

    sampler: Annotated[str, AfterValidator(_sampler)] = "dpm_solver"  # see `gesso.samplers`
    num_inference_steps: int = Field(default=20, ge=1)
    # Which times are visited: see `gesso.diffusion.schedules.make_schedule`.
    spacing: Literal["linspace", "trailing", "continuous", "lcm", "lcm_reference", "sd3"] = (
        "linspace"
    )
    final: Literal["zero", "sigma_min"] = "zero"
    timesteps: tuple[float, ...] | None = None  # given outright, such as DMD's [400]
    # How much noise the first time starts from: what the path ends with, or what belongs to it.
    start_noise: Literal["path", "time"] = "path"
    original_inference_steps: int = Field(default=50, ge=1)  # of a consistency model's teacher
    guidance_scale: float = Field(default=4.5, ge=0)
    guidance_interval: tuple[float, float] = (0.0, 1.0)  # share of the steps that is guided
    guidance_rescale: float = Field(default=0.0, ge=0, le=1)
    # Skip-layer guidance, away from the network without some blocks: `gesso.diffusion.guidance`.
    skip_guidance_layers: tuple[int, ...] = ()
    skip_layer_guidance_scale: float = Field(default=2.5, ge=0)
    skip_layer_guidance_interval: tuple[float, float] = (0.01, 0.2)  # share of the steps
    # Of models of codes (see `gesso.samplers.autoregressive`): guidance rises from 1 at the first
    # step to guidance_scale at the last; the likeliest codes are drawn from, 0 and 1 being all.
    guidance_growth: Literal["constant", "linear"] = "constant"
    temperature: float = Field(default=1.0, ge=0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    height: int = 64
    width: int = 64
    bucket_size: int | None = None  # base of the aspect-ratio buckets that the model was trained on
    use_resolution_binning: bool = False  # paint in the nearest bucket, then resize and crop
    dtype: Literal["float32", "bfloat16"] = "float32"
    null: Null = "empty"  # the unconditional branch


class ScoreConfig(Config):
    """One benchmark that runs during training, as `gesso evaluate` would on the checkpoint."""

    benchmark: str
    every: int = Field(default=0, ge=0)  # steps, a multiple of validate_every; 0: each validation
    judges: list[str] = Field(default_factory=list)  # specs; none: the benchmark's own
    n: int | None = Field(default=None, ge=1)  # pictures a prompt; None: the benchmark's number
    limit: int | None = Field(default=None, ge=1)  # at most so many prompts
    per_tag: int = Field(default=20, ge=1)  # of scenes
    level: int | None = None  # of scenes; None: the model's
    seed: int = 0
    prompts: str | None = None  # the prompt file or its folder
    num_inference_steps: int | None = None  # these two: None: as the model's contract says
    guidance_scale: float | None = None
    best: bool = False  # keep the model with the highest overall score in RUN/best
    keep_pictures: bool = False


class ValidationConfig(Config):
    """Fixed prompts and seeds painted during training."""

    prompts: list[str] = Field(default_factory=list)
    seed: int = 0
    holdout: int = 64  # pictures kept out of training for the fixed-grid validation loss
    scores: list[ScoreConfig] = Field(default_factory=list)  # benchmarks on the averaged weights


class Recipe(Config):
    """A whole training: what `gesso train` runs and `gesso.json` records."""

    name: str
    about: str = ""
    seed: int = 0
    init: str | None = None  # a model (name, run, folder, DiT file) whose weights to start from
    convert: Spec | None = None  # how its backbone becomes this one, where they differ
    image_encoder: Spec
    text_encoder: Spec | None = None  # None, and no backbone: a recipe that trains the encoder
    backbone: Spec | None = None
    adapter: Spec | None = None  # attached to the backbone, and alone learns; a name is {name: it}
    # None: the backbone generates a tokenizer's codes, and there is no noise.
    diffusion: DiffusionConfig | None = Field(default_factory=DiffusionConfig)
    objective: Spec = Field(default_factory=lambda: {"name": "denoise"})
    data: DataConfig = Field(default_factory=DataConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    sample: SampleConfig = Field(default_factory=SampleConfig)
    validation: ValidationConfig = Field(default_factory=ValidationConfig)

    @field_validator("adapter", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


def nearest(word: str, known: list[str]) -> str:
    """A hint "did you mean 'x' or 'y'?" of at most three close known words, or a list of all."""
    matches = difflib.get_close_matches
    close = matches(word, known, n=3, cutoff=0.6) or matches(word, known, n=1, cutoff=0.5)
    if not close:
        return f"known: {', '.join(sorted(known))}"
    *others, last = map(repr, close)
    return f"did you mean {', '.join(others)}{' or ' if others else ''}{last}?"


def validate(model: type[Config], values: dict[str, Any], where: str) -> Any:
    """Validate `values`; the first problem becomes one sentence.

    Raises:
        GessoError: an unknown key (with the nearest known one) or a value of the wrong type.
    """
    try:
        return model.model_validate(values)
    except ValidationError as e:
        # A misspelt key is also a missing one: name the misspelling.
        problem = min(e.errors(), key=lambda p: p["type"] != "extra_forbidden")
        path = ".".join(str(p) for p in problem["loc"])
        if problem["type"] == "invalid_key":
            raise GessoError(f"{where} has the key {path}, which is not text: remove it.") from None
        if problem["type"] == "extra_forbidden":
            known = _fields_at(model, list(problem["loc"])[:-1])
            hint = nearest(str(problem["loc"][-1]), known)
            raise GessoError(f"{where} has an unknown key {path!r}: {hint}") from None
        if problem["type"] == "missing":
            raise GessoError(f"{where} lacks the key {path!r}: add it.") from None
        why = problem["msg"].lower().removeprefix("value error, ")
        raise GessoError(
            f"{where}: {path} = {problem.get('input')!r} is not valid: {why.removesuffix('.')}"
            f"{'' if why.endswith('?') else '.'}"
        ) from None


def _fields_at(model: type[Config], loc: list[Any]) -> list[str]:
    for part in loc:
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(inner, type) and issubclass(inner, Config)):
            break
        model = inner
    return list(model.model_fields)


def modules(kind: str) -> list[str]:
    """Names that can be chosen for a kind ("backbones", "encoders.text", "data.sources", ...)."""
    package = importlib.import_module(f"gesso.{kind}")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_")


def module(kind: str, name: str) -> Any:
    """Import `gesso.<kind>.<name>`; dashes in the name stand for underscores.

    Raises:
        GessoError: no such module, with the nearest names.
    """
    file = str(name).replace("-", "_")
    if file not in modules(kind):
        raise GessoError(f"There is no {kind} called {name!r}: {nearest(file, modules(kind))}")
    return importlib.import_module(f"gesso.{kind}.{file}")


def resolve(kind: str, spec: Spec) -> tuple[Any, Any]:
    """(module, validated options) for a part chosen by name. The module has `Config` and `build`.

    Raises:
        GessoError: no name, an unknown name or an unknown option.
    """
    if "name" not in spec:
        raise GessoError(f"{kind} {spec!r} lacks 'name': one of {', '.join(modules(kind))}.")
    found = module(kind, spec["name"])
    options = {k: v for k, v in spec.items() if k != "name"}
    return found, validate(found.Config, options, f"{kind} {spec['name']!r}")


def build(kind: str, spec: Spec) -> Any:
    """Build a part chosen by name: `module.build(options)`."""
    found, options = resolve(kind, spec)
    return found.build(options)


def recipes() -> dict[str, Path]:
    """The recipes that ship with gesso, by name."""
    return {p.stem: p for p in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


def read_recipe(name_or_path: str) -> tuple[Path, dict[str, Any]]:
    """A recipe's file, found by name or path, and its keys, not validated yet.

    Raises:
        GessoError: no such recipe, or broken YAML.
    """
    import yaml

    shipped = recipes()
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise GessoError(f"There is no recipe file {str(path)!r}: give a path that exists.")
    elif name_or_path in shipped:
        path = shipped[name_or_path]
    else:
        hint = nearest(name_or_path, list(shipped))
        raise GessoError(f"There is no recipe called {name_or_path!r}: {hint}")
    try:
        values = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        first = str(e).splitlines()[0]
        raise GessoError(f"{path} is not readable YAML: {first}.") from None
    if not isinstance(values, dict):
        raise GessoError(f"{path} is not a recipe: it holds no key-value pairs.")
    return path, values


def load_recipe(name_or_path: str, overrides: list[str] | None = None) -> Recipe:
    """A recipe by name (`gesso/recipes/NAME.yaml`) or path, with `key.sub=value` overrides.

    Values are read as YAML, so `train.lr=1e-4`, `data.buckets=true` and lists work.

    Raises:
        GessoError: no such recipe, broken YAML, an unknown key, an override without "=", or a
            recipe of several stages (`gesso.train.stages` loads those).
    """
    path, values = read_recipe(name_or_path)
    if "stages" in values:
        raise GessoError(
            f"{path} is a recipe of the stages {', '.join(values['stages'] or {})}: only "
            "`gesso train` and `gesso plan` run stages; name a recipe without them."
        )
    for item in overrides or []:
        override(values, item)
    return validate(Recipe, values, f"Recipe {path.name}")


def override(values: dict[str, Any], item: str) -> None:
    """Set the key of an override "a.b=value", in place; the value is read as YAML.

    Raises:
        GessoError: it has no "=", or goes into a value that has no keys.
    """
    import yaml

    key, eq, text = item.partition("=")
    if not eq or not key:
        raise GessoError(
            f"The override {item!r} is not of the form key=value: write train.lr=1e-4."
        )
    *parents, last = key.split(".")
    for part in parents:
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            raise GessoError(f"The override {item!r} reaches into {part!r}, which has no keys.")
    value = yaml.safe_load(text)
    if isinstance(value, str):  # YAML 1.1 reads 1e-4 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    values[last] = value
