"""`gesso systems`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from gesso.cli._app import app
from gesso.cli._options import Json


@app.command()
def systems(
    name: Annotated[str | None, typer.Argument(help="Explain one system.")] = None,
    as_json: Json = False,
) -> None:
    """List the published systems, or explain one."""
    from gesso.systems import describe, table

    rows = [describe(name)] if name else table()
    if as_json:
        print(json.dumps(rows[0] if name else rows))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None, show_header=not name)
    for key in rows[0]:
        shown.add_column(key)
    if name:
        shown = Table.grid(padding=(0, 2))
        for key, value in rows[0].items():
            shown.add_row(key, "\n".join(value) if isinstance(value, list) else str(value))
    else:
        for row in rows:
            shown.add_row(*map(str, row.values()))
    Console().print(shown)
