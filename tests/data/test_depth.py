"""Images of more than eight bits a channel: scaled by one range, or refused in words."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from kd.data.images import open_row
from kd.data.splits import load_splits
from kd.errors import UserError
from tests.support.toys import dataset_config

COUNT = 12


def ramp(brightest: int) -> np.ndarray:
    return np.linspace(0, brightest, 64, dtype=np.uint16).reshape(8, 8)


def png(path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path.with_suffix(".png"))


def colour_png(path, values: np.ndarray) -> None:
    """A PNG of 16 bits a colour, which Pillow reads but does not write."""
    lines = b"".join(b"\0" + np.stack([line] * 3, -1).astype(">u2").tobytes() for line in values)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.with_suffix(".png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def tiff(path, values: np.ndarray) -> None:
    Image.fromarray(values).save(path.with_suffix(".tif"))


def pgm(path, values: np.ndarray) -> None:
    path.with_suffix(".pgm").write_bytes(b"P5 8 8 65535\n" + values.astype(">u2").tobytes())


def ppm(path, values: np.ndarray) -> None:
    path.with_suffix(".ppm").write_bytes(b"P6 8 8 65535\n" + np.stack([values] * 3, -1).astype(">u2").tobytes())


def floats(path, values: np.ndarray) -> None:
    Image.fromarray(values.astype(np.float32)).save(path.with_suffix(".tif"))


def loaded(folder, write, ranges: list[int]):
    for name in "ab":
        (folder / name).mkdir()
        for nth in range(COUNT):
            write(folder / name / f"{nth:02}", ramp(ranges[nth % len(ranges)]))
    return load_splits(dataset_config(folder))


@pytest.mark.parametrize("write", [png, colour_png, tiff, pgm, ppm])
@pytest.mark.parametrize("brightest", [4095, 255])
def test_twelve_or_eight_bits_in_sixteen_are_refused_and_not_shown_black(tmp_path, write, brightest):
    with pytest.raises(UserError, match=r"use \d\.\d% of their range at most .* come out black. Convert all"):
        loaded(tmp_path, write, [brightest])


@pytest.mark.parametrize("write", [png, colour_png, tiff, pgm, ppm])
def test_sixteen_bits_are_scaled_by_one_range_which_is_said(tmp_path, write):
    splits = loaded(tmp_path, write, [65535, 4095])
    assert "more than 8 bits" in splits.warnings[-1] and "is at 100% of it" in splits.warnings[-1]
    assert {int(np.asarray(open_row(row)).max()) for row in splits.train} <= {255, 15, 16}


def test_a_portable_map_says_its_own_white(tmp_path):
    def write(path, values):
        path.with_suffix(".pgm").write_bytes(b"P5 8 8 4095\n" + values.astype(">u2").tobytes())

    splits = loaded(tmp_path, write, [4095])
    assert "is at 100% of it" in splits.warnings[-1]


def test_floats_each_of_which_would_have_a_white_of_its_own_are_refused(tmp_path):
    with pytest.raises(
        UserError, match=r"range of values of the deep pictures is not known: .* up to 1 and .* up to 2"
    ):
        loaded(tmp_path, floats, [1, 2])


def test_grey_and_coloured_pictures_of_sixteen_bits_may_be_mixed(tmp_path):
    def write(path, values):
        (png if path.name.endswith(("0", "2", "4", "6", "8")) else colour_png)(path, values)

    assert "more than 8 bits" in loaded(tmp_path, write, [65535]).warnings[-1]


def test_pictures_of_eight_bits_are_not_spoken_of_however_dark(tmp_path):
    splits = loaded(tmp_path, lambda path, values: png(path, values.astype(np.uint8)), [9])
    assert not any("bits" in said for said in splits.warnings)
