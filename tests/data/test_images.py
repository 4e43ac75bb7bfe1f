"""Reading one picture: formats, damage, colour, orientation."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from kd.data.images import BadPicture, open_picture
from tests.support import toys


def saved(path, image: Image.Image, **options):
    image.save(path, **options)
    return path


@pytest.fixture
def photo() -> Image.Image:
    """40 x 20, the left half red, the right half blue."""
    image = Image.new("RGB", (40, 20), "blue")
    image.paste("red", (0, 0, 20, 20))
    return image


def test_a_text_file_with_a_picture_s_ending_is_named(tmp_path):
    (tmp_path / "notes.jpg").write_text("hello")
    with pytest.raises(BadPicture, match=r"notes\.jpg is not a picture that can be read. Expected PNG, JPEG"):
        open_picture(tmp_path / "notes.jpg")


def test_a_truncated_jpeg_is_named(tmp_path):
    path = saved(tmp_path / "cut.jpg", Image.effect_noise((200, 200), 50))
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(BadPicture, match=r"cut\.jpg is damaged or cut short"):
        open_picture(path)


def test_one_pixel_is_too_small(tmp_path):
    with pytest.raises(BadPicture, match="1 x 1 pixels; expected at least 4 x 4"):
        open_picture(saved(tmp_path / "dot.png", Image.new("RGB", (1, 1))))


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path):
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 13000, 13000, 8, 2, 0, 0, 0)
    path = tmp_path / "bomb.png"  # its pixels are missing: decoding it would fail in other words
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    with pytest.raises(BadPicture, match=r"13,000 x 13,000 pixels; at most 64 megapixels"):
        open_picture(path)


def test_a_missing_file_a_folder_and_no_bytes_are_named(tmp_path):
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "empty.png").touch()
    for name in ("gone.png", "folder.jpg", "empty.png"):
        with pytest.raises(BadPicture, match=name):
            open_picture(tmp_path / name)


def test_cmyk_grey_and_16_bits_become_rgb(tmp_path, photo):
    cmyk = open_picture(saved(tmp_path / "print.jpg", photo.convert("CMYK")))
    assert cmyk.mode == "RGB" and cmyk.getpixel((5, 5))[0] > 180 > 80 > cmyk.getpixel((5, 5))[2]
    ramp = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    deep = np.asarray(open_picture(saved(tmp_path / "deep.png", Image.fromarray(ramp))))
    assert abs(int(deep[32, 0, 0]) - 32 * 64 * 16 / 65535 * 255) <= 1  # scaled, not clipped to white
    assert open_picture(saved(tmp_path / "grey.png", photo.convert("L"))).mode == "RGB"


def test_transparency_becomes_white_also_in_a_palette(tmp_path):
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    image.paste((0, 0, 255, 255), (0, 0, 4, 8))
    assert image.quantize().mode == "P"
    for path in (saved(tmp_path / "alpha.png", image), saved(tmp_path / "palette.png", image.quantize())):
        assert open_picture(path).getpixel((7, 7)) == (255, 255, 255), path
        assert open_picture(path).getpixel((0, 0))[2] > 200, path


def test_a_picture_that_a_phone_turned_is_upright(tmp_path, photo):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees clockwise to see it upright"
    turned = open_picture(saved(tmp_path / "phone.jpg", photo.rotate(90, expand=True), exif=exif, quality=95))
    assert turned.size == (40, 20)
    assert turned.getpixel((5, 10))[0] > 200 and turned.getpixel((35, 10))[2] > 200


def test_of_an_animation_the_first_frame_is_seen(tmp_path, photo):
    path = tmp_path / "moving.gif"
    photo.save(path, save_all=True, append_images=[Image.new("RGB", (40, 20), "lime")])
    assert open_picture(path).getpixel((5, 5))[0] > 200


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size(tmp_path):
    picture = toys.picture("red brick", np.random.default_rng(0), 64).resize((1600, 1200))
    picture.save(tmp_path / "large.jpg")
    assert open_picture(tmp_path / "large.jpg", least=100).size == (200, 150)
    assert open_picture(tmp_path / "large.jpg").size == (1600, 1200)


def test_bytes_are_opened_like_files():
    buffer = io.BytesIO()
    toys.picture("red brick", np.random.default_rng(0)).save(buffer, "PNG")
    assert open_picture(buffer.getvalue()).size == (32, 32)
