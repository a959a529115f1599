"""The row of pictures at the top of the README, painted by the shipped model.

    python docs/row.py docs/images/row.png

Each is the first one, seed 0; the prompts are some that it can do (README: how often).
"""

import sys

from PIL import Image, ImageDraw

import gesso

PROMPTS = (
    "a photo of a green star",
    "three purple triangles",
    "a photo of a pink square and an orange triangle",
    "a photo of four circles",
    "a brown triangle below a black star",
    "a red circle and a blue square",
)
SEED = 0
SIDE, GAP, TEXT = 160, 12, 34


def main() -> None:
    pictures = gesso.load()(list(PROMPTS), seed=[SEED] * len(PROMPTS)).images
    row = Image.new("RGB", (len(PROMPTS) * (SIDE + GAP) - GAP, SIDE + TEXT), "white")
    draw = ImageDraw.Draw(row)
    for i, (prompt, picture) in enumerate(zip(PROMPTS, pictures, strict=True)):
        x = i * (SIDE + GAP)
        row.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, 0))
        draw.multiline_text((x, SIDE + 4), wrapped(prompt, 26), fill="black")
    row.save(sys.argv[1], optimize=True)


def wrapped(text: str, width: int) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


if __name__ == "__main__":
    main()
