"""What crosses the borders between pictures, judges and benchmarks.

A benchmark never calls a judge. It *asks*: `Benchmark.judge` is a coroutine that yields lists of
asks and is sent their replies. So the job can answer the asks of many pictures in one batch, keep
every reply on disk, and score again without a judge. A judge only answers: one method an ability.

    class MyBenchmark(Benchmark):
        def judge(self, prompt, pictures):
            found = yield from detect(pictures[0], ("dog",))
            yes = yield from question(pictures[0], "Is the dog brown?", YES_NO)
            return Verdict(float(bool(found) and yes.choice == "yes"))
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from gesso.types import GessoError

Image = np.ndarray
"""[H, W, 3] uint8, RGB."""

Grid = tuple[int, int]
"""Rows and columns of a sheet of pictures."""

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels of the picture; y points down."""

YES_NO = ("yes", "no")

# ---------------------------------------------------------------------------------- pictures


class Picture:
    """A picture that is read when it is looked at, or pixels at hand (a crop, a render).

    Attributes:
        file: where it is, or None.
        seed: it was painted from, or None.
    """

    def __init__(
        self, file: Path | None = None, pixels: Image | None = None, seed: int | None = None
    ) -> None:
        if (file is None) == (pixels is None):
            raise ValueError("a picture has either a file or pixels")
        self.file = file
        self.seed = seed
        if pixels is not None:
            self.pixels = pixels

    @cached_property
    def pixels(self) -> Image:
        """[H, W, 3] uint8; transparency is laid on white. Kept as long as the picture object is.

        Raises:
            GessoError: the file is corrupt.
        """
        from gesso.data.images import load_rgb

        assert self.file is not None
        return load_rgb(self.__dict__.pop("_bytes", None) or self.file.read_bytes())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file's bytes, or of shape and pixels."""
        if self.file is not None:
            self._bytes = self.file.read_bytes()  # until the pixels are looked at
            return hashlib.sha256(self._bytes).hexdigest()
        pixels = np.ascontiguousarray(self.pixels)
        return hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()

    def forget(self) -> None:
        """Let go of pixels that can be read again."""
        self.__dict__.pop("_bytes", None)
        if self.file is not None:
            self.__dict__.pop("pixels", None)

    def tiles(self, rows: int, columns: int) -> list[Picture]:
        """The pictures of a sheet, row by row; what an uneven division leaves is cut off."""
        return [Tile(self, (i, j), (rows, columns)) for i in range(rows) for j in range(columns)]


class Tile(Picture):
    """One picture of a sheet: the sheet's file, and a digest of its own.

    Attributes:
        sheet: the whole picture.
        place, grid: (row, column), of so many.
    """

    def __init__(self, sheet: Picture, place: tuple[int, int], grid: Grid) -> None:
        self.file, self.seed = sheet.file, sheet.seed
        self.sheet, self.place, self.grid = sheet, place, grid

    @cached_property
    def pixels(self) -> Image:
        """[H // rows, W // columns, 3] uint8.

        Raises:
            GessoError: the sheet is corrupt, or has fewer pixels a side than tiles.
        """
        (row, column), (rows, columns) = self.place, self.grid
        whole = self.sheet.pixels
        height, width = whole.shape[0] // rows, whole.shape[1] // columns
        if not height or not width:
            raise GessoError(
                f"The picture of {whole.shape[0]}x{whole.shape[1]} pixels is no sheet of "
                f"{rows}x{columns} pictures."
            )
        top, left = row * height, column * width
        return whole[top : top + height, left : left + width].copy()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the sheet's digest and the place in it."""
        told = f"{self.sheet.digest} {self.place} {self.grid}"
        return hashlib.sha256(told.encode()).hexdigest()

    def forget(self) -> None:
        """Let go of the pixels, the sheet's, too."""
        super().forget()
        self.sheet.forget()


# ----------------------------------------------------------------------------------- replies


@dataclass(slots=True)
class Detection:
    """One object that a detector found.

    Attributes:
        label: one of the classes asked for.
        confidence: in [0, 1].
        box: in pixels of the picture.
        mask: [H, W] bool at the picture's size, or None: the detector gives boxes only.
        color, size, texture: what the detector tells of it (the reader does), else "".
    """

    label: str
    confidence: float
    box: Box
    mask: np.ndarray | None = None
    color: str = ""
    size: str = ""
    texture: str = ""


