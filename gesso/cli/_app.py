"""The Typer application that every verb file adds its commands to."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from gesso import __version__

ORDER = [
    "paint",
    "train",
    "plan",
    "caption",
    "captions",
    "encode",
    "doctor",
    "evaluate",
    "compare",
    "reproduce",
]
"""Verbs that `gesso --help` lists first; any other follows as its file is found."""


class _Ordered(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda n: ORDER.index(n) if n in ORDER else len(ORDER))


app = typer.Typer(
    name="gesso",
    cls=_Ordered,
    help="Train, speed up, steer and judge text-to-image transformers.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
