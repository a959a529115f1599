"""Rendered words on the built-in world (level 3): spelling of the word, by the reader."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count, islice
from typing import ClassVar

import numpy as np

from gesso.data.scenes import sample_scene
from gesso.data.scenes.captions import dense
from gesso.evals.benchmarks.scenes import Scenes
from gesso.evals.spelling import verdict
from gesso.evals.types import Judging, Means, Options, Picture, Prompt, read

LEVEL = 3  # the one that has words


class SceneText(Scenes):
    title = "Rendered words on scenes"
    source = "gesso's scenes of level 3"
    needs: ClassVar[tuple[str, ...]] = ("read",)
    weight = "prompt"

    def prompts(self, options: Options) -> list[Prompt]:
        """Six times `per_tag` scenes of the split that have a word."""
        scenes = (
            sample_scene(i, level=LEVEL, seed=options.seed, split=options.split) for i in count()
        )
        worded = islice((scene for scene in scenes if scene.word), 6 * options.per_tag)
        return [
            Prompt(f"{i:05}", dense(scene), {"word": scene.word}, (scene.word,))
            for i, scene in enumerate(worded)
        ]

    def name(self, options: Options) -> str:
        return f"scenes-text-{options.split}"

    def default_judges(self, options: Options) -> tuple[str, ...]:
        return (f"reader:level={LEVEL}",)

    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        found = verdict(prompt.meta["word"], (yield from read(pictures[0])))
        assert found.score is not None
        found.parts[prompt.meta["word"]] = [found.score]
        return found

    def total(self, mean: np.ndarray, parts: Means) -> np.ndarray:
        """Mean word accuracy."""
        return mean


BENCHMARK = SceneText