@dataclass(slots=True)
class Answer:
    """A reply to a question.

    Attributes:
        text: as the judge said it.
        choice: which of the choices that is; "" = abstained: it said nothing, or nothing that is
            one of them. A question without choices is answered by `text` alone.
        p_yes: probability of "yes" in [0, 1], from a judge that has one, else None.
    """

    text: str
    choice: str = ""
    p_yes: float | None = None


@dataclass(slots=True)
class Rating:
    """A grade on a scale; `value` None = abstained. `text` is what the judge said."""

    value: float | None
    text: str = ""


# -------------------------------------------------------------------------------------- asks


@dataclass(frozen=True, slots=True)
class Detect:
    """-> list[Detection], any confidence and order. Needs the ability "detect"."""

    picture: Picture
    classes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Question:
    """-> Answer. No choices: a free answer. Needs the ability "answer"."""

    picture: Picture
    text: str
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Match:
    """-> list[float], a cosine similarity in [-1, 1] for each text. Needs "similarity".

    A text is a tuple of wordings, most often of one. Of several, the embeddings (of length one)
    are averaged and brought to length one again: CLIP's prompt ensemble.
    """

    picture: Picture
    texts: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Read:
    """-> str, the words in the picture, in reading order. Needs the ability "read"."""

    picture: Picture


@dataclass(frozen=True, slots=True)
class Rate:
    """-> Rating from `low` to `high` by `criterion`, a whole instruction. Needs "rate"."""

    picture: Picture
    criterion: str
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Embed:
    """-> [D] float32, a picture's features, of length one. Needs the ability "embed"."""

    picture: Picture


@dataclass(frozen=True, slots=True)
class Style:
    """-> [D] float32, the style as encoders see it, one after the other. Needs the ability "style".

    The features of each encoder have length one.
    """

    picture: Picture


@dataclass(frozen=True, slots=True)
class Depth:
    """-> list[float], how near each box's inside is, in [0, 1]. Needs the ability "depth".

    0 is the farthest place of the picture and 1 the nearest; a box has the mean of its pixels.
    """

    picture: Picture
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True)
class MatchText:
    """-> list[float], cosine of the text with each candidate. Needs "text_similarity"."""

    text: str
    candidates: tuple[str, ...]


Ask = Detect | Question | Match | Read | Rate | Embed | Style | Depth | MatchText
Reply = list[Detection] | Answer | list[float] | str | Rating | np.ndarray

ABILITIES: dict[type, str] = {
    Detect: "detect",
    Question: "answer",
    Match: "similarity",
    Read: "read",
    Rate: "rate",
    Embed: "embed",
    Style: "style",
    Depth: "depth",
    MatchText: "text_similarity",
}
"""Which of a judge's methods answers an ask."""


# ------------------------------------------------------------------------------------ judges


