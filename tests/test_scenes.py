"""The built-in world: scenes, pictures, truth, SVG and the source."""

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from itertools import combinations

import cv2
import numpy as np
import pytest

from gesso.config import build
from gesso.data.scenes import (
    BACKGROUNDS,
    COLORS,
    SHAPES,
    TEXTURES,
    Background,
    Object,
    Scene,
    has_held_out,
    relations_between,
    render,
    sample_scene,
    svg,
    truth,
)
from gesso.data.scenes.graph import TONES
from gesso.data.scenes.shapes import coverage, extent, moments, outline
from gesso.data.scenes.splits import (
    HELD_OUT_COLORS,
    HELD_OUT_COUNTS,
    HELD_OUT_PAIRS,
    HELD_OUT_TRIPLES,
)
from gesso.data.scenes.truth import WORD_CLASS
from gesso.types import GessoError

LEVELS = (1, 2, 3)


def scenes(level, n=150, **options):
    return [sample_scene(i, level=level, **options) for i in range(n)]


def test_a_scene_depends_on_seed_index_level_and_split_alone():
    first = [sample_scene(i, level=2, seed=3) for i in range(20)]
    again = [sample_scene(i, level=2, seed=3) for i in reversed(range(20))][::-1]
    assert first == again
    others = [sample_scene(i, level=2, seed=4) for i in range(20)]
    assert sum(a == b for a, b in zip(first, others, strict=True)) == 0


def test_the_stream_does_not_change_between_versions():
    scene = sample_scene(0, level=1, seed=0)
    assert [(o.color, o.shape, o.size) for o in scene.objects] == GOLDEN


GOLDEN = [("red", "triangle", "large"), ("purple", "star", "large")]


@pytest.mark.parametrize("level", LEVELS)
def test_objects_lie_inside_and_never_overlap(level):
    for scene in scenes(level, split="all"):
        for height, width in ((64, 64), (48, 96), (128, 80)):
            exact = truth(scene, height, width)
            assert exact.masks.sum(0).max() <= 1
            assert (exact.boxes >= 1).all()
            assert (exact.boxes[:, [0, 2]] <= width - 1).all()
            assert (exact.boxes[:, [1, 3]] <= height - 1).all()


@pytest.mark.parametrize("level", LEVELS)
def test_the_named_relation_holds_on_every_aspect_ratio(level):
    related = [s for s in scenes(level, 300, split="all") if s.relation]
    assert len(related) > 40
    for scene in related:
        for height, width in ((64, 64), (64, 128), (128, 64)):
            a, b = truth(scene, height, width).boxes[:2]
            assert scene.relation in relations_between(tuple(a), tuple(b))


@pytest.mark.parametrize("level", LEVELS)
def test_kinds_colours_and_counts_are_balanced(level):
    found = scenes(level, 1000)
    kinds = Counter(s.kind for s in found)
    assert max(kinds.values()) < 1.4 * min(kinds.values())
    assert len(kinds) == (6 if level == 1 else 7)
    colors = Counter(o.color for s in found for o in s.objects)
    assert len(colors) == 10 and max(colors.values()) < 2 * min(colors.values())
    counts = Counter(len(s.objects) for s in found if s.kind == "counting")
    assert set(counts) == {2, 3, 4} and max(counts.values()) < 2 * min(counts.values())


def test_levels_add_shapes_then_textures_words_and_gradients():
    one, two, three = (scenes(level, 400) for level in LEVELS)
    assert {o.shape for s in one for o in s.objects} == set(SHAPES[:4])
    assert {s.background for s in one} == {Background("grey")}
    assert {o.shape for s in two for o in s.objects} == set(SHAPES)
    assert {s.background.name for s in two} == set(BACKGROUNDS)
    assert {o.texture for s in two for o in s.objects} == {"solid"}
    assert {o.texture for s in three for o in s.objects} == set(TEXTURES)
    assert any(s.word for s in three) and any(s.background.to for s in three)


@pytest.mark.parametrize("level", LEVELS)
def test_training_scenes_have_no_held_out_combination_and_test_scenes_have_one(level):
    assert not any(has_held_out(s) for s in scenes(level, 400))
    tested = [s for s in scenes(level, 200, split="test") if s.kind != "single_object"]
    assert all(has_held_out(s) for s in tested)
    assert {s.kind for s in tested} >= {"counting", "position", "color_attr", "two_object"}


def test_held_out_relations_count_between_any_two_objects():
    relation = ("triangle", "left of", "square")
    assert relation in HELD_OUT_TRIPLES
    left = Object("triangle", "blue", "medium", 0.2, 0.5, 0.15)
    right = Object("square", "blue", "medium", 0.8, 0.5, 0.15)
    assert has_held_out(Scene(1, "two_object", (left, right)))
    swapped = Object("triangle", "blue", "medium", 0.8, 0.5, 0.15)
    other = Object("square", "blue", "medium", 0.2, 0.5, 0.15)
    assert not has_held_out(Scene(1, "two_object", (swapped, other)))


