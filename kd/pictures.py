"""One picture: opened, whatever a phone, a scanner or a stranger made of it, as upright RGB.

Its size is read before anything is decoded, so that a small file cannot ask for gigabytes.
"""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kd import limits
from kd.runs import RunError

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}
MIN_SIDE = 4


class BadPicture(RunError, ValueError):
    """A file that cannot be used as a picture; the message names it and says why."""


def open_picture(source: Path | str | bytes, name: str = "", least: int | None = None) -> Image.Image:
    """An upright RGB picture. Of an animation, the first frame; what is transparent becomes white.

    Where sides of ``least`` pixels are enough, a large JPEG is decoded at a half, a quarter or an eighth of its size,
    which takes a fraction of the time. The size is read before anything is decoded. Raises ``BadPicture``.
    """
    name = name or (Path(source).name if not isinstance(source, bytes) else "The picture")
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise BadPicture(f"{name}: there is no such file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own limit is lower
            picture = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
    except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError):
        raise BadPicture(
            f"{name} is not a picture that can be read. Expected PNG, JPEG, WebP, GIF, BMP or TIFF."
        ) from None
    with picture:
        width, height = picture.size
        if width * height > limits.current().megapixels * 1e6:
            raise BadPicture(
                f"{name} is {width:,} x {height:,} pixels; at most {limits.current().megapixels:g} megapixels are read. "
                "Make it smaller and try again."
            )
        if min(width, height) < MIN_SIDE:
            raise BadPicture(f"{name} is {width} x {height} pixels; expected at least {MIN_SIDE} x {MIN_SIDE}.")
        try:
            if least is not None:
                picture.draft("RGB", (least, least))
            return upright_rgb(picture)
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise BadPicture(f"{name} is damaged or cut short ({error}). Export it anew and try again.") from None


def upright_rgb(picture: Image.Image) -> Image.Image:
    """RGB with eight bits a channel, turned as its EXIF tag says, transparency on white."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 or 32 bits: Pillow would clip, not scale
        values = np.asarray(picture, dtype=np.float64)
        top = 65535 if picture.mode.startswith("I;16") or values.max() > 255 else 255
        picture = Image.fromarray((values * (255 / top)).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
