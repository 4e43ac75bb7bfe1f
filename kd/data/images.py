"""Open one image, whatever a phone, a scanner or a stranger made of it, as upright RGB.

Its size is read before anything is decoded, so that a small file cannot take gigabytes. Its format is recognised by its
content, among those that are allowed, so that no other decoder of Pillow's is ever called.
"""

import hashlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from kd import limits
from kd.data.streamed import looked_at
from kd.errors import UserError

# How the names of image files end, in lower case.
ENDINGS = {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif",
    ".ppm", ".pgm", ".pbm", ".pnm",
}  # fmt: skip

# Pillow's names of what is read; HEIF comes from `pillow-heif` where a file begins like one.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")

EXPECTED = "Expected PNG, JPEG, WebP, GIF, BMP, TIFF, PPM, HEIC or AVIF."

# How the file begins that a clone of a repository has in place of one that Git LFS keeps.
LFS = b"version http"

# The least side of an image, in pixels.
MIN_SIDE = 4

# What Pillow's decoders raise on damaged files: whatever they stumble over.
DAMAGE = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, ArithmeticError, AttributeError, RuntimeError,
    struct.error, zlib.error,
)  # fmt: skip


class BadPicture(UserError, ValueError):
    """A file that cannot be used as an image; the message names it and says why."""


class NoPicture(BadPicture):
    """A file that does not even begin like an image."""


def open_picture(source: Path | str | bytes, name: str = "", least: int | None = None) -> Image.Image:
    """Return an image as upright RGB: of an animation or several pages the first; what is transparent becomes white.

    Where sides of ``least`` pixels are enough, a large JPEG is decoded at a half, a quarter or an eighth of its size,
    which takes a fraction of the time. The size is read before anything is decoded. Raises ``BadPicture``.
    """
    name = name or (Path(source).name if not isinstance(source, bytes) else "The picture")
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise BadPicture(f"{name}: there is no such file.")
    size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
    if size > (most := limits.current().picture_mb) * 1e6:
        raise BadPicture(f"{name} is a file of {size / 1e6:.0f} MB; at most {most:g} MB are read.")
    with identified(source, name) as picture:
        width, height = picture.size
        if width * height > limits.current().megapixels * 1e6:
            raise _too_large(f"{name} is {width:,} x {height:,} pixels")
        if min(width, height) < MIN_SIDE:
            raise BadPicture(f"{name} is {width} x {height} pixels; expected at least {MIN_SIDE} x {MIN_SIDE}.")
        try:
            if least is not None:
                picture.draft("RGB", (least, least))
            picture.load()
            return upright_rgb(picture)
        except MemoryError:
            raise BadPicture(f"{name} needs more memory than there is to be decoded.") from None
        except DAMAGE as error:
            raise BadPicture(f"{name} is damaged or cut short ({error}). Export it anew and try again.") from None


