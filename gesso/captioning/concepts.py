"""How much captions say: the concept density of PixArt-alpha (arXiv:2310.00426, table 1).

A noun is *valid* if the captions have it more than ten times. Many valid nouns among the distinct
ones speak for a clean vocabulary; many nouns a picture, for captions that describe it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from gesso.data.open import beside, data_at, open_data
from gesso.data.source import EntrySource, new
from gesso.progress import steps_bar
from gesso.taggers import open_tagger
from gesso.types import Bad, GessoError

VALID = 10  # a noun that occurs more often is valid


@dataclass
class Counted:
    """What was seen of one kind of caption."""

    pictures: int = 0
    captions: int = 0
    words: int = 0
    nouns: Counter[str] = field(default_factory=Counter)

    def row(self, kind: str, valid: int) -> dict[str, Any]:
        """The kind's row of the table."""
        vn, total = sum(n > valid for n in self.nouns.values()), self.nouns.total()
        return {
            "kind": kind,
            "pictures": self.pictures,
            "captions": self.captions,
            "words_per_caption": self.words / self.captions,
            "valid_nouns": vn,
            "distinct_nouns": len(self.nouns),
            "valid_share": vn / len(self.nouns) if self.nouns else 0.0,
            "total_nouns": total,
            "nouns_per_picture": total / self.pictures,
            "nouns_per_caption": total / self.captions,
        }


def concepts(
    path: str,
    *,
    overrides: list[str] | None = None,
    tagger: str = "textblob",
    kinds: list[str] | None = None,
    valid: int = VALID,
    limit: int | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Count the nouns of a source's captions, kind by kind; nothing is decoded where that can be.

    What `gesso caption` wrote beside the pictures is counted too, unless `data.captions` names
    other files.

    Args:
        path, overrides: see `gesso.data.open.data_at`.
        tagger: a file of `gesso/taggers/`.
        kinds: of captions; None: all.
        valid: a noun that occurs more often than this is valid.
        limit: only the first so many pictures.
        quiet: show no progress.

    Returns:
        path, tagger, valid; kinds: a row each, as `Counted.row` makes it, in order of appearance.

    Raises:
        GessoError: bad input, no captions, or none of a kind that was asked for.
    """
    nouns = open_tagger(tagger)
    data = data_at(path, overrides)
    if not data.captions and beside(data.source).is_file():
        data.captions = [str(beside(data.source))]
    source = open_data(data)
    limit = data.limit if limit is None else limit
    seen: dict[str, Counted] = defaultdict(Counted)
    done = 0
    entries = new(source.entries()) if isinstance(source, EntrySource) else new(iter(source))
    with steps_bar("counting", quiet) as show:
        for item in entries:
            if limit is not None and done >= limit:
                break
            if isinstance(item, Bad):
                continue
            done += 1
            for kind in dict.fromkeys(c.kind for c in item.captions):
                seen[kind].pictures += 1
            for caption in item.captions:
                counted = seen[caption.kind]
                counted.captions += 1
                counted.words += len(caption.text.split())
                counted.nouns.update(nouns(caption.text))
            if done % 100 == 0:
                show(done, limit)
    if not seen:
        raise GessoError(
            f"None of the {done} pictures of {path} has a caption: write some with `gesso caption`."
        )
    missing = [kind for kind in kinds or [] if kind not in seen]
    if missing:
        raise GessoError(
            f"{path} has no captions of the kind {missing[0]!r} but {', '.join(seen)}: choose one."
        )
    rows = [seen[kind].row(kind, valid) for kind in kinds or seen]
    return {"path": path, "tagger": tagger, "valid": valid, "pictures": done, "kinds": rows}
