"""Decoding: every kind of picture comes out upright, opaque RGB, or as one clear sentence."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gesso.data.images import cover, load_rgb, to_tensor
from gesso.types import GessoError


def encoded(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)  # type: ignore[arg-type]
    return file.getvalue()


def first_pixel(data: bytes, background: str = "white") -> list[int]:
    image = load_rgb(data, background)
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
    return image[0, 0].tolist()


def test_half_transparent_red_is_blended_with_the_background() -> None:
    data = encoded(Image.new("RGBA", (8, 8), (255, 0, 0, 128)))
    assert first_pixel(data) == [255, 127, 127]
    assert first_pixel(data, "black") == [128, 0, 0]
    assert first_pixel(data, "#0000ff") == [128, 0, 127]


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (Image.new("L", (8, 8), 77), {}, [77, 77, 77]),
        (Image.new("LA", (8, 8), (77, 0)), {}, [255, 255, 255]),
        (Image.new("1", (8, 8), 1), {}, [255, 255, 255]),
        (Image.new("RGB", (8, 8), (1, 2, 3)), {"transparency": (1, 2, 3)}, [255, 255, 255]),
        (Image.new("I;16", (8, 8), 32896), {}, [128, 128, 128]),
    ],
)
def test_png_modes(image: Image.Image, options: dict[str, object], expected: list[int]) -> None:
    assert first_pixel(encoded(image, **options)) == expected


def test_sixteen_bits_keep_their_range() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    image = load_rgb(encoded(Image.fromarray(ramp)))
    assert image.min() == 0 and image.max() == 255
    assert len(np.unique(image)) == 64


def test_palette_with_transparent_entry() -> None:
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 0, 200, 0])
    assert first_pixel(encoded(image)) == [0, 200, 0]
    assert first_pixel(encoded(image, transparency=1)) == [255, 255, 255]


def test_cmyk_jpeg_has_its_colours() -> None:
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    r, g, b = first_pixel(encoded(red, "JPEG", quality=95))
    assert r > 200 and g < 60 and b < 60


def test_first_frame_of_an_animation() -> None:
    frames = [Image.new("RGB", (8, 8), c) for c in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert first_pixel(data) == [255, 0, 0]


def test_exif_orientation_turns_the_picture() -> None:
    image = Image.new("RGB", (20, 10), "black")
    image.paste("white", (0, 0, 10, 10))  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: left goes up
    shown = load_rgb(encoded(image, "JPEG", exif=exif, quality=95))
    assert shown.shape == (20, 10, 3)
    assert shown[2, 5, 0] > 240 and shown[17, 5, 0] < 15


def test_broken_exif_does_not_matter() -> None:
    data = encoded(Image.new("RGB", (8, 8), "red"), exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert first_pixel(data) == [255, 0, 0]


def test_sizes_are_checked_before_pixels_are_decoded() -> None:
    with pytest.raises(GessoError, match="too small: 20x7"):
        load_rgb(encoded(Image.new("RGB", (20, 7))))
    for width, height in [(20_000, 5_001), (2**31 - 1, 2**31 - 1)]:
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + b"IHDR" + header
        chunk += struct.pack(">I", zlib.crc32(b"IHDR" + header))
        bomb = b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT" + bytes(4)
        with pytest.raises(GessoError):
            load_rgb(bomb)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (encoded(Image.new("F", (8, 8), 0.5), "TIFF"), "floating-point"),
        (encoded(Image.new("RGB", (64, 64), "red"), "JPEG")[:-60], "decoded"),
    ],
)
def test_refusals(data: bytes, word: str) -> None:
    with pytest.raises(GessoError, match=word):
        load_rgb(data)


def test_missing_file_and_unknown_colour(tmp_path: Path) -> None:
    with pytest.raises(GessoError, match="does not exist"):
        load_rgb(tmp_path / "gone.png")
    with pytest.raises(GessoError, match="'whte' is not a colour"):
        load_rgb(encoded(Image.new("RGB", (8, 8))), "whte")


NOISE = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"]),
    st.integers(0, 10_000),
    st.binary(min_size=1, max_size=12),
    st.booleans(),
)
def test_damaged_files_raise_nothing_but_a_sentence(
    format: str, place: int, junk: bytes, cut: bool
) -> None:
    data = encoded(Image.fromarray(NOISE), format)
    place %= len(data)
    damaged = data[:place] + junk + (b"" if cut else data[place + len(junk) :])
    try:
        image = load_rgb(damaged)
    except GessoError as e:
        assert "\n" not in str(e)
    else:
        assert image.shape[2] == 3


def test_cover_keeps_the_centre_and_the_proportions() -> None:
    image = np.zeros((40, 80, 3), dtype=np.uint8)
    image[:, 20:60] = 200  # the centred square
    square = cover(image, (16, 16))
    assert square.shape == (16, 16, 3)
    assert abs(square.astype(int) - 200).max() < 16  # Lanczos sees and rings at the edge
    wide = cover(image.transpose(1, 0, 2), (10, 20))  # 80 high, 40 wide -> rows 30..50 remain
    assert wide.shape == (10, 20, 3)
    assert abs(wide.astype(int) - 200).max() < 16


def test_cover_leaves_a_fitting_picture_alone_and_enlarges_small_ones() -> None:
    assert (cover(NOISE, (24, 24)) == NOISE).all()
    assert cover(NOISE, (48, 96)).shape == (48, 96, 3)


def test_cover_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    small = cover(stripes, (8, 8)).astype(int)
    assert abs(small[:, 1:-1] - 127.5).max() < 12  # sampling single pixels would give 0 or 255


@given(st.integers(8, 200), st.integers(8, 200), st.integers(1, 60), st.integers(1, 60))
def test_cover_gives_the_size_and_keeps_a_flat_colour(h: int, w: int, H: int, W: int) -> None:
    image = np.full((h, w, 3), 93, dtype=np.uint8)
    assert cover(image, (H, W)).shape == (H, W, 3)
    assert (cover(image, (H, W)) == 93).all()


def test_to_tensor_range_and_layout() -> None:
    image = np.zeros((2, 4, 6, 3), dtype=np.uint8)
    image[1, 2, 3, 0] = 255
    pixels = to_tensor(image)
    assert pixels.shape == (2, 3, 4, 6) and pixels.dtype == torch.float32
    assert pixels[1, 0, 2, 3] == 1 and pixels[1, 1, 2, 3] == -1
    assert to_tensor(torch.from_numpy(image[0])).shape == (3, 4, 6)
    assert image.max() == 255  # the input is not written to