def identified(source: Path | str | bytes, name: str) -> Image.Image:
    """Return the image with nothing decoded yet. Raises ``BadPicture``, ``NoPicture`` for what does not begin like one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_formats(source))
    except Image.DecompressionBombError:
        raise _too_large(f"{name} has too many pixels") from None
    except DAMAGE:  # UnidentifiedImageError among them
        head = _head(source)
        what = "is empty" if head == b"" else f"is not a picture that can be read. {EXPECTED}"
        if head.startswith(LFS):
            what = "is only a pointer of Git LFS. Get the files themselves with `git lfs pull`"
        raise NoPicture(f"{name} {what.rstrip('.')}.") from None


def is_picture(path: Path) -> bool:
    """Return whether a file is taken for an image: it is called one, or begins like one."""
    if path.suffix.lower() in ENDINGS:
        return True
    try:
        with identified(path, path.name):
            return True
    except BadPicture as problem:
        return not isinstance(problem, NoPicture)


def _too_large(what: str) -> BadPicture:
    most = limits.current().megapixels
    return BadPicture(f"{what}; at most {most:g} megapixels are read. Make it smaller and try again.")


def _formats(source: Path | str | bytes) -> tuple[str, ...]:
    """Return ``FORMATS``, with HEIF for a file that begins as HEIC and AVIF do: its plugin is imported when needed."""
    if _head(source)[4:8] != b"ftyp":
        return FORMATS
    from pillow_heif import register_heif_opener

    register_heif_opener()
    return (*FORMATS, "HEIF")


def _head(source: Path | str | bytes) -> bytes:
    """Return the first bytes of a file."""
    if isinstance(source, bytes):
        return source[:12]
    try:
        with Path(source).open("rb") as file:
            return file.read(12)
    except OSError:
        return b"?"


def upright_rgb(picture: Image.Image) -> Image.Image:
    """RGB with eight bits a channel, turned as its EXIF tag says, transparency on white."""
    is_deep, upright = picture.mode.startswith("I") or picture.mode == "F", _upright(picture)
    if is_deep:  # 16 or 32 bits: Pillow would clip, not scale
        values = np.nan_to_num(np.asarray(upright, dtype=np.float64))
        white = white_value(picture, values)
        upright = Image.fromarray((values * (255 / white)).clip(0, 255).astype(np.uint8))
    picture = upright
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as the EXIF tag says; as it lies where the tags are damaged, since the picture itself is not."""
    try:
        return ImageOps.exif_transpose(picture)
    except DAMAGE:
        return picture


def white_value(picture: Image.Image, values: np.ndarray) -> float:
    """Return the value of white in an image with these values: of floats up to 1 it is 1, of more than eight bits 65535."""
    mode, brightest = picture.mode, values.max()
    if mode == "F" and brightest <= 1:
        return 1
    is_sixteen = mode.startswith("I;16") or (mode == "I" and picture.format == "PPM")
    return 65535 if is_sixteen or (mode in "IF" and brightest > 255) else 255


def open_row(row: dict[str, Any], least: int | None = None) -> Image.Image:
    """Open the image of a dataset's row (``{"image": {"bytes", "path"}}``, as ``Image(decode=False)`` gives it)."""
    image = row["image"]
    name = Path(image["path"]).name if image["path"] else ""
    return open_picture(image["bytes"] if image["bytes"] is not None else image["path"], name, least)


def open_images(dataset: Any) -> Iterator[tuple[int, Image.Image | BadPicture]]:
    """Yield each row's index with its image, or with what is wrong with it."""
    for index, row in enumerate(dataset):
        try:
            yield index, open_row(row)
        except BadPicture as problem:
            yield index, problem


def file_bytes(row: dict[str, Any]) -> bytes:
    """Return a row's file, empty bytes where it is missing: decoding it says so."""
    image = row["image"]
    if image["bytes"] is not None:
        return image["bytes"]
    try:
        return Path(image["path"]).read_bytes()
    except FileNotFoundError:
        return b""


def file_digest(row: dict[str, Any]) -> bytes:
    """Return a hash of a row's file, 16 bytes."""
    return hashlib.blake2b(file_bytes(row), digest_size=16).digest()


def typical_size(dataset: Any, most: int = 64) -> tuple[int, int]:
    """Return the median shorter side and the largest longer side, in pixels, of some images spread over the dataset."""
    dataset = looked_at(dataset)
    sample = dataset.select(np.linspace(0, len(dataset) - 1, min(most, len(dataset)), dtype=int))
    sizes = [size for row in sample if (size := row_size(row)) is not None]
    if not sizes:
        raise UserError(f"None of {len(sample)} pictures that were tried can be read.")
    return int(np.median([min(size) for size in sizes])), max(max(size) for size in sizes)


def row_size(row: dict[str, Any]) -> tuple[int, int] | None:
    """Return an image's width and height from the first bytes of its file; ``None`` for what is no image."""
    image = row["image"]
    try:
        with identified(image["bytes"] if image["bytes"] is not None else image["path"], "") as picture:
            return picture.size
    except BadPicture:
        return None
