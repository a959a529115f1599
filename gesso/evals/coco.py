"""COCO's 80 classes: what most detectors know."""

from __future__ import annotations

from gesso.config import nearest
from gesso.types import GessoError

# fmt: off
COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)
# fmt: on

SYNONYMS = {
    "computer mouse": "mouse",
    "tv remote": "remote",
    "computer keyboard": "keyboard",
    "television": "tv",
    "sofa": "couch",
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "mobile phone": "cell phone",
    "doughnut": "donut",
    "fridge": "refrigerator",
    "hair dryer": "hair drier",
}
"""Benchmarks' names (the first three are GenEval's) -> COCO's."""


def class_indices(wanted: tuple[str, ...], known: dict[str, int], judge: str) -> dict[int, str]:
    """Index of each wanted class among those that a detector knows -> the name that was asked for.

    Args:
        wanted: names as a benchmark writes them; a synonym of a COCO class stands for that class.
        known: the detector's own names, in lower case -> index.
        judge: its name, for the message.

    Raises:
        GessoError: a class that the detector does not know.
    """
    found: dict[int, str] = {}
    for name in wanted:
        own = name.lower()
        if own not in known:
            own = SYNONYMS.get(own, own)
        if own not in known:
            raise GessoError(
                f"The judge {judge} does not know the class {name!r}: "
                f"{nearest(own, list(known))}; take a judge that does."
            )
        found[known[own]] = name
    return found
