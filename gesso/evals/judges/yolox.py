"""YOLOX (Ge et al., arXiv 2107.08430): a small COCO detector, as an ONNX file of its authors.

Boxes without masks or colours. Weights: the `yolox_*.onnx` files that the authors publish.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from pydantic import Field

from gesso.config import Config as _Config
from gesso.evals.coco import COCO, class_indices
from gesso.evals.fingerprint import file_digest, fingerprint, source_digest, versions
from gesso.evals.types import Detection, Image, Judge
from gesso.types import GessoError

ABILITIES = ("detect",)
STRIDES = (8, 16, 32)
PADDING = 114.0  # grey around pictures that are not square
KNOWN = {name: i for i, name in enumerate(COCO)}


class Config(_Config):
    """Options of the judge `yolox`."""

    path: str  # the .onnx file, or its folder
    floor: float = Field(default=0.05, ge=0, lt=1)  # boxes below this confidence are not told
    overlap: float = Field(default=0.45, gt=0, le=1)  # IoU above which a class keeps one box
    threads: int | None = Field(default=None, ge=1)  # None: torch's number


class YOLOX(Judge):
    """See the module. One picture at a time: the published files have a fixed batch."""

    def __init__(self, options: Config, device: str | None) -> None:
        file = _onnx_file(options.path)
        self.options = options
        self.session = _session(file, device, options.threads)
        (entry,) = self.session.get_inputs()
        self.input = entry.name
        self.size = int(entry.shape[-1])  # pictures are laid into a square of this side
        rows = sum((self.size // stride) ** 2 for stride in STRIDES)
        shape = self.session.get_outputs()[0].shape
        if len(entry.shape) != 4 or shape[-2:] != [rows, 5 + len(COCO)]:
            raise GessoError(
                f"{str(file)!r} is no YOLOX for COCO (output {shape}, expected [1, {rows}, "
                f"{5 + len(COCO)}]): give a yolox_*.onnx of its authors."
            )
        self.name = f"yolox:{file.stem}"
        self.abilities = ABILITIES
        self.versions = versions("onnxruntime", "opencv-python-headless")
        self.fingerprint = fingerprint(
            file_digest(file), options.floor, options.overlap, source_digest(__name__)
        )

    def detect(
        self, images: Sequence[Image], classes: Sequence[tuple[str, ...]]
    ) -> list[list[Detection]]:
        """Objects of the wanted classes by falling confidence."""
        found = []
        for image, wanted in zip(images, classes, strict=True):
            names = class_indices(wanted, KNOWN, self.name)
            pixels, scale = letterbox(image, self.size)
            (rows,) = self.session.run(None, {self.input: pixels})
            found.append(self._boxes(rows[0], scale, image.shape[:2], names))
        return found

    def _boxes(
        self, rows: np.ndarray, scale: float, size: tuple[int, int], names: dict[int, str]
    ) -> list[Detection]:
        """Decode raw outputs [N, 85] and keep one box of each object."""
        import cv2

        likely = rows[:, 4] > self.options.floor  # a score is no higher than its objectness
        boxes, rows = (
            decode(rows, self.size)[likely] / scale,
            rows[likely],
        )  # in the picture's pixels
        asked = np.fromiter(names, int)
        scores = rows[:, 4:5] * rows[:, 5 + asked]  # [N, asked]: objectness times class
        at, which = np.nonzero(scores > self.options.floor)
        if not len(at):
            return []
        boxes = boxes[at]  # [M, 4]
        confidence = scores[at, which]
        corner_and_size = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
        kept = cv2.dnn.NMSBoxesBatched(
            corner_and_size.tolist(),
            confidence.tolist(),
            which.tolist(),
            self.options.floor,
            self.options.overlap,
        )
        height, width = size
        boxes = boxes.clip(0, [width, height, width, height])
        best = sorted(kept, key=lambda i: -confidence[i])
        return [
            Detection(
                names[int(asked[which[i]])],
                float(confidence[i]),
                (float(boxes[i][0]), float(boxes[i][1]), float(boxes[i][2]), float(boxes[i][3])),
            )
            for i in best
        ]


def letterbox(image: Image, size: int) -> tuple[np.ndarray, float]:
    """A picture as the network takes it: BGR [1, 3, size, size] float32, 0..255, grey padding.

    Returns:
        the input, and how many of its pixels one pixel of the picture became.
    """
    import cv2

    height, width = image.shape[:2]
    scale = min(size / height, size / width)
    inner = (max(1, int(width * scale)), max(1, int(height * scale)))
    canvas = np.full((1, 3, size, size), PADDING, np.float32)
    resized = cv2.resize(image, inner, interpolation=cv2.INTER_LINEAR)
    canvas[0, :, : inner[1], : inner[0]] = resized[..., ::-1].transpose(2, 0, 1)
    return canvas, scale


def decode(rows: np.ndarray, size: int) -> np.ndarray:
    """Raw outputs [N, 85] -> boxes [N, 4] x0, y0, x1, y1 in pixels of the input.

    A centre is (output + cell) x stride, a width or height exp(output) x stride (section 2.1).
    """
    cells, strides = _grid(size)
    center = (rows[:, :2] + cells) * strides
    half = np.exp(rows[:, 2:4]) * strides / 2
    return np.concatenate([center - half, center + half], 1)


@cache
def _grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Cell [N, 2] (x, y) and stride [N, 1] of every row."""
    cells, strides = [], []
    for stride in STRIDES:
        side = size // stride
        y, x = np.divmod(np.arange(side * side), side)
        cells.append(np.stack([x, y], 1))
        strides.append(np.full((side * side, 1), stride))
    return np.concatenate(cells).astype(np.float32), np.concatenate(strides).astype(np.float32)


def _onnx_file(path: str) -> Path:
    given = Path(path)
    if given.is_dir():
        files = sorted(given.glob("*.onnx"))
        if len(files) != 1:
            raise GessoError(f"The folder {path!r} holds {len(files)} .onnx files: name one file.")
        return files[0]
    if not given.is_file():
        raise GessoError(
            f"There is no YOLOX file {path!r}: give a yolox_*.onnx of its authors "
            "(--judge yolox:FILE)."
        )
    return given


def _session(file: Path, device: str | None, threads: int | None):  # type: ignore[no-untyped-def]
    """An onnxruntime session.

    Raises:
        GessoError: onnxruntime is not installed, the device is not there, or no ONNX file.
    """
    import torch

    from gesso.device import pick_device

    try:
        import onnxruntime as ort
    except ImportError:
        raise GessoError("The judge yolox needs onnxruntime: pip install 'gesso[judge]'.") from None
    providers = ["CPUExecutionProvider"]
    if pick_device(device).type == "cuda" and "CUDAExecutionProvider" in (
        ort.get_available_providers()
    ):
        providers.insert(0, "CUDAExecutionProvider")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    # Threads that wait actively between two pictures would take the cores from decoding.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # what goes wrong is raised, too
    try:
        return ort.InferenceSession(str(file), options, providers=providers)
    except Exception as e:  # onnxruntime's errors share no public base
        raise GessoError(
            f"{str(file)!r} cannot be read as an ONNX network ({str(e).splitlines()[0][:120]}): "
            "copy it again."
        ) from None


def build(options: Config, device: str | None) -> YOLOX:
    """The judge.

    Raises:
        GessoError: weights that are absent, damaged or not a YOLOX for COCO.
    """
    return YOLOX(options, device)
