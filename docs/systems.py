"""Writes the table of docs/systems.md from the systems themselves.

python docs/systems.py
"""

from __future__ import annotations

from pathlib import Path

from gesso.systems import table

PAGE = Path(__file__).parent / "systems.md"
HEAD = "| system | paper | what it adds |\n|---|---|---|\n"


def rows() -> str:
    """The table, in Markdown."""
    lines = (
        f"| `{row['name']}` | [{row['paper']}](https://arxiv.org/abs/{row['paper']}) "
        f"| {row['adds'].replace('|', chr(92) + '|')} |\n"
        for row in table()
    )
    return HEAD + "".join(lines)


if __name__ == "__main__":
    before, _, after = PAGE.read_text().partition(HEAD)
    end = after.index("\n\n") + 1
    PAGE.write_text(before + rows() + after[end:])