@pytest.mark.parametrize("shapes", [SHAPES[:4], SHAPES])
def test_about_an_eighth_of_each_kind_of_combination_is_held_out(shapes):
    n = len(shapes)
    colors = [c for c in HELD_OUT_COLORS if c[1] in shapes]
    counts = [c for c in HELD_OUT_COUNTS if c[1] in shapes]
    pairs = [p for p in HELD_OUT_PAIRS if p <= set(shapes)]
    triples = [t for t in HELD_OUT_TRIPLES if {t[0], t[2]} <= set(shapes)]
    assert 0.1 <= len(colors) / (10 * n) <= 0.15
    assert 0.1 <= len(counts) / (3 * n) <= 0.17
    assert 0.1 <= len(pairs) / (n * (n - 1) / 2) <= 0.17
    assert 0.1 <= len(triples) / (4 * n * (n - 1)) <= 0.15
    assert max(Counter(shape for _, shape in colors).values()) <= 2
    assert max(Counter(color for color, _ in HELD_OUT_COLORS).values()) <= 2
    assert max(Counter(shape for pair in pairs for shape in pair).values()) <= 1
    assert len({relation for _, relation, _ in triples}) == 4


def test_every_shape_keeps_each_colour_position_and_most_counts_in_training():
    found = scenes(2, 2200)
    assert len({(o.color, o.shape) for s in found for o in s.objects}) == 100 - len(HELD_OUT_COLORS)
    counted = {(len(s.objects), s.objects[0].shape) for s in found if s.kind == "counting"}
    assert len(counted) == 30 - len(HELD_OUT_COUNTS)


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_has_the_outline_s_area_and_box(shape):
    radius = 9.3
    alpha = coverage(shape, 16.2, 15.7, radius, 32, 32)
    area, cx, cy = 0.0, 0.0, 0.0
    for sign, contour in zip((1, -1), outline(shape), strict=False):
        x, y = contour.T
        cross = x * np.roll(y, -1) - y * np.roll(x, -1)
        area += sign * abs(cross.sum()) / 2
        cx += sign * ((x + np.roll(x, -1)) * cross).sum() / 6 * np.sign(cross.sum())
        cy += sign * ((y + np.roll(y, -1)) * cross).sum() / 6 * np.sign(cross.sum())
    assert alpha.sum() == pytest.approx(area * radius**2, rel=0.02)
    assert moments(shape) == pytest.approx((area, cx / area, cy / area), abs=0.01)
    half_x, half_y = extent(shape)
    ys, xs = np.nonzero(alpha > 0.3)
    assert xs.min() == pytest.approx(16.2 - half_x * radius, abs=1.3)
    assert ys.max() + 1 == pytest.approx(15.7 + half_y * radius, abs=1.3)
    assert max(half_x, half_y) <= 1.0001


def test_pictures_show_each_colour_on_its_background_at_any_size():
    for name, rgb in COLORS.items():
        scene = Scene(2, "colors", (Object("square", name, "large", 0.4, 0.6, 0.2),))
        for height, width in ((64, 64), (40, 100), (256, 192)):
            picture = render(scene, height, width)
            assert picture.shape == (height, width, 3) and picture.dtype == np.uint8
            assert tuple(picture[int(0.6 * height), int(0.4 * width)]) == rgb
            assert tuple(picture[0, 0]) == BACKGROUNDS["grey"]


def test_edges_are_anti_aliased_and_move_with_fractions_of_a_pixel():
    def painted(x):
        return render(Scene(1, "colors", (Object("circle", "black", "large", x, 0.5, 0.2),)))

    still, moved = painted(0.5), painted(0.5 + 0.25 / 64)
    ends = np.array([COLORS["black"], BACKGROUNDS["grey"]])
    between = (still > ends.min(0) + 5).all(2) & (still < ends.max(0) - 5).all(2)
    assert 30 < between.sum() < 200
    assert 0 < np.abs(still.astype(int) - moved).max() < 80


def test_textures_mix_the_two_tones_of_one_colour_in_their_proportions():
    for texture, share in (("striped", 0.5), ("checkered", 0.5), ("dotted", 0.28)):
        scene = Scene(3, "colors", (Object("square", "blue", "large", 0.5, 0.5, 0.4, texture),))
        inside = render(scene, 256, 256)[60:196, 60:196].reshape(-1, 3).astype(float)
        base, tone = (np.array(c["blue"], float) for c in (COLORS, TONES))
        t = (inside - base) @ (tone - base) / ((tone - base) @ (tone - base))
        assert t.mean() == pytest.approx(share, abs=0.08)
        assert np.abs(inside - base - t[:, None] * (tone - base)).max() < 2


