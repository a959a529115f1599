"""Noun taggers: against sentences that were tagged by hand, after the Penn Treebank's rules."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from gesso.taggers import open_tagger
from gesso.types import GessoError

OWN = {
    "A small dog sleeps on a red sofa beside an open window.": "dog sofa window",
    "Two children fly a kite over the beach at sunset": "children kite beach sunset",
    "an oil painting of a ship in a storm": "oil painting ship storm",
    "The old man reads his newspaper, and his wife pours coffee.": "man newspaper wife coffee",
    "a photo of a brown triangle below a black star": "photo triangle star",
    "Snow covers the roofs of the village.": "snow roofs village",
    "a grey cat and a green lamp on a table": "cat lamp table",
    "Bicycles lean against a brick wall in the rain.": "bicycles brick wall rain",
}

# Captions of COCO val2017 by annotation id, drawn at random; the texts lie beside the checkout.
COCO = {
    429902: "cows windmill",
    44580: "washer dryer set",
    137581: "women tennis player ball serve",
    178683: "girl bed room",
    630154: "woman arms frisbee front",
    139602: "cows field",
    98234: "wok stove food",
    222108: "elephant pool water",
    318742: "bear pool water",
    103321: "metal park bench road",
    55988: "bunch bananas bowl apples oranges",
    70896: "woman bench bronze statue",
    686499: "couple people wood bench",
    221323: "plate pizza drink sandwich",
    337132: "television living room magazines coffee table",
    813511: "suitcases shelf",
    736865: "woman sandwich paper plate",
    398520: "men toilet",
    619110: "cows side street",
    238411: "line horses river",
    403962: "passengers luggage airport limo bus",
    274055: "street sign tree",
    552452: "man fruit back pickup truck",
    323784: "man skateboard air",
    375423: "bunch bananas plate sign",
    511970: "toddler ball baseball bat backyard",
    95335: "person skate board skate park",
    9155: "dog chair",
    449673: "man ball outfield baseball game",
    139274: "sandwiches starbucks plate",
    382195: "shopping cart food bananas milk",
    780782: "store display window chihuahua dog statues",
    752030: "baseball player bat field",
    103400: "volvo motel",
    605385: "girl umbrella",
    826070: "man counter bar lot oranges lemons",
    731575: "couple birds body water",
    463993: "night sky view moon numeral clock",
    755399: "giraffe rocks ostrich",
    458286: "jet airplane sky",
}


def score(tag: Callable[[str], list[str]], pairs: Iterable[tuple[str, str]]) -> tuple[float, float]:
    """(precision, recall) over the nouns of all sentences, each as often as it occurs."""
    hits = found = true = 0
    for sentence, nouns in pairs:
        said, wanted = Counter(tag(sentence)), Counter(nouns.split())
        hits += (said & wanted).total()
        found += said.total()
        true += wanted.total()
    return hits / found, hits / true


def test_the_score_counts_what_is_missing_and_what_is_too_much() -> None:
    assert score(str.split, [("a b b", "b c")]) == (1 / 3, 1 / 2)


def test_nouns_of_plain_sentences() -> None:
    precision, recall = score(open_tagger(), OWN.items())
    assert precision >= 0.9 and recall >= 0.9


def test_nouns_of_captions_tagged_by_hand(shared: Path) -> None:
    file = shared / "coco_captions" / "captions_val2017.json"
    texts = {a["id"]: a["caption"] for a in json.loads(file.read_text())["annotations"]}
    precision, recall = score(open_tagger(), [(texts[i], nouns) for i, nouns in COCO.items()])
    print(f"{len(COCO)} captions: precision {precision:.3f}, recall {recall:.3f}")
    assert precision >= 0.95 and recall >= 0.9


def test_punctuation_and_numbers_are_no_nouns() -> None:
    assert open_tagger()("3 dogs & 17 # !! 2x4 — a photo.") == ["dogs", "photo"]
    assert open_tagger()("") == []


def test_what_is_not_installed_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spacy", None)
    monkeypatch.setitem(sys.modules, "textblob.en", None)
    for name in ("spacy", "textblob"):
        with pytest.raises(GessoError, match="install"):
            open_tagger(name)


def test_an_unknown_tagger_is_named() -> None:
    with pytest.raises(GessoError, match="textblob"):
        open_tagger("textblub")
