"""Find images of more than eight bits a channel, whose own range of values eight bits would not show.

Twelve bits in a file of sixteen are scaled as sixteen are, and come out all but black; of floats nobody knows which value
is white. The processor that is exported with a student cannot scale them either, so such datasets are refused.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kd import limits
from kd.data.images import DAMAGE, identified, white_value
from kd.errors import UserError
from kd.text import pictures_were

# A set whose brightest pixel reaches no more than this share of white is refused: 12 bits in 16, rounded to eight.
DARKEST = 16 / 255

# How many images of each split are looked at.
LOOKED_AT = 64

ADVICE = (
    "Convert all pictures to 8 bits with one range for all of them (brightest value of the set = 255), then try again."
)


def deep_notes(parts: list[Any]) -> list[str]:
    """Return what is to be said of a dataset's images of more than eight bits a channel; nothing where there are none.

    Some images of each split are looked at, all of them where those are dark. Raises ``UserError`` where the images would
    come out black, or each of them with a white of its own.
    """
    found = [one for part in parts for one in _deep(part, _spread(len(part)))]
    if not found:
        return []
    guessed = {one.white: one for one in found if one.is_guessed}
    if len(guessed) > 1:
        shown = " and ".join(f"{one.name} up to {one.brightest:g}" for one in guessed.values())
        raise UserError(f"The range of values of the deep pictures is not known: {shown}. {ADVICE}")
    best = max(found, key=lambda one: one.share)
    if best.share <= DARKEST:
        every = (one for part in parts for one in _deep(part, range(len(part))))
        best = next((one for one in every if one.share > DARKEST), best)
    if best.share <= DARKEST:
        raise UserError(
            f"The deep pictures (more than 8 bits a channel) use {best.share:.1%} of their range at most ({best.name}), so "
            f"they would come out black. {ADVICE}"
        )
    return [
        f"{pictures_were(len(found))} found with more than 8 bits a channel, among some that were looked at. Their whole range "
        f"becomes 0 to 255; the brightest ({best.name}) is at {best.share:.0%} of it."
    ]


@dataclass(frozen=True)
class Deep:
    """A deep image's ``brightest`` value, and that of ``white``, which is guessed from the values where no format says it."""

    name: str
    white: float
    brightest: float
    is_guessed: bool

    @property
    def share(self) -> float:
        return self.brightest / self.white


def _spread(count: int) -> Any:
    return np.linspace(0, count - 1, min(LOOKED_AT, count), dtype=int)


def _deep(dataset: Any, indices: Any) -> Iterator[Deep]:
    """Yield each readable deep image among the rows with these indices."""
    for index in indices:
        image = dataset[int(index)]["image"]
        name = Path(image["path"]).name if image["path"] else f"picture {index + 1}"
        try:
            with identified(image["bytes"] if image["bytes"] is not None else image["path"], name) as picture:
                if not _is_deep(picture) or picture.width * picture.height > limits.current().megapixels * 1e6:
                    continue
                values = np.nan_to_num(np.asarray(picture, dtype=np.float32))
                if picture.mode in ("RGBA", "LA"):
                    values = values[..., :-1]
                is_guessed = picture.mode in ("I", "F") and picture.format != "PPM"
                yield Deep(name, white_value(picture, values), float(values.max()), is_guessed)
        except (UserError, *DAMAGE):  # it is named where all images are decoded
            continue


def _is_deep(picture: Any) -> bool:
    """Return whether a file that is not decoded yet has more than eight bits a channel."""
    if picture.mode.startswith("I") or picture.mode == "F":
        return True
    # Pillow keeps the upper eight bits of colours of sixteen; how it unpacks them tells.
    return any(
        ";16" in str(tile.args) or (picture.format == "PPM" and _depth_of_ppm(tile.args) > 255) for tile in picture.tile
    )


def _depth_of_ppm(args: Any) -> int:
    return args[-1] if isinstance(args, tuple) and isinstance(args[-1], int) else 255
