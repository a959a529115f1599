"""Noun phrases of the scene world in English, German and Spanish: words, gender, agreement."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

_DE_NOUNS = {  # gender, singular, plural
    "circle": ("m", "Kreis", "Kreise"),
    "square": ("n", "Quadrat", "Quadrate"),
    "triangle": ("n", "Dreieck", "Dreiecke"),
    "star": ("m", "Stern", "Sterne"),
    "heart": ("n", "Herz", "Herzen"),
    "diamond": ("f", "Raute", "Rauten"),
    "cross": ("n", "Kreuz", "Kreuze"),
    "ring": ("m", "Ring", "Ringe"),
    "moon": ("m", "Mond", "Monde"),
    "hexagon": ("n", "Sechseck", "Sechsecke"),
}
_DE_COLORS = {
    "red": "rot",
    "orange": "orange",
    "yellow": "gelb",
    "green": "grün",
    "blue": "blau",
    "purple": "violett",
    "pink": "rosa",
    "brown": "braun",
    "black": "schwarz",
    "white": "weiß",
}
_DE_FIXED = ("orange", "rosa")  # colours that take no ending
_DE_ARTICLES = {"m": ("ein", "einem"), "n": ("ein", "einem"), "f": ("eine", "einer")}
_DE_ENDINGS = {"m": ("er", "en"), "n": ("es", "en"), "f": ("e", "en")}  # nominative, dative

_ES_NOUNS = {
    "circle": ("m", "círculo", "círculos"),
    "square": ("m", "cuadrado", "cuadrados"),
    "triangle": ("m", "triángulo", "triángulos"),
    "star": ("f", "estrella", "estrellas"),
    "heart": ("m", "corazón", "corazones"),
    "diamond": ("m", "rombo", "rombos"),
    "cross": ("f", "cruz", "cruces"),
    "ring": ("m", "anillo", "anillos"),
    "moon": ("f", "luna", "lunas"),
    "hexagon": ("m", "hexágono", "hexágonos"),
}
_ES_COLORS = {  # masculine, feminine, and their plurals
    "red": ("rojo", "roja", "rojos", "rojas"),
    "orange": ("naranja",) * 4,
    "yellow": ("amarillo", "amarilla", "amarillos", "amarillas"),
    "green": ("verde", "verde", "verdes", "verdes"),
    "blue": ("azul", "azul", "azules", "azules"),
    "purple": ("morado", "morada", "morados", "moradas"),
    "pink": ("rosa",) * 4,
    "brown": ("marrón", "marrón", "marrones", "marrones"),
    "black": ("negro", "negra", "negros", "negras"),
    "white": ("blanco", "blanca", "blancos", "blancas"),
}


@dataclass(frozen=True)
class Language(ABC):
    """One language's wordings.

    Attributes:
        joiner: "and".
        numbers: words for 2, 3 and 4.
        prefixes: what may stand before a noun phrase; "" is the plain phrase.
        relations: wordings of each of the four relations, the canonical one first.
    """

    joiner: str
    numbers: dict[int, str]
    prefixes: tuple[str, ...]
    relations: dict[str, tuple[str, ...]]

    @abstractmethod
    def one(self, shape: str, color: str = "", dative: bool = False) -> str:
        """ "a red circle". German nouns stand in the dative behind a preposition."""

    @abstractmethod
    def many(self, count: int, shape: str, color: str = "", dative: bool = False) -> str:
        """ "three red circles"."""


class English(Language):
    """English; also the language of dense and noisy captions."""

    def article(self, words: str) -> str:
        """The words behind "a" or "an"."""
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"

    def one(self, shape: str, color: str = "", dative: bool = False) -> str:
        return self.article(_spaced(color, shape))

    def many(self, count: int, shape: str, color: str = "", dative: bool = False) -> str:
        return _spaced(self.numbers[count], color, shape + ("es" if shape[-1] == "s" else "s"))


class German(Language):
    """German: nouns are capitalised, adjectives end by gender and case."""

    def _color(self, color: str, ending: str) -> str:
        word = _DE_COLORS[color] if color else ""
        return word if not word or word in _DE_FIXED else word + ending

    def one(self, shape: str, color: str = "", dative: bool = False) -> str:
        gender, noun, _ = _DE_NOUNS[shape]
        noun = "Herzen" if dative and noun == "Herz" else noun
        adjective = self._color(color, _DE_ENDINGS[gender][dative])
        return _spaced(_DE_ARTICLES[gender][dative], adjective, noun)

    def many(self, count: int, shape: str, color: str = "", dative: bool = False) -> str:
        noun = _DE_NOUNS[shape][2]
        noun += "n" if dative and noun[-1] != "n" else ""
        return _spaced(self.numbers[count], self._color(color, "en" if dative else "e"), noun)


class Spanish(Language):
    """Spanish: colours follow the noun and agree with it."""

    def one(self, shape: str, color: str = "", dative: bool = False) -> str:
        gender, noun, _ = _ES_NOUNS[shape]
        article, form = ("una", 1) if gender == "f" else ("un", 0)
        return _spaced(article, noun, _ES_COLORS[color][form] if color else "")

    def many(self, count: int, shape: str, color: str = "", dative: bool = False) -> str:
        gender, _, noun = _ES_NOUNS[shape]
        form = 3 if gender == "f" else 2
        return _spaced(self.numbers[count], noun, _ES_COLORS[color][form] if color else "")


def _spaced(*words: str) -> str:
    return " ".join(word for word in words if word)


ENGLISH = English(
    joiner="and",
    numbers={2: "two", 3: "three", 4: "four"},
    prefixes=("a photo of", "", "a picture of", "an image of", "a drawing of"),
    relations={
        "left of": ("left of", "to the left of", "on the left of"),
        "right of": ("right of", "to the right of", "on the right of"),
        "above": ("above", "over"),
        "below": ("below", "under"),
    },
)
GERMAN = German(
    joiner="und",
    numbers={2: "zwei", 3: "drei", 4: "vier"},
    prefixes=("ein Foto von", "", "ein Bild von"),
    relations={
        "left of": ("links von",),
        "right of": ("rechts von",),
        "above": ("über",),
        "below": ("unter",),
    },
)
SPANISH = Spanish(
    joiner="y",
    numbers={2: "dos", 3: "tres", 4: "cuatro"},
    prefixes=("una foto de", "", "una imagen de"),
    relations={
        "left of": ("a la izquierda de",),
        "right of": ("a la derecha de",),
        "above": ("encima de",),
        "below": ("debajo de",),
    },
)
LANGUAGES: dict[str, Language] = {"en": ENGLISH, "de": GERMAN, "es": SPANISH}
