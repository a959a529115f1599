"""`gesso systems`: the table, the explanations and what they promise: files, commands, names."""

from __future__ import annotations

import importlib.util
import json
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import typer

import gesso
from gesso.cli import app
from gesso.config import modules
from gesso.experiments.verdict import CONTRADICTED, NOT_SHOWN, SHOWN
from gesso.systems import MEASURED, NOT_YET, Finding, System, describe, find, load_stages, names

PACKAGE = Path(gesso.__file__).parent
RUNS_A_RECIPE = {"train", "plan", "encode"}


def system(*verdicts: str) -> System:
    return System("t", "p", "a", "", "", measured=[Finding("text", v) for v in verdicts])


def test_the_table_has_every_system_and_fits_80_columns(call: Any) -> None:
    code, out, _ = call("systems", "--json")
    rows = json.loads(out)
    assert code == 0 and [row["name"] for row in rows] == names()
    assert {name.replace("-", "_") for name in names()} == set(modules("systems"))
    assert all({"paper", "adds", "status", "claim"} <= row.keys() for row in rows)
    code, out, _ = call("systems")
    assert code == 0 and max(map(len, out.splitlines())) <= 80
    for row in rows:
        assert row["name"] in out and f"arXiv:{row['paper']}" in out


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [
        ([], NOT_YET),
        ([MEASURED], MEASURED),
        ([MEASURED, SHOWN], "1 shown"),
        ([CONTRADICTED, SHOWN, SHOWN], "2 shown, 1 contradicted"),
        ([NOT_SHOWN], f"1 {NOT_SHOWN}"),
    ],
)
def test_the_status_follows_from_the_verdicts(verdicts: list[str], status: str) -> None:
    assert system(*verdicts).status == status


@pytest.mark.parametrize("name", names())
def test_a_system_explains_itself(name: str, call: Any) -> None:
    code, out, _ = call("systems", name)
    described = describe(name)
    assert code == 0 and described["paper"] in out
    assert described["read"], "no file to read"
    for entry in described["read"]:
        file = PACKAGE.parent / entry["file"]
        assert len(file.read_text().splitlines()) == entry["lines"]
        assert entry["file"] in out and f"{entry['lines']} lines" in out
    assert all(command in out for command in described["commands"])
    verdicts = {SHOWN, NOT_SHOWN, CONTRADICTED, MEASURED}
    assert {finding["verdict"] for finding in described["measured"]} <= verdicts
    code, out, _ = call("systems", name, "--json")
    assert code == 0 and json.loads(out) == described


@pytest.mark.parametrize("name", names())
def test_its_commands_parse(name: str) -> None:
    """As the command line reads them, without running any; recipes and systems exist."""
    commands = find(name).SYSTEM.commands
    assert any(shlex.split(command)[1] in ("train", "paint") for command in commands)
    for command in commands:
        program, *words = shlex.split(command)
        assert program == "gesso"
        group = typer.main.get_command(app)
        assert isinstance(group, click.Group | typer.core.TyperGroup)
        with group.make_context("gesso", words) as context:
            verb, found, rest = group.resolve_command(context, words)
            parsed = found.make_context(verb, rest, parent=context).params
        if verb in RUNS_A_RECIPE and parsed["recipe"]:
            load_stages(parsed["recipe"], parsed["overrides"])
        if verb == "reproduce":
            experiments = find(parsed["name"]).claim()
            assert parsed["only"] in (None, *(e.name for e in experiments))


def test_the_page_has_the_same_table() -> None:
    file = Path(__file__).parents[1] / "docs" / "systems.py"
    spec = importlib.util.spec_from_file_location("page", file)
    assert spec is not None and spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert page.rows() in page.PAGE.read_text(), "run: python docs/systems.py"


@pytest.mark.parametrize("verb", ["systems", "reproduce", "train", "plan"])
def test_an_unknown_name_is_one_sentence_with_the_nearest(verb: str, call: Any) -> None:
    code, out, err = call(verb, "pixart-alpa")
    assert code == 2 and not out
    assert "'pixart-alpha'" in err and err.count("\n") == 1 and "Traceback" not in err
    code, _, err = call(verb, "xyzzy")
    assert code == 2 and "known:" in err and "pixart-alpha" in err
