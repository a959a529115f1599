"""Captions of a scene: short ones as GenEval words its prompts, dense, noisy, German, Spanish.

Captions are lower case, except German nouns, and have no punctuation: words are separated by
single spaces. `vocabulary` lists all of them in lower case.
"""

from __future__ import annotations

from functools import cache
from random import Random

from gesso.data.scenes.graph import COLORS, INVERSE, Object, Scene, get_level
from gesso.data.scenes.languages import ENGLISH, LANGUAGES
from gesso.data.scenes.layout import pick
from gesso.types import Caption, GessoError

CAPTION_KINDS = ("short", "dense", "noisy", "de", "es")
MAX_SHORT = 16  # words
COLORED_KINDS = ("colors", "color_attr", "several")  # their short captions name colours

_JUNK = ("image", "untitled", "stock", "clipart", "free design", "free download")
_DENSE_WORDS = "a an and at the top bottom left right center on background"
_LEVEL_3_WORDS = "fading from to down with word"


def phrases(scene: Scene, language: str = "en", prefixed: bool = True) -> list[str]:
    """What short captions say behind a prefix, the canonical wording first.

    They name what a GenEval prompt of the scene's kind names, and nothing else. In German a
    prefix changes the case, so phrases that stand alone have `prefixed` False.
    """
    grammar, items = LANGUAGES[language], scene.objects
    dative = prefixed  # asked for by the prefixes of the one language that has cases
    colored = scene.kind in COLORED_KINDS or scene.named_color
    colors = [o.color if colored else "" for o in items]
    if scene.kind == "counting":
        return [grammar.many(len(items), items[0].shape, colors[0], dative)]
    nouns = [grammar.one(o.shape, c, dative) for o, c in zip(items, colors, strict=True)]
    if not scene.relation:
        listed = f" {grammar.joiner} ".join(nouns)
        return [listed] if len(nouns) == 1 else [listed, f" {grammar.joiner} ".join(nouns[::-1])]
    tails = [grammar.one(o.shape, c, True) for o, c in zip(items, colors, strict=True)]
    direct, inverse = grammar.relations[scene.relation], grammar.relations[INVERSE[scene.relation]]
    return [f"{nouns[0]} {wording} {tails[1]}" for wording in direct] + [
        f"{nouns[1]} {wording} {tails[0]}" for wording in inverse
    ]


def short_wordings(scene: Scene, language: str = "en") -> list[str]:
    """Every wording of the short caption, at most `MAX_SHORT` words, the canonical one first."""
    texts = [
        f"{prefix} {phrase}".strip()
        for prefix in LANGUAGES[language].prefixes
        for phrase in phrases(scene, language, bool(prefix))
    ]
    return [text for text in dict.fromkeys(texts) if len(text.split()) <= MAX_SHORT]


def captions(scene: Scene, *, seed: int | str = 0, shorts: int = 4) -> list[Caption]:
    """Up to `shorts` different short captions and one of each other kind of `CAPTION_KINDS`.

    The first is the canonical one ("a photo of ..."); the choice of the others is drawn from
    `seed`.
    """
    rng = Random(f"captions/{seed}")
    first, *others = short_wordings(scene)
    texts = [first]
    while others and len(texts) < shorts:
        texts.append(others.pop(int(rng.random() * len(others))))
    found = [Caption(text, "short") for text in texts]
    found.append(Caption(dense(scene), "dense"))
    found.append(Caption(noisy(scene, rng), "noisy"))
    found += [Caption(pick(rng, short_wordings(scene, code)), code) for code in ("de", "es")]
    return found


def dense(scene: Scene) -> str:
    """Everything: size, colour, texture, shape and place of each object, word, background.

    At most 32 words at levels 1 and 2.
    """
    at = "at the " if len(scene.objects) <= 2 else ""
    items = [f"{ENGLISH.article(_described(o))} {at}{place(o)}" for o in scene.objects]
    word = f" with the word {scene.word}" if scene.word else ""
    ground = scene.background
    if ground.to:
        behind = f"a background fading {ground.direction} from {ground.name} to {ground.to}"
    else:
        behind = f"a {ground.name} background"
    return f"{' and '.join(items)}{word} on {behind}"


def _described(item: Object) -> str:
    texture = "" if item.texture == "solid" else item.texture
    return " ".join(filter(None, (item.size, item.color, texture, item.shape)))


def place(item: Object) -> str:
    """Which ninth of the picture an object's centre lies in: "top left", ..., "center"."""
    row = ("top", "", "bottom")[min(int(item.y * 3), 2)]
    column = ("left", "", "right")[min(int(item.x * 3), 2)]
    return f"{row} {column}".strip() or "center"


def noisy(scene: Scene, rng: Random) -> str:
    """A caption such as the web has: incomplete, beside the point or wrong."""
    item = pick(rng, scene.objects)
    kind = pick(rng, ("shape", "colors", "shape and junk", "junk", "wrong color"))
    if kind == "shape":
        return item.shape
    if kind == "colors":
        return " ".join(dict.fromkeys(o.color for o in scene.objects))
    if kind == "shape and junk":
        return f"{pick(rng, _JUNK)} {item.shape}"
    if kind == "junk":
        return f"{pick(rng, _JUNK)} {pick(rng, _JUNK)}"
    return ENGLISH.one(item.shape, pick(rng, [c for c in COLORS if c != item.color]))


@cache
def _words(level: int, language: str) -> frozenset[str]:
    world, grammar = get_level(level), LANGUAGES[language]
    texts = [grammar.joiner, *grammar.prefixes, *grammar.numbers.values()]
    texts += [wording for wordings in grammar.relations.values() for wording in wordings]
    for shape in world.shapes:
        for color in ("", *COLORS):
            for dative in (False, True):
                texts += [grammar.one(shape, color, dative)]
                texts += [grammar.many(n, shape, color, dative) for n in grammar.numbers]
    if language == "en":
        texts += [*world.sizes, *world.backgrounds, *world.words, *_JUNK, _DENSE_WORDS]
        texts += [t for t in world.textures if t != "solid"]
        texts += [_LEVEL_3_WORDS] if world.gradients else []
    return frozenset(word for text in texts for word in text.lower().split())


def vocabulary(level: int, language: str | None = None) -> list[str]:
    """All words that captions of a level use, sorted, in lower case.

    Args:
        level: 1, 2 or 3.
        language: "en" (short, dense and noisy captions), "de" or "es"; None: all three.

    Raises:
        GessoError: no such level or language.
    """
    if language is not None and language not in LANGUAGES:
        raise GessoError(f"There are no captions in {language!r}: choose en, de or es.")
    chosen = list(LANGUAGES) if language is None else [language]
    return sorted(set().union(*(_words(level, code) for code in chosen)))
