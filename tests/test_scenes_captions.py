"""Captions of scenes: what they name, in which words and languages."""

import random

import pytest

from gesso.config import build
from gesso.data.scenes import CAPTION_KINDS, Background, Object, Scene, captions, vocabulary
from gesso.data.scenes.captions import MAX_SHORT, dense, noisy, short_wordings
from gesso.types import GessoError


def thing(shape, color="red", x=0.2, y=0.5, texture="solid", size="medium"):
    return Object(shape, color, size, x, y, 0.15, texture)


RELATED = Scene(2, "position", (thing("circle"), thing("square", "blue", 0.8)), relation="left of")
COLORED = Scene(
    2, "color_attr", (thing("circle"), thing("star", "orange", 0.8)), relation="right of"
)
THREE = Scene(2, "counting", tuple(thing("cross", "red", x) for x in (0.2, 0.5, 0.8)))


@pytest.mark.parametrize(
    ("scene", "canonical"),
    [
        (Scene(1, "single_object", (thing("circle"),)), "a photo of a circle"),
        (Scene(1, "colors", (thing("star", "orange"),)), "a photo of an orange star"),
        (
            Scene(1, "two_object", (thing("circle"), thing("star"))),
            "a photo of a circle and a star",
        ),
        (THREE, "a photo of three crosses"),
        (RELATED, "a photo of a circle left of a square"),
        (COLORED, "a photo of a red circle right of an orange star"),
    ],
)
def test_the_first_wording_is_genevals(scene, canonical):
    assert short_wordings(scene)[0] == canonical
    assert captions(scene)[0] == (canonical, "short")


def test_relations_are_worded_both_ways():
    wordings = short_wordings(RELATED)
    assert {
        "a circle left of a square",
        "a picture of a circle to the left of a square",
        "an image of a square right of a circle",
        "a photo of a square on the right of a circle",
    } <= set(wordings)
    assert "a photo of a square left of a circle" not in wordings
    assert not any("red" in w or "blue" in w for w in wordings)


def test_colours_of_counted_objects_are_named_only_where_the_scene_says_so():
    named = Scene(2, "counting", THREE.objects, named_color=True)
    assert short_wordings(named)[0] == "a photo of three red crosses"
    assert not any("red" in w for w in short_wordings(THREE))


@pytest.mark.parametrize(
    ("scene", "german", "spanish"),
    [
        (
            Scene(2, "colors", (thing("heart"),)),
            {"ein rotes Herz", "ein Foto von einem roten Herzen"},
            {"un corazón rojo", "una foto de un corazón rojo"},
        ),
        (
            Scene(2, "colors", (thing("diamond", "pink"),)),
            {"eine rosa Raute", "ein Bild von einer rosa Raute"},
            {"un rombo rosa", "una imagen de un rombo rosa"},
        ),
        (
            Scene(2, "counting", THREE.objects, named_color=True),
            {"drei rote Kreuze", "ein Foto von drei roten Kreuzen"},
            {"tres cruces rojas", "una foto de tres cruces rojas"},
        ),
        (
            Scene(2, "color_attr", (thing("circle"), thing("star", "white")), relation="above"),
            {"ein roter Kreis über einem weißen Stern"},
            {"un círculo rojo encima de una estrella blanca"},
        ),
        (
            Scene(2, "position", RELATED.objects, relation="left of"),
            {"ein Kreis links von einem Quadrat", "ein Quadrat rechts von einem Kreis"},
            {"un círculo a la izquierda de un cuadrado"},
        ),
    ],
)
def test_german_and_spanish_agree_in_gender_number_and_case(scene, german, spanish):
    assert german <= set(short_wordings(scene, "de"))
    assert spanish <= set(short_wordings(scene, "es"))


def test_dense_captions_name_everything():
    scene = Scene(
        3,
        "two_object",
        (thing("circle", x=0.1, y=0.1, texture="striped"), thing("moon", "blue", 0.5, 0.5)),
        Background("grey", "mint", "down"),
        word="sun",
    )
    assert dense(scene) == (
        "a medium red striped circle at the top left and a medium blue moon at the center "
        "with the word sun on a background fading down from grey to mint"
    )


def test_noisy_captions_say_less_or_something_else():
    exact = dense(RELATED)
    texts = {noisy(RELATED, random.Random(i)) for i in range(200)}
    assert len(texts) > 20 and all(len(t.split()) < len(exact.split()) for t in texts)
    assert {"circle", "square", "red blue"} <= texts
    wrong = [t for t in texts if t.startswith(("a ", "an "))]
    assert wrong and not {"a red circle", "a blue square"} & set(wrong)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_the_vocabulary_is_closed_and_has_no_unused_word(level):
    source = build("data.sources", {"name": "scenes", "level": level, "split": "all"})
    used = {code: set() for code in ("en", "de", "es")}
    for i in range(2500):
        for text, kind in source[i].captions:
            used["en" if kind not in used else kind].update(text.lower().split())
            assert text == " ".join(text.split()) and text.replace(" ", "").isalpha()
    for code, words in used.items():
        known = vocabulary(level, code)
        assert known == sorted(known)
        assert words <= set(known)
        rare = set(known) - words
        assert len(rare) <= 0.05 * len(known), rare
    assert set(vocabulary(level)) == set().union(*(vocabulary(level, c) for c in used))
    assert source.vocabulary() == vocabulary(level)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_captions_keep_their_lengths_and_kinds(level):
    source = build("data.sources", {"name": "scenes", "level": level})
    for i in range(300):
        found = source[i].captions
        kinds = [c.kind for c in found]
        assert set(kinds) == set(CAPTION_KINDS)
        shorts = [c.text for c in found if c.kind == "short"]
        assert len(set(shorts)) == len(shorts) >= 2
        assert all(len(text.split()) <= MAX_SHORT for text in shorts)
        if level < 3:
            assert all(len(c.text.split()) <= 32 for c in found)


def test_another_seed_chooses_other_paraphrases():
    chosen = {tuple(captions(RELATED, seed=i)) for i in range(10)}
    assert len(chosen) == 10
    assert captions(RELATED, seed=1) == captions(RELATED, seed=1)


def test_unknown_languages_are_refused():
    with pytest.raises(GessoError, match="'fr'"):
        vocabulary(1, "fr")
