"""Reading with RapidOCR (PP-OCR networks through onnxruntime): weights come with the package."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from gesso.config import Config as _Config
from gesso.evals.fingerprint import file_digest, fingerprint, source_digest, versions
from gesso.evals.types import Image, Judge
from gesso.types import GessoError

ABILITIES = ("read",)
SAME_LINE = 0.5  # of a box's height: how far centres of words in one line may be apart


class Config(_Config):
    """Options of the judge `ocr`."""

    floor: float = Field(default=0.5, ge=0, le=1)  # lines below this confidence are not told


class OCR(Judge):
    """See the module."""

    def __init__(self, options: Config) -> None:
        try:
            import rapidocr
        except ImportError:
            raise GessoError("The judge ocr needs rapidocr: pip install 'gesso[judge]'.") from None
        logging.getLogger("RapidOCR").setLevel(logging.ERROR)
        self.options = options
        self.engine: Any = rapidocr.RapidOCR(
            params={"Global.log_level": "error", "Global.text_score": options.floor}
        )
        self.abilities = ABILITIES
        self.name = "ocr:rapidocr"
        self.versions = versions("rapidocr", "onnxruntime")
        weights = sorted((Path(rapidocr.__file__).parent / "models").glob("*.onnx"))
        self.fingerprint = fingerprint(
            options.floor, [file_digest(f) for f in weights], source_digest(__name__)
        )

    def read(self, images: Sequence[Image]) -> list[str]:
        """The words in each picture: lines from top to bottom, within a line from left to right."""
        return [self._read(image) for image in images]

    def _read(self, image: Image) -> str:
        found = self.engine(image[..., ::-1].copy())  # it takes BGR
        if found is None or found.boxes is None:
            return ""
        return "\n".join(lines(list(zip(found.boxes, found.txts, strict=True))))


def lines(words: list[tuple[Any, str]]) -> list[str]:
    """Words with their corners [4, 2] in reading order, those of one line joined by spaces."""
    boxes = []
    for corners, text in words:
        ys = [float(y) for _, y in corners]
        boxes.append((min(ys), max(ys), min(float(x) for x, _ in corners), text))
    rows: list[list[tuple[float, float, float, str]]] = []
    for box in sorted(boxes, key=lambda b: (b[0] + b[1]) / 2):
        middle = (box[0] + box[1]) / 2
        if rows:
            last = rows[-1][0]
            if abs(middle - (last[0] + last[1]) / 2) < SAME_LINE * (last[1] - last[0]):
                rows[-1].append(box)
                continue
        rows.append([box])
    return [" ".join(b[3] for b in sorted(row, key=lambda b: b[2])) for row in rows]


def build(options: Config, device: str | None) -> OCR:
    """The judge; it runs on the processor whatever `device` says.

    Raises:
        GessoError: rapidocr is not installed.
    """
    return OCR(options)
