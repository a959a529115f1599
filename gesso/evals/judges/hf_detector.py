"""Detectors of transformers: boxes, masks where the network has them, confidences.

Three kinds, told apart by the architecture that config.json names:
    instance segmentation with queries   Mask2Former, MaskFormer      boxes and masks
    detection of fixed classes           DETR, RT-DETR, YOLOS, ...    boxes
    detection of named classes           Grounding DINO, OWL-ViT, OWLv2   boxes, any class
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from gesso.evals.coco import class_indices
from gesso.evals.networks import Network, NetworkConfig, in_batches, quiet
from gesso.evals.types import Detection, Image, Judge

ABILITIES = ("detect",)
SEGMENTERS = ("Mask2FormerForUniversalSegmentation", "MaskFormerForInstanceSegmentation")
GROUNDERS = ("GroundingDinoForObjectDetection", "MMGroundingDinoForObjectDetection")
OWLS = ("OwlViTForObjectDetection", "Owlv2ForObjectDetection")


class Config(NetworkConfig):
    """Options of the judge `hf-detector`."""

    batch_size: int = 4
    floor: float = Field(default=0.05, ge=0, lt=1)  # objects below this confidence are not told


class HFDetector(Judge):
    """See the module. Pictures of one size share a batch, so none is padded."""

    def __init__(self, options: Config, device: str | None) -> None:
        self.net = Network(__name__, _architectures(), options, device)
        self.options = options
        self.batch_size = options.batch_size
        self.abilities = ABILITIES
        self.name = f"hf-detector:{options.path}"
        self.fingerprint, self.versions = self.net.fingerprint, self.net.versions
        labels = self.net.config.id2label or {}
        self.known = {str(name).lower(): int(i) for i, name in labels.items()}

    @torch.no_grad()
    def detect(
        self, images: Sequence[Image], classes: Sequence[tuple[str, ...]]
    ) -> list[list[Detection]]:
        """Objects of the wanted classes by falling confidence."""
        architecture = self.net.architecture
        if architecture in OWLS or architecture in GROUNDERS:
            named = self._owl if architecture in OWLS else self._grounded
            groups = [(image.shape, wanted) for image, wanted in zip(images, classes, strict=True)]
            return in_batches(
                lambda some: named([images[i] for i in some], classes[some[0]]),
                groups,
                self.batch_size,
            )
        wanted = [class_indices(names, self.known, self.name) for names in classes]
        found = self._segments if architecture in SEGMENTERS else self._boxes
        return in_batches(
            lambda some: found([images[i] for i in some], [wanted[i] for i in some]),
            [image.shape for image in images],
            self.batch_size,
        )

    def _run(self, images: list[Image], **more: Any) -> Any:
        with quiet():
            batch = self.net.processor(images=images, return_tensors="pt", **more)
        return self.net.model(**self.net.to(batch))

    def _segments(self, images: list[Image], wanted: list[dict[int, str]]) -> list[list[Detection]]:
        """Queries with class scores and masks.

        As in the authors' instance inference: over (query, class) pairs, the best Q by class
        probability; confidence = that times the mean mask probability within the mask.
        """
        out = self._run(images)
        height, width = images[0].shape[:2]
        scores = out.class_queries_logits.float().softmax(-1)[..., :-1]  # [B, Q, K]
        found = []
        for score, logits, names in zip(scores, out.masks_queries_logits, wanted, strict=True):
            queries, classes = score.shape
            best, at = score.flatten().topk(queries)
            pairs = [
                (float(b), int(i) // classes, names[int(i) % classes])
                for b, i in zip(best, at, strict=True)
                if int(i) % classes in names and float(b) >= self.options.floor
            ]
            small = logits[[query for _, query, _ in pairs]].float()  # [M, h, w]
            found.append(_masked(pairs, _enlarged(small, height, width), self.options.floor))
        return found

    def _boxes(self, images: list[Image], wanted: list[dict[int, str]]) -> list[list[Detection]]:
        out = self._run(images)
        sizes = [image.shape[:2] for image in images]
        results = self.net.processor.post_process_object_detection(
            out, threshold=self.options.floor, target_sizes=sizes
        )
        found = []
        for result, names, size in zip(results, wanted, sizes, strict=True):
            labels = [names.get(int(i), "") for i in result["labels"]]
            found.append(_sorted(result["scores"], labels, result["boxes"], size))
        return found

    def _owl(self, images: list[Image], names: tuple[str, ...]) -> list[list[Detection]]:
        """Each class is a query, "a photo of a NAME"."""
        texts = [f"a photo of a {name}" for name in names]
        out = self._run(images, text=[texts] * len(images))
        sizes = [image.shape[:2] for image in images]
        results = self.net.processor.post_process_grounded_object_detection(
            out, threshold=self.options.floor, target_sizes=sizes
        )
        return [
            _sorted(r["scores"], [names[int(i)] for i in r["labels"]], r["boxes"], size)
            for r, size in zip(results, sizes, strict=True)
        ]

    def _grounded(self, images: list[Image], names: tuple[str, ...]) -> list[list[Detection]]:
        """Classes are phrases of one text; a box is of the class whose tokens fit it best."""
        text, spans = "", []
        for name in names:
            spans.append((len(text), len(text) + len(name)))
            text += f"{name.lower()}. "
        out = self._run(images, text=[text.strip()] * len(images))
        tokens = self.net.processor.tokenizer(text.strip(), return_offsets_mapping=True)
        columns = [
            [t for t, (a, b) in enumerate(tokens["offset_mapping"]) if a < end and b > start]
            for start, end in spans
        ]
        # [B, Q, T] -> [B, Q, K]: a class's probability is that of its likeliest token.
        probability = out.logits.float().sigmoid()
        scores = torch.stack([probability[..., c].amax(-1) for c in columns], -1)
        found = []
        for score, box, image in zip(scores, out.pred_boxes.float(), images, strict=True):
            best, which = score.max(-1)
            kept = best >= self.options.floor
            height, width = image.shape[:2]
            center, size = box[kept].split(2, -1)
            corners = torch.cat([center - size / 2, center + size / 2], -1)
            corners = corners * corners.new_tensor([width, height, width, height])
            labels = [names[int(i)] for i in which[kept]]
            found.append(_sorted(best[kept], labels, corners, (height, width)))
        return found


def _enlarged(logits: Tensor, height: int, width: int) -> Tensor:
    """Mask logits [M, h, w] -> [M, H, W]."""
    if not len(logits):
        return logits
    return F.interpolate(logits[None], (height, width), mode="bilinear", align_corners=False)[0]


def _masked(pairs: list[tuple[float, int, str]], logits: Tensor, floor: float) -> list[Detection]:
    """Detections with masks [M, H, W] where the logits are positive, and the boxes round them."""
    found = []
    for (score, _, label), logit in zip(pairs, logits, strict=True):
        mask = logit > 0
        if not mask.any():
            continue
        confidence = score * float(logit[mask].sigmoid().mean())
        if confidence < floor:
            continue
        y, x = torch.nonzero(mask, as_tuple=True)
        box = (float(x.min()), float(y.min()), float(x.max()) + 1, float(y.max()) + 1)
        found.append(Detection(label, confidence, box, mask.cpu().numpy()))
    return sorted(found, key=lambda d: -d.confidence)


def _sorted(scores: Tensor, labels: list[str], boxes: Tensor, size: Any) -> list[Detection]:
    """Detections with boxes inside the picture, without those that have no label."""
    height, width = size
    limits = boxes.new_tensor([width, height, width, height])
    inside = boxes.clamp(min=0).minimum(limits).tolist()
    found = [
        Detection(label, float(score), tuple(box))
        for score, label, box in zip(scores.tolist(), labels, inside, strict=True)
        if label
    ]
    return sorted(found, key=lambda d: -d.confidence)


def _architectures() -> dict[str, Any]:
    from transformers import (
        AutoModelForObjectDetection,
        AutoModelForUniversalSegmentation,
        AutoModelForZeroShotObjectDetection,
    )
    from transformers.models.auto.modeling_auto import MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES

    plain = MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.values()
    return {
        **dict.fromkeys(plain, AutoModelForObjectDetection),
        **dict.fromkeys(SEGMENTERS, AutoModelForUniversalSegmentation),
        **dict.fromkeys((*GROUNDERS, *OWLS), AutoModelForZeroShotObjectDetection),
    }


def build(options: Config, device: str | None) -> HFDetector:
    """The judge.

    Raises:
        GessoError: weights that are absent or of another kind, or a device that is not there.
    """
    return HFDetector(options, device)