def test_gradients_run_between_two_backgrounds():
    ground = Background("grey", "teal", "right")
    picture = render(Scene(3, "colors", (Object("star", "red", "small", 0.5, 0.5, 0.1),), ground))
    np.testing.assert_allclose(picture[:, 0].mean(0), BACKGROUNDS["grey"], atol=2)
    np.testing.assert_allclose(picture[:, -1].mean(0), BACKGROUNDS["teal"], atol=2)


def test_colours_and_backgrounds_are_far_apart():
    def lab(table):
        rgb = np.array(list(table.values()), np.float32)[:, None] / 255
        return cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)[:, 0]

    colors, grounds = lab(COLORS), lab(BACKGROUNDS)
    for a, b in combinations(colors, 2):
        assert np.linalg.norm(a - b) > 30
    assert np.linalg.norm(colors[:, None] - grounds[None], axis=-1).min() > 25


def test_truth_boxes_are_tight_around_masks_and_the_layout_names_classes():
    for scene in scenes(3, 80, split="all"):
        exact = truth(scene, 128, 128)
        for item, box, mask in zip(scene.objects, exact.boxes, exact.masks, strict=True):
            ys, xs = np.nonzero(mask)
            tight = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            # Points of stars and horns of moons are thinner than half a pixel.
            assert np.abs(tight - box).max() < 3.5
            assert (exact.layout[mask] == 1 + SHAPES.index(item.shape)).all()
        assert (exact.layout == WORD_CLASS).any() == bool(scene.word)


def test_svg_draws_the_same_objects_as_the_renderer():
    name = "{http://www.w3.org/2000/svg}"
    for scene in scenes(3, 25, split="all"):
        root = ET.fromstring(svg(scene, 256, 320))
        exact = truth(scene, 256, 320)
        paths = {p.get("id"): p for p in root.iter(f"{name}path")}
        for i, item in enumerate(scene.objects):
            contours = [
                np.array(re.findall(r"(-?[\d.]+) (-?[\d.]+)", part), float)
                for part in paths[f"object{i}"].get("d").split("z")[:-1]
            ]
            drawn = np.zeros((256, 320), np.uint8)
            cv2.fillPoly(
                drawn, [np.round((c - 0.5) * 256).astype(int) for c in contours], 1, shift=8
            )
            both = (drawn > 0) & exact.masks[i]
            assert (
                both.sum() / ((drawn > 0) | exact.masks[i]).sum() > 0.9
            )  # the outline is drawn, too
            fill = paths[f"object{i}"].get("fill")
            if item.texture == "solid":
                assert fill == "#{:02x}{:02x}{:02x}".format(*COLORS[item.color])
            else:
                patterns = {p.get("id") for p in root.iter(f"{name}pattern")}
                assert fill.removeprefix("url(#").removesuffix(")") in patterns
        assert ("word" in paths) == bool(scene.word)


def test_scenes_survive_json():
    for scene in scenes(3, 30):
        assert Scene.from_dict(json.loads(json.dumps(scene.to_dict()))) == scene
    with pytest.raises(GessoError, match="not a scene"):
        Scene.from_dict({"level": 1})


def test_bad_requests_are_refused_in_one_sentence():
    with pytest.raises(GessoError, match="level"):
        sample_scene(0, level=4)
    with pytest.raises(GessoError, match="split"):
        sample_scene(0, split="dev")
    with pytest.raises(GessoError, match="16 pixels"):
        render(sample_scene(0), 8, 64)
    with pytest.raises(GessoError, match="heigth"):
        build("data.sources", {"name": "scenes", "heigth": 64})


def test_the_source_yields_samples_in_order_with_their_scene():
    source = build("data.sources", {"name": "scenes", "level": 2, "count": 5, "width": 96})
    samples = list(source)
    assert len(source) == len(samples) == 5
    assert [s.key for s in samples] == [f"scene-0-{i}" for i in range(5)]
    for i, sample in enumerate(samples):
        assert sample.image.shape == (64, 96, 3)
        scene = Scene.from_dict(sample.meta["scene"])
        assert scene == sample_scene(i, level=2)
        assert (sample.image == render(scene, 64, 96)).all()
        assert source[i].captions == sample.captions
    with pytest.raises(IndexError):
        source[5]


def test_the_source_s_fingerprint_follows_its_options():
    def mark(**options):
        return build("data.sources", {"name": "scenes", **options}).fingerprint()

    assert mark() == mark()
    assert len({mark(), mark(level=2), mark(seed=1), mark(split="all"), mark(width=96)}) == 5
