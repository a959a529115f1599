"""T2I-CompBench's scorers: Huang et al., arXiv 2307.06350.

Two generations of the scorer exist, and their numbers must not be mixed:
    2023    two noun chunks a prompt, whatever they are
    2024    up to eight, without words of place ("the left"); another detector
"""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from gesso.evals.types import YES_NO, Answer, Ask, Box, Detection, Picture, Question, Verdict
from gesso.types import GessoError

NEAR = 150.0  # pixels
OVERLAP = 0.1  # IoU up to which a relation counts in full
DETECTED = 0.5  # confidences must exceed it; spatial scores below it are 0
SAME = 0.9  # share of common area above which two boxes of a class are one object
PLACES = ("top", "the side", "the left", "the right")  # no objects, in the 2024 scorer
PEOPLE = ("girl", "boy", "man", "woman")
SYNONYMS = {
    **dict.fromkeys(PEOPLE, "person"),
    "ship": "boat",
    "telivision": "tv",
    "goldfish": "fish",
    "painting": "picture",
}
DEEP_OVERLAP = 0.5  # IoU from which one object before another counts in full
DEEP = {"in front of": 1, "behind": -1, "hidden by": -1}
"""Relations in depth, and whether the first object is the nearer one."""
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
RELATIONS = (
    "on side of",
    "next to",
    "near",
    "on the left of",
    "on the right of",
    "on the bottom of",
    "on the top of",
)
_PHRASE = re.compile(r"an? (?!.*\b(?:of|with|in|on|at|to|for|from|that)\b)[\w' -]+", re.IGNORECASE)


@dataclass(frozen=True)
class Generation:
    """What differs between the scorers."""

    name: str
    chunks: int
    dropped: tuple[str, ...]


SCORER_2023 = Generation("2023", 2, ())
SCORER_2024 = Generation("2024", 8, PLACES)

AskedVerdict = Generator[Sequence[Ask], list[Any], Verdict]


@cache
def _spacy() -> Any:
    """spaCy's small English pipeline, or None where it is not installed."""
    try:
        import spacy

        return spacy.load("en_core_web_sm")
    except (ImportError, OSError):
        return None


def noun_chunks(text: str, generation: Generation) -> list[str]:
    """The phrases that are asked about.

    "a X and a Y" needs no parser; any other sentence is parsed by spaCy, as in the paper.

    Raises:
        GessoError: another sentence, and no spaCy.
    """
    phrases = text.strip(" .").split(" and ")
    if all(_PHRASE.fullmatch(phrase) for phrase in phrases):
        found = phrases
    elif (parser := _spacy()) is not None:
        found = [chunk.text for chunk in parser(text).noun_chunks]
    else:
        raise GessoError(
            f"The noun phrases of {text!r} need spaCy: pip install spacy, and its model "
            "en_core_web_sm."
        )
    return [chunk for chunk in found if chunk not in generation.dropped][: generation.chunks]


def binding(picture: Picture, text: str, generation: Generation) -> AskedVerdict:
    """BLIP-VQA: the product of P(yes) to "<noun chunk>?" over the chunks."""
    chunks = noun_chunks(text, generation)
    answers = yield [Question(picture, f"{chunk}?", YES_NO) for chunk in chunks]
    values = [p_yes(answer) for answer in answers]
    told = [value for value in values if value is not None]
    score = 1.0
    for value in told:
        score *= value
    reasons = [
        f"{chunk}? yes with {value:.2f}"
        for chunk, value in zip(chunks, values, strict=True)
        if value is not None and value < 0.5
    ]
    whole = len(told) == len(values)  # a product without a factor would be too high
    return Verdict(
        score if whole else None, reasons, asked=len(values), abstained=len(values) - len(told)
    )


def p_yes(answer: Answer) -> float | None:
    """Probability of "yes"; of a judge without probabilities 1 or 0; None: it abstained."""
    if answer.p_yes is not None:
        return answer.p_yes
    return {"yes": 1.0, "no": 0.0}.get(answer.choice)


def relation_score(relation: str, a: Box, b: Box) -> float:
    """How well box a stands in a relation to box b, in [0, 1].

    Nearness counts in full within 150 pixels on either axis, and falls with the longer distance.
    A direction must be that of the longer distance; above an IoU of 0.1 it counts 0.1 / IoU.
    """
    dx = (b[0] + b[2] - a[0] - a[2]) / 2
    dy = (b[1] + b[3] - a[1] - a[3]) / 2
    if relation in ("next to", "on side of", "near"):
        return 1.0 if min(abs(dx), abs(dy)) < NEAR else NEAR / max(abs(dx), abs(dy))
    holds = {
        "on the left of": dx > 0 and abs(dx) > abs(dy),
        "on the right of": dx < 0 and abs(dx) > abs(dy),
        "on the top of": dy > 0 and abs(dy) > abs(dx),
        "on the bottom of": dy < 0 and abs(dy) > abs(dx),
    }
    if not holds.get(relation, False):
        return 0.0
    overlap = _iou(a, b)
    return 1.0 if overlap < OVERLAP else OVERLAP / overlap


def _iou(a: Box, b: Box) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