class Judge:
    """Answers asks, in batches. A file in `gesso/evals/judges/` has

        ABILITIES = ("answer",)         the methods below that its judge has; read without loading
        class Config(gesso.config.Config)       its options; `path` is what "NAME:PATH" sets
        def build(options: Config, device: str | None) -> Judge

    A judge overrides the methods of its abilities and no other. Each takes lists of equal length B
    of any size (the judge splits them by `batch_size`) and returns B replies in that order. They
    are deterministic: the job keeps a reply under (fingerprint, picture, what was asked).

    Attributes:
        name: as it stands in results: "reader-level1", "hf-detector:facebook/mask2former-...".
        fingerprint: of everything that changes its replies: weights, options, prompt templates,
            code revision; 16 hex digits.
        abilities: as in the file.
        batch_size: how many pictures its network takes at a time.
        versions: of the libraries that matter, by name.
    """

    name: str
    fingerprint: str
    abilities: tuple[str, ...]
    batch_size: int = 1
    versions: dict[str, str] = {}  # noqa: RUF012

    def detect(
        self, images: Sequence[Image], classes: Sequence[tuple[str, ...]]
    ) -> list[list[Detection]]:
        """Objects of `classes[i]` in `images[i]`, down to a low confidence, without thresholding.

        Raises:
            GessoError: a class that the detector does not know, with those that it knows.
        """
        raise NotImplementedError

    def answer(
        self, images: Sequence[Image], questions: Sequence[str], choices: Sequence[tuple[str, ...]]
    ) -> list[Answer]:
        """Replies to `questions[i]` about `images[i]`; see `Answer` for abstentions."""
        raise NotImplementedError

    def similarity(
        self, images: Sequence[Image], texts: Sequence[tuple[tuple[str, ...], ...]]
    ) -> list[list[float]]:
        """Cosines in [-1, 1] of `images[i]` with each of `texts[i]`, without a learned scale.

        Each text is a tuple of wordings, see `Match`.
        """
        raise NotImplementedError

    def read(self, images: Sequence[Image]) -> list[str]:
        """The words in each picture, in reading order, lines parted by newlines; "": none."""
        raise NotImplementedError

    def rate(
        self, images: Sequence[Image], criteria: Sequence[str], low: float, high: float
    ) -> list[Rating]:
        """A grade in [low, high] for each picture."""
        raise NotImplementedError

    def embed(self, images: Sequence[Image]) -> np.ndarray:
        """[B, D] float32 features of length one."""
        raise NotImplementedError

    def features(self, images: Sequence[Image]) -> np.ndarray:
        """[B, D] float32 features as the network gives them: for metrics, never asked."""
        raise NotImplementedError

    def score(self, images: Sequence[Image], texts: Sequence[str]) -> list[float]:
        """A learned score of each picture and its prompt: for metrics, never asked."""
        raise NotImplementedError

    def style(self, images: Sequence[Image]) -> list[np.ndarray]:
        """[D] float32 of each picture, see `Style`."""
        raise NotImplementedError

    def depth(self, images: Sequence[Image], boxes: Sequence[tuple[Box, ...]]) -> list[list[float]]:
        """How near the inside of each of `boxes[i]` is in `images[i]`, see `Depth`."""
        raise NotImplementedError

    def text_similarity(
        self, texts: Sequence[str], candidates: Sequence[tuple[str, ...]]
    ) -> list[list[float]]:
        """Cosines of `texts[i]` with each of `candidates[i]`."""
        raise NotImplementedError


# -------------------------------------------------------------------------------- benchmarks


@dataclass(slots=True)
class Prompt:
    """What is painted and judged.

    Attributes:
        id: unique within the benchmark; names files, so letters, digits, "-", "_" and "." only.
        text: what the model is given.
        meta: what the benchmark needs to judge it (clauses, questions, words), as plain JSON.
        tags: categories, for the report.
    """

    id: str
    text: str
    meta: dict[str, Any] = field(default_factory=dict)
    tags: tuple[str, ...] = ()


@dataclass(slots=True)
class Verdict:
    """What a benchmark thinks of one picture (or of all of a prompt's, see `together`).

    Attributes:
        score: what the overall score is made of; None: the judge abstained from all of it.
        reasons: one sentence for each thing that lowered the score.
        parts: category -> values, one or more (one a question, one a picture); pooled over
            pictures into the category's mean.
        asked: things that a judge was asked and that count.
        abstained: how many of them it did not answer.
    """

    score: float | None
    reasons: list[str] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=dict)
    asked: int = 1
    abstained: int = 0


Judging = Generator[Sequence[Ask], list[Any], Verdict]
"""Yields asks, is sent as many replies, returns the verdict."""

Means = dict[str, np.ndarray]
"""Category -> mean, [R] float64: R = 1 for the result, R bootstrap resamples for its interval."""


@dataclass(frozen=True, slots=True)
class Published:
    """A score from a paper, to stand beside ours. `judge`: with which it was measured."""

    model: str
    scores: dict[str, float]  # with "overall"
    judge: str
    source: str


