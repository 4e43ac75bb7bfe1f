"""Pictures of strangers are decoded in whatever format, and damage is told in words, also when it ends the process."""

import io
import os
import random
import re
import signal
import struct
import time
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from kd.data.library import decoder
from kd.data.library.decoder import Decoder, judge
from tests.support.uploads import RED, WHITE, encoded, heic, red, turned


def numbers(top: float, dtype: type) -> Image.Image:
    """A grey picture of two thirds of ``top``."""
    return Image.fromarray(np.full((16, 24), top * 2 / 3, dtype))


def bomb_png(width: int, height: int) -> bytes:
    """A PNG that says it is large, and is not."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def frames(form: str, **options) -> bytes:
    blue = Image.new("RGB", (24, 16), (0, 0, 255))
    return encoded(red(), form, save_all=True, append_images=[blue, blue], **options)


def zip_in_picture() -> bytes:
    """A PNG that is a zip as well."""
    file = io.BytesIO(encoded(red(), "PNG"))
    with zipfile.ZipFile(file, "a") as both:
        both.writestr("../evil.py", "boom")
    return file.getvalue()


def noise() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), np.uint8))


GREY = (170, 170, 170)


READ = {
    "PNG": (lambda: encoded(red(), "PNG"), RED),
    "a JPEG called .png": (lambda: encoded(red(), "JPEG", quality=95), RED),
    "CMYK": (lambda: encoded(red("CMYK"), "JPEG", quality=95), RED),
    "CMYK in a TIFF": (lambda: encoded(red("CMYK"), "TIFF"), RED),
    "palette": (lambda: encoded(red("P"), "PNG"), None),
    "palette with alpha": (lambda: encoded(Image.new("P", (24, 16)), "PNG", transparency=0), WHITE),
    "alpha": (lambda: encoded(Image.new("RGBA", (24, 16), (*RED, 0)), "PNG"), WHITE),
    "grey with alpha": (lambda: encoded(Image.new("LA", (24, 16), (9, 0)), "PNG"), WHITE),
    "one bit": (lambda: encoded(Image.new("1", (24, 16), 1), "PNG"), WHITE),
    "16 bits": (lambda: encoded(numbers(65535, np.uint16), "PNG"), GREY),
    "16 bits in a TIFF": (lambda: encoded(numbers(65535, np.uint16), "TIFF"), GREY),
    "32 bits in a TIFF": (lambda: encoded(numbers(65535, np.int32), "TIFF"), GREY),
    "floats up to 1": (lambda: encoded(numbers(1, np.float32), "TIFF"), GREY),
    "turned": (turned, RED),
    "damaged EXIF": (lambda: encoded(red(), "JPEG", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), RED),
    "animated GIF": (lambda: frames("GIF"), RED),
    "animated WebP": (lambda: frames("WEBP", lossless=True), RED),
    "animated PNG": (lambda: frames("PNG"), RED),
    "TIFF with pages": (lambda: frames("TIFF"), RED),
    "MPO, as phones make it": (lambda: frames("MPO", quality=95), RED),
    "BMP": (lambda: encoded(red(), "BMP"), RED),
    "AVIF": (lambda: encoded(red(size=(64, 48)), "AVIF", quality=95), RED),
    "HEIC": (heic, RED),
    "a zip as well": (zip_in_picture, RED),
    "a script as well": (lambda: encoded(red(), "GIF") + b"<script>alert(1)</script>", RED),
}


BAD = {
    "empty": (lambda: b"", False, "is empty"),
    "text": (lambda: b"hello", False, "is not a picture that can be read"),
    "dimensions": (lambda: bomb_png(50_000, 50_000), True, "has too many pixels; at most 64 megapixels"),
    "dimensions below Pillow's own limit": (lambda: bomb_png(9000, 9000), True, "is 9,000 x 9,000 pixels; at most 64"),
    "tiny": (lambda: encoded(red(size=(24, 2)), "PNG"), True, "expected at least 4 x 4"),
    "a cut PNG": (lambda: encoded(noise(), "PNG")[:600], True, "is damaged or cut short"),
    "a cut JPEG": (lambda: encoded(noise(), "JPEG")[:900], True, "is damaged or cut short"),
    "a cut WebP": (lambda: encoded(noise(), "WEBP")[:300], None, "damaged or cut short|is not a picture"),
    "a cut HEIC": (lambda: heic()[:-60], None, "damaged or cut short|is not a picture"),
    "a cut AVIF": (lambda: encoded(noise(), "AVIF")[:-200], None, "damaged or cut short|is not a picture"),
    "no pixels": (lambda: bomb_png(30, 30), True, "is damaged or cut short"),
    "PostScript": (lambda: encoded(red(), "EPS"), False, "is not a picture that can be read"),
    "PDF": (lambda: encoded(red(), "PDF"), False, "is not a picture that can be read"),
    "TGA": (lambda: encoded(red(), "TGA"), False, "is not a picture that can be read"),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", False, "is not a picture that can be read"),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("kind", READ)
def test_a_picture_is_read_whatever_it_is_packed_in(kind):
    make, colour = READ[kind]
    picture = decoder.open_picture(make(), "a.png")
    assert picture.mode == "RGB" and picture.width > picture.height
    if colour:
        assert np.abs(np.asarray(picture, int) - colour).max() <= 12
    assert judge(make(), "a.png") == {}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_picture_is_named_with_the_reason(kind):
    make, begins_like_one, reason = BAD[kind]
    answer = judge(make(), "a.png")
    assert re.search(reason, answer["reason"]), answer
    assert begins_like_one is None or answer["picture"] is begins_like_one


@pytest.mark.filterwarnings("ignore:Truncated File Read")
def test_damage_anywhere_is_told_in_words():
    rng = random.Random(0)
    for make in (
        turned,
        lambda: frames("GIF"),
        lambda: encoded(noise(), "TIFF"),
        lambda: encoded(red("P"), "PNG"),
        heic,
    ):
        whole = make()
        for _ in range(12):
            data = bytearray(whole)
            for _ in range(4):
                data[rng.randrange(len(data))] = rng.randrange(256)
            assert set(judge(bytes(data), "a.png")) in (set(), {"reason", "picture"})


def judge_or_die(data: bytes, name: str) -> dict:
    if name == "crash":
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "hang":
        time.sleep(60)
    if name == "greedy":
        bytearray(10**11)
    return {"data": data.decode()}


def test_a_picture_that_kills_the_decoder_is_named_and_the_next_one_is_read(monkeypatch):
    monkeypatch.setenv("KD_DECODER_MB", "30000")  # this process has torch in it
    with Decoder(judge_or_die, seconds=0.3) as judge:
        assert judge(b"1", "fine") == {"data": "1"}
        first = judge.process.pid
        assert "crash" in judge(b"2", "crash")["reason"]
        assert "takes longer than 0.3 s" in judge(b"3", "hang")["reason"]
        assert "memory" in judge(b"4", "greedy")["reason"]
        assert judge(b"5", "fine") == {"data": "5"} and judge.process.pid != first
        last = judge.process
    assert not last.is_alive()
