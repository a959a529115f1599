"""The built-in world: typed scenes with exact truth, their pictures and captions, and the reader.

scene = sample_scene(7, level=2)
picture = render(scene, 64, 64)          # [64, 64, 3] uint8
texts = captions(scene)                  # short, dense, noisy, de, es
    found = read(picture, level=2).objects   # shape, colour, size, box, mask, confidence
"""

from gesso.data.scenes.captions import CAPTION_KINDS, captions, short_wordings, vocabulary
from gesso.data.scenes.classes import class_names, class_of
from gesso.data.scenes.graph import (
    BACKGROUNDS,
    COLORS,
    KINDS,
    LEVELS,
    RELATIONS,
    SHAPES,
    SIZES,
    TAGS,
    TEXTURES,
    WORDS,
    Background,
    Object,
    Scene,
    relations_between,
)
from gesso.data.scenes.layout import sample_scene
from gesso.data.scenes.reader import Detection, Reading, read
from gesso.data.scenes.render import render
from gesso.data.scenes.splits import has_held_out
from gesso.data.scenes.svg import svg
from gesso.data.scenes.truth import Truth, truth

__all__ = [
    "BACKGROUNDS",
    "CAPTION_KINDS",
    "COLORS",
    "KINDS",
    "LEVELS",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "TAGS",
    "TEXTURES",
    "WORDS",
    "Background",
    "Detection",
    "Object",
    "Reading",
    "Scene",
    "Truth",
    "captions",
    "class_names",
    "class_of",
    "has_held_out",
    "read",
    "relations_between",
    "render",
    "sample_scene",
    "short_wordings",
    "svg",
    "truth",
    "vocabulary",
]