@dataclass(slots=True)
class Options:
    """What a benchmark's prompts may depend on, from the command line.

    Attributes:
        prompts: file or folder of `--prompts`, or None: where `folder()` finds it.
        limit: at most so many prompts, spread evenly over the categories; None: all.
        seed: decides prompts that are drawn (scenes) and the seeds of pictures.
        words: vocabulary of the first model, if it has a closed one (scenes choose their level).
        level, split: of scenes.
        per_tag: prompts for each tag, where prompts are made and not read.
    """

    prompts: Path | None = None
    limit: int | None = None
    seed: int = 0
    words: frozenset[str] = frozenset()
    level: int | None = None
    split: str = "test"
    per_tag: int = 20


class Benchmark(ABC):
    """A benchmark is one file in `gesso/evals/benchmarks/` with a class that is bound to the name
    `BENCHMARK`; it is found by its file name.

    Attributes:
        title, source: what it is and which paper says so.
        judge_asked: the published judge, in words; "" if it has none.
        judges: specs of the judges that are taken when none is named.
        needs: abilities that judges must have between them; "rate|answer": either will do.
        abilities: those that the judges have, set before `prompts` and `judge` are called.
        n: pictures a prompt, as published.
        scale: what a score of one is printed as: 1 or 100.
        lower_is_better: of the overall score.
        together: `judge` gets all pictures of a prompt at once (diversity, bias).
        revision: raised when the rules change, so that results stay apart.
        weight: "picture": the overall mean runs over pictures; "prompt": over prompts' means.
        published: scores to stand beside.
    """

    title: ClassVar[str]
    source: ClassVar[str]
    judge_asked: ClassVar[str] = ""
    judges: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]]
    abilities: frozenset[str] = frozenset()
    n: ClassVar[int] = 4
    scale: ClassVar[int] = 1
    lower_is_better: ClassVar[bool] = False
    together: ClassVar[bool] = False
    revision: ClassVar[int] = 1
    weight: ClassVar[str] = "prompt"
    published: ClassVar[tuple[Published, ...]] = ()

    @abstractmethod
    def prompts(self, options: Options) -> list[Prompt]:
        """All prompts in order, whatever `options.limit` says: the job applies it.

        Raises:
            GessoError: no prompt file (with where to get it), or one in another layout.
        """

    @abstractmethod
    def judge(self, prompt: Prompt, pictures: Sequence[Picture]) -> Judging:
        """Judge one picture ([one] picture, or all with `together`), see `Judging`."""

    def name(self, options: Options) -> str:
        """What the result is called, with all that its prompts depend on: the file's name."""
        return type(self).__module__.rpartition(".")[2].replace("_", "-")

    def default_judges(self, options: Options) -> tuple[str, ...]:
        """Specs of the judges that are taken when none is named."""
        return self.judges

    def total(self, mean: np.ndarray, parts: Means) -> np.ndarray:
        """The overall score [R] from the mean of `Verdict.score` [R] and the parts' means.

        It may add categories that are made of others to `parts`, and remove auxiliary ones.
        """
        return mean


def detect(
    picture: Picture, classes: tuple[str, ...]
) -> Generator[Sequence[Ask], list[Any], list[Detection]]:
    """Ask for one picture's objects: `found = yield from detect(picture, classes)`."""
    (found,) = yield [Detect(picture, classes)]
    return found


def question(
    picture: Picture, text: str, choices: tuple[str, ...] = ()
) -> Generator[Sequence[Ask], list[Any], Answer]:
    """Ask one question: `answer = yield from question(picture, text, YES_NO)`."""
    (answer,) = yield [Question(picture, text, choices)]
    return answer


def questions(
    picture: Picture, asked: Sequence[tuple[str, tuple[str, ...]]]
) -> Generator[Sequence[Ask], list[Any], list[Answer]]:
    """Ask several questions (text, choices) at once."""
    answers = yield [Question(picture, text, choices) for text, choices in asked]
    return answers


def match(
    pictures: Sequence[Picture], texts: tuple[tuple[str, ...], ...]
) -> Generator[Sequence[Ask], list[Any], list[list[float]]]:
    """Cosines of each picture with each text (a tuple of wordings, see `Match`)."""
    return (yield [Match(picture, texts) for picture in pictures])


def read(picture: Picture) -> Generator[Sequence[Ask], list[Any], str]:
    """The words in a picture."""
    (text,) = yield [Read(picture)]
    return text
