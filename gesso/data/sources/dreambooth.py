"""A few pictures of one subject, and as many of its class: what DreamBooth learns from.

    L = E |error(subject, "a photo of a sks star")|^2 + E |error(prior, "a photo of a star")|^2

(Ruiz et al. 2023, https://arxiv.org/abs/2208.12242, eq. 2 with weight 1.) The second term keeps
what the model knows of the class; its pictures are the model's own. Both terms are half of the
pictures of this source: the few of the subject come again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import Field

from gesso.config import Config as BaseConfig
from gesso.data.images import SUFFIXES
from gesso.data.source import Entry, EntrySource, digest, stamp
from gesso.types import Bad, Caption, GessoError


class Config(BaseConfig):
    """Options of the DreamBooth source.

    Attributes:
        path: a folder with pictures of the subject, three to ten of them; captions are not read.
        prompt: of all of them: a word that means nothing yet, and the class.
        class_prompts: of the prior's pictures; more than one keep more of what the model knows.
        prior: a folder with pictures of the class, or None. `gesso train` paints them with the
            model that it starts from and fills this in, unless `prior_pictures` is 0.
        prior_pictures: how many are painted, the class prompts in turn.
        background: the colour behind transparent pixels.
    """

    path: str
    prompt: str = Field(min_length=1)
    class_prompts: list[str] = Field(min_length=1)
    prior: str | None = None
    prior_pictures: int = Field(default=64, ge=0)
    background: str = "white"


class DreamBoothSource(EntrySource):
    """Pictures of the subject under several keys, and the prior's, equally many of both."""

    def __init__(self, options: Config) -> None:
        super().__init__(options.background)
        self._options = options
        self._subject = _pictures(options.path)
        self._prior = [] if options.prior is None else _pictures(options.prior)

    def __len__(self) -> int:
        return max(len(self._subject), len(self._prior)) + len(self._prior)

    def entries(self) -> Iterator[Entry | Bad]:
        options, subject = self._options, self._subject
        prompt = [Caption(options.prompt)]
        for i in range(max(len(subject), len(self._prior))):
            file = subject[i % len(subject)]
            yield Entry(f"subject/{i // len(subject)}/{file.name}", file, prompt, {})
        for i, file in enumerate(self._prior):
            text = options.class_prompts[i % len(options.class_prompts)]
            yield Entry(f"prior/{file.name}", file, [Caption(text)], {})

    def fingerprint(self) -> str:
        options = self._options.model_dump(exclude={"path", "prior", "background"})
        stamps = [(p.name, *stamp(p)) for p in (*self._subject, *self._prior)]
        return digest("dreambooth", options, self.background, stamps)


def build(options: Config) -> DreamBoothSource:
    """List the pictures.

    Raises:
        GessoError: a folder is not there or has no pictures.
    """
    return DreamBoothSource(options)


def _pictures(folder: str) -> list[Path]:
    """The pictures in a folder, by name."""
    path = Path(folder)
    if not path.is_dir():
        raise GessoError(
            f"There is no folder {folder!r}: set data.source.path to one with three to ten "
            "pictures of the subject."
        )
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in SUFFIXES)
    if not found:
        raise GessoError(f"The folder {folder} has no pictures: put three to ten of them there.")
    return found
