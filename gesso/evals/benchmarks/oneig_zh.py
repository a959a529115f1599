"""OneIG-Bench in Chinese."""

from __future__ import annotations

from typing import ClassVar

from gesso.evals.benchmarks.oneig import GRAPHS, OneIG
from gesso.evals.types import Published


class OneIGChinese(OneIG):
    title = "OneIG-Bench (Chinese)"
    table: ClassVar[str] = "OneIG-Bench-ZH.csv"
    column: ClassVar[str] = "prompt_cn"
    graphs: ClassVar[dict[str, str]] = GRAPHS | {"Multilingualism": "multilingualism"}
    suffix: ClassVar[str] = "_zh"
    most_edits: ClassVar[int] = 50
    published: ClassVar[tuple[Published, ...]] = ()


BENCHMARK = OneIGChinese
