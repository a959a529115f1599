"""Scene graph -> SVG, from the same outlines, textures and font as the renderer."""

from __future__ import annotations

from gesso.data.scenes.font import INK, word_mask, word_window
from gesso.data.scenes.graph import BACKGROUNDS, COLORS, RGB, TONES, Background, Object, Scene
from gesso.data.scenes.render import PERIOD
from gesso.data.scenes.shapes import outline

# Second-tone parts of a texture's tile, x, y, width, height in tile units.
_TILES = {
    "striped": ((0, 0.25, 1, 0.5),),
    "checkered": (
        (0.25, 0, 0.5, 0.25),
        (0.25, 0.75, 0.5, 0.25),
        (0, 0.25, 0.25, 0.5),
        (0.75, 0.25, 0.25, 0.5),
    ),
}


def svg(scene: Scene, height: int = 64, width: int = 64) -> str:
    """The scene as a complete SVG document of width by height user units."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}">',
        _background(scene.background),
    ]
    for number, item in enumerate(scene.objects):
        parts += _object(item, number, height, width)
    if scene.word:
        y, x, dot = word_window(scene.word, height, width)
        rows, columns = word_mask(scene.word).nonzero()
        path = "".join(
            f"M{x + c * dot} {y + r * dot}h{dot}v{dot}h-{dot}z"
            for r, c in zip(rows.tolist(), columns.tolist(), strict=True)
        )
        parts.append(f'<path id="word" fill="{_hex(INK)}" d="{path}"/>')
    return "\n".join([*parts, "</svg>"])


def _hex(rgb: RGB) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def _background(ground: Background) -> str:
    start = _hex(BACKGROUNDS[ground.name])
    if not ground.to:
        return f'<rect width="100%" height="100%" fill="{start}"/>'
    end, down = _hex(BACKGROUNDS[ground.to]), int(ground.direction == "down")
    return (
        f'<linearGradient id="ground" x1="0" y1="0" x2="{1 - down}" y2="{down}">'
        f'<stop offset="0" stop-color="{start}"/><stop offset="1" stop-color="{end}"/>'
        '</linearGradient><rect width="100%" height="100%" fill="url(#ground)"/>'
    )


def _object(item: Object, number: int, height: int, width: int) -> list[str]:
    radius = item.radius * min(height, width)
    cx, cy = item.x * width, item.y * height
    fill, parts = _hex(COLORS[item.color]), []
    if item.texture != "solid":
        parts.append(_pattern(item, number, cx, cy, PERIOD * radius))
        fill = f"url(#texture{number})"
    contours = [c * radius + [cx, cy] for c in outline(item.shape)]
    path = "".join(
        "M" + "L".join(f"{x:.3f} {y:.3f}" for x, y in contour.tolist()) + "z"
        for contour in contours
    )
    title = " ".join((item.size, item.color, item.texture, item.shape))
    parts.append(
        f'<path id="object{number}" fill="{fill}" fill-rule="evenodd" d="{path}">'
        f"<title>{title}</title></path>"
    )
    return parts


def _pattern(item: Object, number: int, cx: float, cy: float, tile: float) -> str:
    tone = _hex(TONES[item.color])
    if item.texture == "dotted":
        marks = f'<circle cx=".5" cy=".5" r=".3" fill="{tone}"/>'
    else:
        marks = "".join(
            f'<rect x="{x}" y="{y}" width="{w}" height="{h}" fill="{tone}"/>'
            for x, y, w, h in _TILES[item.texture]
        )
    return (
        f'<pattern id="texture{number}" width="1" height="1" patternUnits="userSpaceOnUse" '
        f'patternTransform="translate({cx:.3f} {cy:.3f}) scale({tile:.3f})">'
        f'<rect width="1" height="1" fill="{_hex(COLORS[item.color])}"/>{marks}</pattern>'
    )
