"""The reader: pictures back to scenes, on clean and damaged renders."""

import cv2
import numpy as np
import pytest

from gesso.data.scenes import (
    COLORS,
    SHAPES,
    Background,
    Object,
    Scene,
    read,
    render,
    sample_scene,
    truth,
)
from gesso.data.scenes.reader import box_iou
from gesso.types import GessoError


def blurred(picture):
    return cv2.GaussianBlur(picture, (0, 0), 1.0)


def noised(picture):
    noise = np.random.default_rng(int(picture.sum())).normal(0, 8, picture.shape)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def compressed(picture):
    _, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 75])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1].copy()


def judged(level, damage=lambda p: p, n=80, height=64, width=64, seed=9):
    """(share of objects right, objects read where there are none per object)."""
    right = total = extra = 0
    for i in range(n):
        scene = sample_scene(i, level=level, seed=seed, split="all")
        found = read(damage(render(scene, height, width)), level).objects
        matched = 0
        for item, box in zip(scene.objects, truth(scene, height, width).boxes, strict=True):
            near = [d for d in found if box_iou(tuple(box), d.box) > 0.5]
            matched += bool(near)
            right += any((d.shape, d.color) == (item.shape, item.color) for d in near)
        total += len(scene.objects)
        extra += len(found) - matched
    return right / total, extra / total


@pytest.mark.parametrize("level", [1, 2, 3])
def test_clean_renders_are_read_without_error(level):
    right, extra = judged(level, n=120)
    assert right >= 0.995 and extra == 0


@pytest.mark.parametrize("damage", [blurred, noised, compressed])
def test_damaged_renders_are_read_nearly_without_error(damage):
    right, extra = judged(2, damage)
    assert right >= 0.98 and extra <= 0.02


@pytest.mark.parametrize(("height", "width"), [(48, 48), (64, 128), (200, 120), (300, 300)])
def test_other_sizes_and_aspect_ratios_are_read(height, width):
    right, extra = judged(2, n=25, height=height, width=width)
    assert right >= 0.98 and extra == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_read_at_every_size_with_box_mask_and_size(shape):
    for size, radius in (("small", 0.115), ("medium", 0.155), ("large", 0.2)):
        item = Object(shape, "purple", size, 0.43, 0.57, radius)
        scene = Scene(2, "colors", (item,), Background("beige"))
        (found,) = read(render(scene), level=2).objects
        assert (found.shape, found.color, found.size) == (shape, "purple", size)
        exact = truth(scene)
        assert box_iou(tuple(exact.boxes[0]), found.box) > 0.9
        both = (found.mask & exact.masks[0]).sum() / (found.mask | exact.masks[0]).sum()
        assert both > 0.85 and found.confidence > 0.9


def test_every_colour_is_read_on_every_background():
    for ground in ("grey", "beige", "mint", "lilac", "teal"):
        for color in COLORS:
            scene = Scene(
                2, "colors", (Object("heart", color, "small", 0.5, 0.5, 0.115),), Background(ground)
            )
            reading = read(render(scene), level=2)
            assert [d.color for d in reading.objects] == [color]
            assert reading.background == Background(ground)


def test_words_textures_and_gradients_are_read():
    words = textures = objects = grounds = 0
    for i in range(80):
        scene = sample_scene(i, level=3, seed=2)
        reading = read(render(scene), level=3)
        words += reading.word == scene.word
        grounds += reading.background == scene.background
        for item, box in zip(scene.objects, truth(scene).boxes, strict=True):
            found = max(reading.objects, key=lambda d: box_iou(tuple(box), d.box))
            textures += found.texture == item.texture
            objects += 1
    assert words == grounds == 80
    assert textures / objects > 0.93


def test_confidence_is_about_the_share_that_is_right():
    confidences, right = [], []
    for i in range(120):
        scene = sample_scene(i, level=2, seed=4, split="all")
        boxes = truth(scene).boxes
        for found in read(cv2.GaussianBlur(render(scene), (0, 0), 1.9), level=2).objects:
            near = [j for j, b in enumerate(boxes) if box_iou(tuple(b), found.box) > 0.5]
            right.append(
                any(
                    (scene.objects[j].shape, scene.objects[j].color) == (found.shape, found.color)
                    for j in near
                )
            )
            confidences.append(found.confidence)
    confidences, right = np.array(confidences), np.array(right)
    assert right.mean() < 0.95  # the test is about errors
    assert abs(confidences.mean() - right.mean()) < 0.1
    assert confidences[right].mean() > confidences[~right].mean() + 0.1


def test_empty_and_meaningless_pictures_hold_no_confident_object():
    assert read(np.full((64, 64, 3), 180, np.uint8)).objects == []
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert all(d.confidence < 0.3 for d in read(noise).objects)
    clouds = cv2.GaussianBlur(rng.normal(0, 1, (64, 64, 3)), (0, 0), 4)
    clouds = (255 * (clouds - clouds.min()) / np.ptp(clouds)).astype(np.uint8)
    assert all(d.confidence < 0.9 for d in read(clouds).objects)


def test_specks_and_a_bitten_object_do_not_count_as_sure():
    scene = Scene(1, "colors", (Object("square", "red", "large", 0.5, 0.5, 0.2),))
    picture = render(scene)
    picture[5:8, 5:8] = COLORS["blue"]
    assert [d.color for d in read(picture, 1).objects] == ["red"]
    picture[24:42, 24:34] = render(Scene(1, "colors", scene.objects[:0]))[0, 0]
    assert all(d.confidence < 0.9 for d in read(picture, 1).objects)


def test_pictures_that_are_not_rgb_bytes_are_refused():
    for wrong in (np.zeros((64, 64, 3), np.float32), np.zeros((64, 64), np.uint8)):
        with pytest.raises(GessoError, match="uint8"):
            read(wrong)


@pytest.mark.parametrize("shape", ["circle", "square", "star", "ring", "hexagon"])
def test_fragments_of_one_object_are_read_as_one(shape):
    scene = Scene(2, "colors", (Object(shape, "blue", "large", 0.5, 0.5, 0.2),))
    picture = render(scene)
    picture[:, 32:34] = picture[0, 0]  # a cut through the middle, two pixels wide
    assert [(d.shape, d.color) for d in read(picture, 2).objects] == [(shape, "blue")]


def test_two_objects_of_one_colour_side_by_side_stay_two():
    pair = tuple(Object("square", "green", "medium", x, 0.5, 0.15) for x in (0.3, 0.64))
    assert len(read(render(Scene(2, "counting", pair)), 2).objects) == 2