def spatial_score(found: Sequence[Detection], a: str, b: str, relation: str) -> float:
    """0.25 conf_a + 0.25 conf_b + 0.5 relation; what is below one half is 0.

    Args:
        found: the most confident object of a class is taken.
        a, b: classes.
        relation: one of `RELATIONS`.
    """
    best = most_confident(found)
    score = sum(0.25 * best[name].confidence for name in (a, b) if name in best)
    if a in best and b in best:
        score += 0.5 * relation_score(relation, best[a].box, best[b].box)
    return score if score >= DETECTED else 0.0


def most_confident(found: Sequence[Detection]) -> dict[str, Detection]:
    """By class, of those that count as detected."""
    best: dict[str, Detection] = {}
    for detection in found:
        if detection.confidence > DETECTED:
            known = best.get(detection.label)
            if known is None or detection.confidence > known.confidence:
                best[detection.label] = detection
    return best


def depth_score(
    a: Detection | None, b: Detection | None, relation: str, nearness: Sequence[float]
) -> float:
    """0.25 conf_a + 0.25 conf_b + 0.5 relation, without the cut of the other spatial scores.

    The relation is 0 where the boxes are apart or the order in depth is wrong. Else it is 1 from an
    IoU of one half on, and below it 2 IoU. (As released. There the depth map is looked up with x
    and y exchanged; here the boxes are where they are in the picture.)

    Args:
        a, b: the objects; None: not detected.
        relation: one of `DEEP`.
        nearness: of a and b, where both are there.
    """
    score = sum(0.25 * found.confidence for found in (a, b) if found is not None)
    if a is None or b is None:
        return score
    if DEEP[relation] * (nearness[0] - nearness[1]) <= 0:
        return score
    return score + 0.5 * min(1.0, _iou(a.box, b.box) / DEEP_OVERLAP)


def parse_relation(text: str, relations: Sequence[str] = RELATIONS) -> tuple[str, str, str]:
    """(a, relation, b) of "a X <relation> a Y", people as "person".

    Raises:
        GessoError: another sentence.
    """
    for relation in relations:
        match = re.match(rf"^an? (.+?) {relation} an? (.+?)\.?$", text, re.IGNORECASE)
        if match:
            a, b = match.groups()
            return person(a), relation, person(b)
    raise GessoError(
        f"{text!r} names no relation of T2I-CompBench ({', '.join(relations)}): give its own "
        "spatial prompts."
    )


def person(name: str) -> str:
    """What detectors call it."""
    return "person" if name in PEOPLE else name


def related_nouns(text: str) -> tuple[str, str, str] | None:
    """(a, relation, b) in a free sentence: the nouns before and after the words of place.

    None where there is not one such pair. The relation is "" for "on top of", which the released
    scorer finds and then gives no credit for.

    Raises:
        GessoError: there is a relation, but no spaCy to find the nouns.
    """
    places = {"on top of": "", "on the left": "on the left of", "on the right": "on the right of"}
    places |= {name: name for name in ("next to", "on side of", "near")}
    place = next((p for p in places if re.search(rf"\b{p}\b", text)), None)
    if place is None:
        return None
    parser = _spacy()
    if parser is None:
        raise GessoError(
            f"The nouns of {text!r} need spaCy: pip install spacy, and its model en_core_web_sm."
        )
    before, after = text.split(place, 1)
    nouns = [
        [token.text for token in parser(part) if token.pos_ in ("NOUN", "PROPN")]
        for part in (before, after)
    ]
    if not nouns[0] or not nouns[1]:
        return None
    return person(nouns[0][-1]), places[place], person(nouns[1][0])


def parse_counts(text: str, singular: dict[str, str]) -> list[tuple[str, int]]:
    """(class, count) of each counted object.

    Args:
        singular: singular or plural -> singular, from `new_objects.txt`.
    """
    words = re.findall(r"[a-z']+", text.lower())
    counts = []
    for i, word in enumerate(words):
        number = 1 if word in ("a", "an") else NUMBERS.index(word) + 1 if word in NUMBERS else 0
        if number:
            for length in (2, 1):  # the longer name first
                name = " ".join(words[i + 1 : i + 1 + length])
                if name in singular:
                    counts.append((singular[name], number))
                    break
    return counts


def numeracy_score(found: Sequence[Detection], counts: Sequence[tuple[str, int]]) -> float:
    """For each counted object half for being there and half for the exact count; their mean."""
    kept: list[Detection] = []
    for detection in sorted(found, key=lambda d: -d.confidence):
        if detection.confidence > DETECTED and not any(
            detection.label == k.label and _same(detection.box, k.box) for k in kept
        ):
            kept.append(detection)
    score = 0.0
    for name, count in counts:
        n = sum(d.label == SYNONYMS.get(name, name) for d in kept)
        score += (0.5 * (n > 0) + 0.5 * (n == count)) / len(counts)
    return score


def _same(a: Box, b: Box) -> bool:
    """Whether two boxes share more than nine tenths, of both together or of either."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]) + 1)
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    area_a = (a[2] - a[0] + 1) * (a[3] - a[1] + 1)
    area_b = (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    common = width * height
    return max(common / (area_a + area_b - common), common / area_a, common / area_b) > SAME
