"""The scene graph: what a picture of the built-in world contains, and how it is written down.

Coordinates: `x`, `y` are fractions of the width and height, `radius` is a fraction of the shorter
side. Scenes are laid out on a square; a longer picture only moves the objects further apart.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gesso.types import GessoError

RGB = tuple[int, int, int]

# The first four shapes are level 1's. Order matters: held-out combinations are counted along it.
SHAPES = (
    "circle",
    "square",
    "triangle",
    "star",
    "heart",
    "diamond",
    "cross",
    "ring",
    "moon",
    "hexagon",
)

# GenEval's ten colours. The second tone is what textures alternate with: it belongs to no other
# colour, so a textured object keeps its colour name.
COLORS: dict[str, RGB] = {
    "red": (216, 35, 42),
    "orange": (248, 136, 16),
    "yellow": (252, 217, 34),
    "green": (40, 154, 66),
    "blue": (32, 92, 222),
    "purple": (118, 36, 166),
    "pink": (248, 120, 184),
    "brown": (122, 70, 32),
    "black": (18, 18, 22),
    "white": (253, 253, 253),
}
TONES: dict[str, RGB] = {
    "red": (255, 122, 112),
    "orange": (255, 190, 104),
    "yellow": (200, 164, 0),
    "green": (122, 214, 132),
    "blue": (116, 166, 255),
    "purple": (186, 112, 230),
    "pink": (206, 62, 136),
    "brown": (176, 122, 76),
    "black": (96, 96, 104),
    "white": (196, 212, 238),
}

BACKGROUNDS: dict[str, RGB] = {
    "grey": (178, 181, 187),
    "beige": (205, 186, 150),
    "mint": (150, 196, 172),
    "lilac": (180, 170, 208),
    "teal": (104, 160, 166),
}

TEXTURES = ("solid", "striped", "dotted", "checkered")

# Half of an object's nominal diameter, as a fraction of the shorter side: 14-16, 18-21 and
# 24-27 pixels across at 64.
SIZES: dict[str, tuple[float, float]] = {
    "small": (0.110, 0.125),
    "medium": (0.144, 0.164),
    "large": (0.190, 0.212),
}

RELATIONS = ("left of", "right of", "above", "below")
INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}

WORDS = ("art", "cat", "go", "hello", "hi", "love", "no", "sun", "yes", "zoo")

# GenEval's six tags, and scenes of three or four different objects.
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
KINDS = (*TAGS, "several")


@dataclass(frozen=True, slots=True)
class Level:
    """What the scenes of one level may contain."""

    shapes: tuple[str, ...]
    sizes: tuple[str, ...]
    kinds: tuple[str, ...]
    backgrounds: tuple[str, ...]
    textures: tuple[str, ...] = ("solid",)
    gradients: bool = False
    words: tuple[str, ...] = ()
    lattice: int = 0  # centres on multiples of 1/lattice and one radius a size; 0: anywhere, any


LEVELS = {
    1: Level(SHAPES[:4], ("medium", "large"), TAGS, ("grey",), lattice=8),
    2: Level(SHAPES, tuple(SIZES), KINDS, tuple(BACKGROUNDS)),
    3: Level(SHAPES, tuple(SIZES), KINDS, tuple(BACKGROUNDS), TEXTURES, True, WORDS),
}


def get_level(number: int) -> Level:
    """The level's contents.

    Raises:
        GessoError: no such level.
    """
    if number not in LEVELS:
        raise GessoError(f"There is no scene level {number!r}: choose 1, 2 or 3.")
    return LEVELS[number]


@dataclass(frozen=True, slots=True)
class Object:
    """One object. `radius` is nominal: the outline lies within it, see `shapes.extent`."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    radius: float
    texture: str = "solid"


@dataclass(frozen=True, slots=True)
class Background:
    """A named plain colour, or a gradient from `name` to `to`.

    `direction` is "down" or "right" for a gradient and "" for a plain background.
    """

    name: str = "grey"
    to: str = ""
    direction: str = ""


@dataclass(frozen=True, slots=True)
class Scene:
    """A picture's contents.

    Attributes:
        level: 1, 2 or 3.
        kind: one of `KINDS`; decides what the short captions name.
        objects: never overlapping, 1 to 4.
        background: plain or gradient.
        relation: one of `RELATIONS` if captions say how objects[0] lies to objects[1], else "".
        named_color: whether captions of a counting scene name the (common) colour.
        word: a rendered word in lower case (drawn in capitals along the bottom), or "".
    """

    level: int
    kind: str
    objects: tuple[Object, ...]
    background: Background = Background()
    relation: str = ""
    named_color: bool = False
    word: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, as stored in `Sample.meta["scene"]`."""
        return asdict(self) | {"objects": [asdict(o) for o in self.objects]}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Scene:
        """The inverse of `to_dict`.

        Raises:
            GessoError: missing or unknown keys.
        """
        try:
            objects = tuple(Object(**o) for o in values["objects"])
            background = Background(**values["background"])
            return Scene(**{**values, "objects": objects, "background": background})
        except (KeyError, TypeError) as e:
            raise GessoError(f"This is not a scene: {e}; write it with Scene.to_dict().") from None


Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in one unit for both axes; y points down."""


def relations_between(a: Box, b: Box) -> set[str]:
    """The relations of box a to box b by GenEval's rule; none, one or two of `RELATIONS`.

    Per axis, a tenth of both sizes is taken off the distance of the centres; what is left, over
    the full distance, must exceed one half.
    """
    relations: set[str] = set()
    dx, dy = (a[0] + a[2] - b[0] - b[2]) / 2, (a[1] + a[3] - b[1] - b[3]) / 2
    norm = (dx * dx + dy * dy) ** 0.5
    rest_x = max(abs(dx) - 0.1 * (a[2] - a[0] + b[2] - b[0]), 0.0)
    rest_y = max(abs(dy) - 0.1 * (a[3] - a[1] + b[3] - b[1]), 0.0)
    if rest_x < 1e-3 and rest_y < 1e-3:
        return relations
    if rest_x / norm > 0.5:
        relations.add("left of" if dx < 0 else "right of")
    if rest_y / norm > 0.5:
        relations.add("above" if dy < 0 else "below")
    return relations
