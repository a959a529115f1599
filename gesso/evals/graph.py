"""Question graphs: what a prompt claims, as questions of which some presuppose others.

TIFA (Hu et al., arXiv 2303.11897), DSG (Cho et al., arXiv 2310.18235) and DPG-Bench (Hu et al.,
arXiv 2403.05135) are this with other questions and rules.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gesso.evals.prompt_files import read_csv
from gesso.evals.types import (
    YES_NO,
    Ask,
    MatchText,
    Picture,
    Prompt,
    Question,
    Verdict,
)
from gesso.types import GessoError


@dataclass(frozen=True, slots=True)
class Node:
    """One question.

    Attributes:
        id: unique within its prompt.
        text: the question.
        parents: ids of questions that must be answered rightly for this one to count.
        category: for scores by category; "" = none.
        answer: the right one.
        choices: the possible ones.
    """

    id: str
    text: str
    parents: tuple[str, ...] = ()
    category: str = ""
    answer: str = "yes"
    choices: tuple[str, ...] = YES_NO


def zeroed(
    right: Mapping[str, float | None], nodes: Sequence[Node], cascade: bool
) -> dict[str, float | None]:
    """Scores with children of wrong parents set to 0.

    Args:
        right: 1, 0, or None where the judge abstained, by question id.
        cascade: a question that was zeroed is wrong for its own children, too, as in DPG-Bench
            (in the questions' order); else only what was answered wrongly is, as in DSG.
    """
    result = dict(right)
    told = result if cascade else right
    for node in nodes:
        if any(told.get(parent) == 0 for parent in node.parents) and node.id in result:
            result[node.id] = 0.0
    return result


def grade(nodes: Sequence[Node], answers: Mapping[str, str], cascade: bool = False) -> Verdict:
    """Score the answers to a prompt's questions.

    Args:
        nodes: the questions.
        answers: by question id; "" = the judge abstained. An abstention counts neither as right
            nor as wrong: it is left out of the mean and zeroes no child.

    Returns:
        score: mean over questions after zeroing. parts: by category, before zeroing.
    """
    right: dict[str, float | None] = {}
    reasons: list[str] = []
    parts: dict[str, list[float]] = {}
    for node in nodes:
        answer = answers[node.id]
        value = right[node.id] = float(answer == node.answer) if answer else None
        if value is not None and node.category:
            parts.setdefault(node.category, []).append(value)
        if value == 0:
            told = "no" if node.choices == YES_NO else f"{answer}, not {node.answer}"
            reasons.append(f"{node.text} {told}")
    after = zeroed(right, nodes, cascade)
    counted = [value for value in after.values() if value is not None]
    return Verdict(
        sum(counted) / len(counted) if counted else None,
        reasons,
        parts,
        asked=len(nodes),
        abstained=sum(value is None for value in right.values()),
    )


def ask_yes_no(
    picture: Picture, nodes: Sequence[Node]
) -> Generator[Sequence[Ask], list[Any], dict[str, str]]:
    """Put questions of which "yes" is right; the choice of each, by id."""
    replies = yield [Question(picture, node.text, node.choices) for node in nodes]
    return {node.id: reply.choice for node, reply in zip(nodes, replies, strict=True)}


def ask_freely(
    picture: Picture, nodes: Sequence[Node]
) -> Generator[Sequence[Ask], list[Any], dict[str, str]]:
    """Put questions without their choices; what is not among them becomes the nearest choice.

    Nearest by the cosine of sentence embeddings (TIFA, section 3).
    """
    replies = yield [Question(picture, node.text) for node in nodes]
    said = {node.id: reply.text.strip().lower() for node, reply in zip(nodes, replies, strict=True)}
    chosen = {}
    unclear = []
    for node in nodes:
        exact = [choice for choice in node.choices if choice.lower() == said[node.id]]
        chosen[node.id] = exact[0] if exact else ""
        if said[node.id] and not exact:
            unclear.append(node)
    if unclear:
        cosines = yield [MatchText(said[node.id], node.choices) for node in unclear]
        for node, row in zip(unclear, cosines, strict=True):
            best = max(range(len(row)), key=lambda i: row[i])
            chosen[node.id] = node.choices[best]
    return chosen


def nodes_of(prompt: Prompt) -> list[Node]:
    """The questions in a prompt's `meta["questions"]`."""
    return [
        Node(
            row["id"],
            row["text"],
            tuple(row["parents"]),
            row["category"],
            row["answer"],
            tuple(row["choices"]),
        )
        for row in prompt.meta["questions"]
    ]


COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")


def read_graphs(file: Any) -> dict[str, tuple[str, list[Node]]]:
    """Prompts with their questions from a table in DSG's layout (DPG-Bench has it, too).

    Returns:
        item id -> (prompt, questions), in the file's order. A question's category is the head of
        its tuple: "attribute - color".

    Raises:
        GessoError: a column is missing, or holds something else.
    """
    graphs: dict[str, tuple[str, list[Node]]] = {}
    broken: set[str] = set()
    rows = read_csv(file, COLUMNS)
    for row in rows:
        key, item = row["proposition_id"].strip(), row["item_id"]
        parents = [p.strip() for p in row["dependency"].split(",") if p.strip()]
        if not all(p.isdigit() for p in parents):
            broken.add(item)
        node = Node(
            key,
            row["question_natural_language"].strip(),
            tuple(p for p in parents if p != "0"),
            row["tuple"].split("(")[0].strip(),
        )
        graphs.setdefault(item, (row["text"], []))[1].append(node)
    if 2 * len(broken) > len(graphs):
        raise GessoError(
            f"{file} has another layout than expected: its column dependency holds no numbers, as "
            f"in {rows[0]['dependency']!r}."
        )
    # A prompt with a malformed dependency has none: DSG's own code drops them, and its published
    # figures rest on that.
    for item in broken:
        text, nodes = graphs[item]
        graphs[item] = text, [replace(node, parents=()) for node in nodes]
    return graphs
