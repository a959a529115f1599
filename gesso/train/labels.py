"""Class labels: their names, and whether they fit the backbone."""

from __future__ import annotations

from gesso.config import Spec
from gesso.data.shards import Cache
from gesso.data.source import Source
from gesso.model import Model
from gesso.types import GessoError


def class_names(source: Source) -> list[str]:
    """The classes of a source, by number.

    Raises:
        GessoError: it has none.
    """
    found: list[str] = getattr(source, "class_names", list)()
    if not found:
        raise GessoError(
            "The text encoder `classes` needs the names of the classes, and this source gives "
            "none: set data.source.classes to true where it has that option, or "
            "text_encoder.classes to a list."
        )
    return found


def refuse_labels(cache: Cache, model: Model, objective: Spec) -> None:
    """Refuse what a backbone that reads class labels cannot learn from.

    Where the text encoder is `classes`, it gives the labels and has refused unknown ones.

    Raises:
        GessoError: a picture without a label, or with one out of range (names it); or an objective
            that drops captions and leaves labels.
    """
    known = getattr(model.backbone, "num_classes", None)
    if known is None or getattr(model.text_encoder, "gives_labels", False):
        return
    if objective.get("null", "empty") == "empty":
        raise GessoError(
            "The backbone reads class labels beside a text encoder, and without a caption the label"
            " would stay: set objective.null to learned."
        )
    for shard in (shard for shards in cache.groups.values() for shard in shards):
        wrong = ((shard.labels < 0) | (shard.labels >= known)).nonzero()
        if len(wrong):
            row = int(wrong[0])
            label = int(shard.labels[row])
            what = "has no class label" if label < 0 else f"has the class label {label}"
            raise GessoError(
                f"The picture {shard.keys[row]} {what}, and the backbone has {known} classes, 0 to "
                f"{known - 1}: correct the labels or set backbone.num_classes."
            )
