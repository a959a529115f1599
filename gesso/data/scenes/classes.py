"""Scenes as classes: the colour and shape of a scene's first object, the one that captions name
first."""

from __future__ import annotations

from gesso.data.scenes.graph import COLORS, Scene, get_level


def class_names(level: int) -> list[str]:
    """The classes of a level by number, such as "red circle": 40 of level 1, 100 of the others."""
    return [f"{color} {shape}" for color in COLORS for shape in get_level(level).shapes]


def class_of(scene: Scene) -> int:
    """The number of a scene's class."""
    first, shapes = scene.objects[0], get_level(scene.level).shapes
    return list(COLORS).index(first.color) * len(shapes) + shapes.index(first.shape)
