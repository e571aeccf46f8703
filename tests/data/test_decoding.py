"""Pictures of every depth and mode: converted to what they show, or refused by name."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, ImageOps

from pelacli import console
from pelacli.data.decoding import decode
from pelacli.errors import RequestError

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


def encoded(image, kind="PNG", **how):
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def oriented(image, orientation, kind="JPEG", **how):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(image, kind, exif=exif, **how)


def pixels(raw, mode="L"):
    return np.asarray(decode(raw, mode, "x"))


def refused(raw, *words, mode="RGB"):
    with pytest.raises(RequestError) as error:
        decode(raw, mode, "folder/x.png")
    assert str(error.value).startswith("folder/x.png: ")
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


# The right way up -------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("kind", "how"),
    [("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {}), ("AVIF", {"quality": 100})],
)
def test_the_orientation_that_a_camera_wrote_is_applied(kind, how, orientation):
    image = Image.fromarray(np.kron(np.array([[20, 90, 160], [55, 125, 230]]), np.ones((8, 8))))
    raw = oriented(image.convert("L"), orientation, kind, **how)
    shown = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(raw))).convert("L"))
    assert np.array_equal(pixels(raw), shown)
    assert pixels(raw).shape == ((24, 16) if orientation >= 5 else (16, 24))


def test_an_image_that_a_library_has_opened_is_turned_each_time_it_is_asked_for():
    image = Image.open(io.BytesIO(oriented(Image.new("L", (6, 4)), 6))).convert("RGB")
    assert [decode(image, "RGB", "x").size for _ in range(2)] == [(4, 6), (4, 6)]


def test_an_image_stays_as_it_is_stored_where_only_so_it_has_the_annotated_size():
    raw = oriented(Image.new("L", (6, 4)), 6)
    assert decode(raw, "L", "x", (6, 4)).size == (6, 4)
    assert decode(raw, "L", "x", (6.0, 4.0)).size == (6, 4)
    assert decode(raw, "L", "x", (4, 6)).size == (4, 6)
    assert decode(raw, "L", "x", (5, 5)).size == (4, 6)
    square = Image.fromarray(RAMP)  # where both have it, it is upright, as annotation tools show it
    assert np.array_equal(
        np.asarray(decode(oriented(square, 3, "PNG"), "L", "x", (16, 16))), RAMP[::-1, ::-1]
    )


@pytest.mark.parametrize("value", [0, 9, 700])
def test_orientations_that_there_are_not_are_passed_over(value):
    assert np.array_equal(pixels(oriented(Image.fromarray(RAMP), value, "PNG")), RAMP)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_broken_exif_data_spoil_no_image():
    whole = oriented(Image.new("RGB", (6, 4)), 6)
    at = whole.index(b"Exif\0\0") + 6
    assert decode(whole[:at] + b"XXXX" + whole[at + 4 :], "RGB", "x").size == (6, 4)
    beyond = struct.pack("<2sHLHHHLL", b"II", 42, 8, 1, 0x0112, 3, 9_999, 77_777)
    exif = encoded(Image.new("RGB", (6, 4)), "JPEG", exif=b"Exif\0\0" + beyond)
    assert decode(exif, "RGB", "x").size == (6, 4)


# Depths -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_shares_of_white(kind):
    raw = encoded(Image.fromarray(RAMP.astype(np.uint16) * 257), kind)
    assert np.array_equal(pixels(raw), RAMP)
    assert np.array_equal(pixels(raw, "RGB")[..., 1], RAMP)


def test_16_bits_of_either_byte_order_and_of_netpbm_are_read_alike():
    values = RAMP.astype(">u2") * 257
    big = Image.frombytes("I;16B", (16, 16), values.tobytes())
    assert np.array_equal(pixels(big), RAMP)
    assert np.array_equal(pixels(b"P5 16 16 65535\n" + values.tobytes()), RAMP)


def test_numbers_of_32_bits_are_read_where_it_is_known_what_is_white():
    assert np.array_equal(pixels(encoded(Image.fromarray(RAMP.astype(np.int32)), "TIFF")), RAMP)
    shares = (RAMP / 255).astype(np.float32)
    assert np.array_equal(pixels(encoded(Image.fromarray(shares), "TIFF")), RAMP)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (np.array([[0, 4095]], np.int32), "whole numbers of 32 bits from 0 to 4095"),
        (np.array([[-1, 7]], np.int32), "from -1 to 7"),
        (np.array([[0, 255]], np.float32), "fractions of 32 bits from 0 to 255"),
        (np.array([[0, np.nan]], np.float32), "from nan to nan"),
        (np.array([[0, np.inf]], np.float32), "from 0 to inf"),
    ],
)
def test_numbers_of_32_bits_without_a_known_white_are_refused(values, told):
    refused(encoded(Image.fromarray(values), "TIFF"), told, "save them with 8 or 16 bits")


# Modes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_opaque_images_are_what_pillow_makes_of_them(mode):
    image = Image.fromarray(np.stack([RAMP, RAMP.T, RAMP[::-1]], -1)).convert(mode)
    raw = encoded(image)
    for wanted in ("L", "RGB"):
        assert np.array_equal(pixels(raw, wanted), np.asarray(image.convert(wanted)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_what_is_transparent_is_white(mode):
    image, how = Image.new("RGBA", (2, 1), (0, 0, 0, 255)), {}
    image.putpixel((1, 0), (0, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([0, 0, 0, 9, 9, 9])
        image.putpixel((1, 0), 1)
        how = {"transparency": 1}
    elif mode in ("L", "RGB"):  # PNG's tRNS: one colour is transparent
        image = Image.new("RGB", (2, 1))
        image.putpixel((1, 0), (9, 9, 9))
        image = image.convert(mode)
        how = {"transparency": 9 if mode == "L" else (9, 9, 9)}
    else:
        image = image.convert(mode)
    assert pixels(encoded(image, **how), "RGB").tolist() == [[[0] * 3, [255] * 3]]
    assert pixels(encoded(image, **how)).tolist() == [[0, 255]]


def test_half_transparent_colours_are_mixed_with_white():
    raw = encoded(Image.new("RGBA", (1, 1), (200, 100, 0, 128)))
    share = 128 / 255
    expected = [round(share * c + (1 - share) * 255) for c in (200, 100, 0)]
    assert pixels(raw, "RGB")[0, 0].tolist() == pytest.approx(expected, abs=1)


def test_an_image_that_is_transparent_throughout_is_refused():
    refused(encoded(Image.new("RGBA", (4, 4), (9, 9, 9, 0))), "transparent throughout", "alpha")


def test_print_colours_are_not_inverted():
    for kind in ("JPEG", "TIFF"):
        raw = encoded(Image.new("RGB", (8, 8), (250, 10, 10)).convert("CMYK"), kind)
        assert pixels(raw, "RGB")[4, 4].tolist() == pytest.approx([250, 10, 10], abs=6)


def test_lab_is_converted():
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(srgb, lab, "RGB", "LAB")
    image = ImageCms.applyTransform(Image.new("RGB", (4, 4), (250, 10, 10)), transform)
    raw = encoded(image, "TIFF")
    assert pixels(raw, "RGB")[2, 2].tolist() == pytest.approx([250, 10, 10], abs=6)
    assert int(pixels(raw)[2, 2]) == pytest.approx(0.299 * 250 + 0.701 * 10, abs=6)


# Frames, pages, sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_is_taken_and_that_is_said_once(kind, capsys, monkeypatch):
    monkeypatch.setattr(console.verbosity, "said", set())
    frames = [Image.new("RGB", (9, 9), (colour, 0, 0)) for colour in (250, 0)]
    how = {"lossless": True} if kind == "WEBP" else {}
    raw = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **how)
    for name in ("a/x", "a/y"):
        assert np.asarray(decode(raw, "RGB", name))[4, 4].tolist() == [250, 0, 0]
    said = capsys.readouterr().err
    assert said.startswith("note: a/x: has several frames or pages")
    assert said.count("\n") == 1


def test_unreadable_files_are_refused_by_name():
    refused(b"", "it is empty")
    refused(b"hello, world", "no format that Pillow knows", "save it as PNG or JPEG")
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        whole = encoded(Image.fromarray(noise), kind)
        refused(whole[: len(whole) // 2], "not a readable image", "remove it")


def test_a_bomb_is_refused_and_a_strip_too(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(encoded(Image.new("L", (30, 30))), "exceeds limit", "make it smaller")
    monkeypatch.undo()
    refused(encoded(Image.new("L", (5_000, 1))), "5000×1 px", "cut it into pieces")
    assert decode(encoded(Image.new("L", (150, 1))), "L", "x").size == (150, 1)
