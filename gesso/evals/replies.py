"""What language models are asked, and what their free replies mean."""

from __future__ import annotations

import re
from collections.abc import Sequence

from gesso.evals.types import YES_NO, Answer, Rating

READING = (
    "Write down every word that is written in the picture, line by line, exactly as it is spelled. "
    "Reply with these words only. If there is no writing, reply: NONE"
)
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?")
_OUT_OF = re.compile(r"\s*(?:/|out of|of)\s*\d+(?:\.\d+)?", re.IGNORECASE)


def ask(question: str, choices: Sequence[str]) -> str:
    """The question with how to reply to it."""
    if tuple(choices) == YES_NO:
        return f"{question} Reply with yes or no only."
    if choices:
        return f"{question} Reply with one of these and nothing else: {'; '.join(choices)}."
    return f"{question} Reply with a word or a short phrase."


def ask_rating(criterion: str, low: float, high: float) -> str:
    """The criterion with how to reply to it."""
    return f"{criterion} Reply with one number from {low:g} to {high:g} and nothing else."


def parse_answer(text: str, choices: Sequence[str], p_yes: float | None = None) -> Answer:
    """A reply with the choice that it makes, if it makes one; without one, P(yes) is moot."""
    choice = parse_choice(text, choices)
    return Answer(text.strip(), choice, p_yes if choice else None)


def parse_choice(text: str, choices: Sequence[str]) -> str:
    """Which choice a reply makes; "" if none, or if it names several.

    The whole reply counts first, then what it begins with, then the one choice that occurs in it.
    """
    said = _plain(text)
    plain = {choice: _plain(choice) for choice in choices}
    for found in (
        [c for c, p in plain.items() if said == p],
        [c for c, p in plain.items() if said.startswith(p + " ")],
        [c for c, p in plain.items() if f" {p} " in f" {said} "],
    ):
        if found:  # of choices that begin alike, the longest is meant
            longest = max(found, key=len)
            parts = all(f" {plain[c]} " in f" {plain[longest]} " for c in found)
            return longest if parts else ""
    return ""


def parse_rating(text: str, low: float, high: float) -> Rating:
    """A reply's number within the scale; none, or several, is an abstention.

    "4/5" and "4 out of 5" are 4.
    """
    numbers = {float(n) for n in _NUMBER.findall(_OUT_OF.sub(" ", text))}
    if len(numbers) == 1 and low <= (value := numbers.pop()) <= high:
        return Rating(value, text.strip())
    return Rating(None, text.strip())


def parse_reading(text: str) -> str:
    """The words that a reply to `READING` tells."""
    return "" if text.strip().strip(".").upper() == "NONE" else text.strip()


def _plain(text: str) -> str:
    """Lower case, words parted by single spaces, without punctuation."""
    return " ".join(re.sub(r"[^\w]+", " ", text.lower()).split())
