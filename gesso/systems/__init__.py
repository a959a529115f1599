"""Published systems, one file each, found by file name and imported only when asked for.

A system's module has

    SYSTEM      what it is, a `System`
    RECIPE      the name of the recipe that trains it at a size that an ordinary machine can carry
    tiny()      that recipe as a `Recipe` that trains from nothing in a second or two: what the
                test battery runs (tests/test_systems.py). A second recipe, of a tokenizer or an
                adapter, is another function whose name begins with `tiny_`
    claim()     a list of `gesso.experiments.design.Experiment`: what `gesso reproduce` runs

docs/adding-a-system.md writes one from beginning to end.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gesso import config
from gesso.config import Recipe, module, modules, nearest
from gesso.experiments.verdict import CONTRADICTED, NOT_SHOWN, SHOWN
from gesso.train import stages
from gesso.train.stages import Stage
from gesso.types import GessoError

MEASURED = "measured"
"""A figure that nothing was claimed about."""

NOT_YET = "not yet measured"


@dataclass(frozen=True)
class Finding:
    """What was measured of a claim.

    Attributes:
        text: what was found, with the figures, in a sentence.
        verdict: `SHOWN`, `NOT_SHOWN` or `CONTRADICTED` as `gesso reproduce` judged, or `MEASURED`.
    """

    text: str
    verdict: str = MEASURED


@dataclass(frozen=True)
class System:
    """What a system is.

    Attributes:
        title: as published.
        paper: arXiv id.
        adds: what it brings, one line.
        published: what its authors released.
        differs: what is otherwise here.
        read: files to read, in order, relative to the package.
        commands: to try it.
        measured: what became of its claims here, the main one first; none: nothing yet.
    """

    title: str
    paper: str
    adds: str
    published: str
    differs: str
    read: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    measured: list[Finding] = field(default_factory=list)

    @property
    def status(self) -> str:
        """How its claims fared: "2 shown, 1 contradicted"."""
        verdicts = [finding.verdict for finding in self.measured]
        judged = [v for v in (SHOWN, NOT_SHOWN, CONTRADICTED) if v in verdicts]
        if not verdicts or not judged:
            return verdicts[0] if verdicts else NOT_YET
        return ", ".join(f"{verdicts.count(v)} {v}" for v in judged)


def names() -> list[str]:
    """Every system, as the command line knows it."""
    return [name.replace("_", "-") for name in modules("systems")]


def find(name: str) -> Any:
    """A system's module.

    Raises:
        GessoError: no such system, with the nearest ones.
    """
    if name.replace("_", "-") not in names():
        raise GessoError(f"There is no system called {name!r}: {nearest(name, names())}")
    return module("systems", name)


def load_recipe(name: str, overrides: list[str] | None = None) -> Recipe:
    """A recipe by the name of a system or recipe, or by path; see `gesso.config.load_recipe`.

    Raises:
        GessoError: as there; an unknown name lists the nearest recipes and systems.
    """
    return config.load_recipe(_recipe_of(name), overrides)


def load_stages(name: str, overrides: list[str] | None = None) -> list[Stage]:
    """The stages of a recipe, by the same names; see `gesso.train.stages.load_stages`.

    Raises:
        GessoError: as there; an unknown name lists the nearest recipes and systems.
    """
    return stages.load_stages(_recipe_of(name), overrides)


MINIATURE = [
    "init=null",
    "data.source={name: scenes, level: 1, count: 32, height: 32, width: 32}",
    "data.size=32",
    "text_encoder={name: learned, width: 32, depth: 1, heads: 2, max_tokens: 16}",
    "train.minutes=null",
    "train.steps=4",
    "train.batch_size=4",
    "train.warmup=0",
    "train.dtype=float32",
    "train.compile=false",
    "train.processes=1",
    "train.device=cpu",
    "validation.holdout=4",
    "validation.prompts=[a red circle, two stars]",
    "sample.height=32",
    "sample.width=32",
]
"""What is small about every `tiny()`: pictures of 32 px, 4 steps of 4 on the CPU in float32."""


def miniature(recipe: str, *overrides: str, stage: str = "") -> Recipe:
    """A shipped recipe at the size of the test battery, for `tiny()`.

    Args:
        recipe: its name.
        overrides: `key=value` on top of `MINIATURE`: the sizes of the system's own parts.
        stage: of a recipe that has stages.

    Raises:
        GessoError: as `load_stages`.
    """
    found = stages.load_stages(recipe, [*MINIATURE, *overrides])
    return next(one.recipe for one in found if one.name == stage)


def _recipe_of(name: str) -> str:
    if name in names():
        return str(find(name).RECIPE)
    if not name.endswith((".yaml", ".yml")) and name not in config.recipes():
        hint = nearest(name, list({*config.recipes(), *names()}))
        raise GessoError(f"There is no recipe or system called {name!r}: {hint}")
    return name


def table() -> list[dict[str, Any]]:
    """One row a system, for `gesso systems`; `claim` is what became of its main one."""
    rows = []
    for name in names():
        system: System = find(name).SYSTEM
        rows.append(
            {
                "name": name,
                "title": system.title,
                "paper": system.paper,
                "adds": system.adds,
                "status": system.status,
                "claim": system.measured[0].text if system.measured else "",
            }
        )
    return rows


def describe(name: str) -> dict[str, Any]:
    """Everything about one system; files to read come with their line counts.

    Raises:
        GessoError: no such system, with the nearest ones.
    """
    system: System = find(name).SYSTEM
    package = Path(config.__file__).parent
    return {
        "name": name.replace("_", "-"),
        "title": system.title,
        "paper": f"arXiv:{system.paper}",
        "adds": system.adds,
        "published": system.published,
        "differs": system.differs,
        "read": [
            {"file": f"gesso/{file}", "lines": len((package / file).read_text().splitlines())}
            for file in system.read
        ],
        "commands": system.commands,
        "status": system.status,
        "measured": [asdict(finding) for finding in system.measured],
    }
