"""How well a picture shows a text, by whatever a judge can do: for prompts without questions."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Any

from gesso.evals.types import YES_NO, Ask, Match, Picture, Question, Rate, Verdict

NEEDS = ("rate|answer|similarity",)
LOW, HIGH = 1.0, 5.0
CRITERION = (
    "How well does this picture show the following text? 5: everything in it is there and right; "
    "1: nothing is. Text: {text}"
)
QUESTION = 'Does this figure show "{text}"? Please answer yes or no.'

AskedVerdict = Generator[Sequence[Ask], list[Any], Verdict]


def alignment(picture: Picture, text: str, abilities: frozenset[str]) -> AskedVerdict:
    """Agreement of a picture with a text, in [0, 1].

    A judge that rates gives a grade from 1 to 5, here (grade - 1) / 4. One that answers gives the
    probability of "yes" (VQAScore, Lin et al., arXiv 2404.01291). One with similarities only gives
    the cosine, floored at 0.
    """
    if "rate" in abilities:
        (grade,) = yield [Rate(picture, CRITERION.format(text=text), LOW, HIGH)]
        if grade.value is None:
            return Verdict(None, abstained=1)
        score = (grade.value - LOW) / (HIGH - LOW)
        return Verdict(score, [grade.text or f"rated {grade.value:g}"] if score < 1 else [])
    if "answer" in abilities:
        (answer,) = yield [Question(picture, QUESTION.format(text=text), YES_NO)]
        score = answer.p_yes
        if score is None:
            if not answer.choice:
                return Verdict(None, abstained=1)
            score = float(answer.choice == "yes")
        return Verdict(score, [f"yes with {score:.2f}"] if score < 0.95 else [])
    ((cosine,),) = yield [Match(picture, ((text,),))]
    return Verdict(max(cosine, 0.0), [f"cosine {cosine:.3f}"])
