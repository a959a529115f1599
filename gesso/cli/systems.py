"""`gesso systems`."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from gesso.cli._app import app
from gesso.cli._options import Json

NAMES = 18  # columns for a name, or for arXiv:2310.00426


@app.command()
def systems(
    name: Annotated[str | None, typer.Argument(help="Explain one system.")] = None,
    as_json: Json = False,
) -> None:
    """List the published systems, or explain one."""
    from gesso.systems import describe, table

    if name is not None:
        described = describe(name)
        print(json.dumps(described)) if as_json else _explain(described)
        return
    rows = table()
    print(json.dumps(rows)) if as_json else _list(rows)


def _list(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    shown = Table(
        "system", "what it adds", "what was measured here", box=None, padding=(0, 2, 1, 0)
    )
    shown.columns[0].min_width = NAMES
    for row in rows:
        first = f"[bold]{row['name']}[/]\narXiv:{row['paper']}"
        status = f"[bold]{row['status']}[/]"
        shown.add_row(first, escape(row["adds"]), f"{status}\n{escape(row['claim'])}".strip())
    console = Console(highlight=False)
    console.print(shown)
    console.print("gesso systems NAME explains one.")


def _explain(system: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"[bold]{system['name']}[/]  {system['title']}, {system['paper']}\n")
    shown = Table.grid(padding=(0, 2, 1, 0))
    for key in ("adds", "published", "differs"):
        shown.add_row(key, escape(system[key]))
    files = Table.grid(padding=(0, 2, 0, 0))
    for number, file in enumerate(system["read"], 1):
        files.add_row(f"{number}.", file["file"], f"{file['lines']} lines")
    shown.add_row("read", files)
    found = [f"{escape(f['text'])} ([bold]{f['verdict']}[/])" for f in system["measured"]]
    shown.add_row("measured", "\n".join(found) or system["status"])
    console.print(shown)
    for command in system["commands"]:  # whole lines, to be copied
        console.print(f"  {command}", soft_wrap=True, markup=False)
