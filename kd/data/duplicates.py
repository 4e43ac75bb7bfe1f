"""Find images that are the same photo: byte for byte, or re-encoded, resized, a little cropped, brightened or mirrored.

Each image is decoded once to a thumbnail. Difference hashes of the thumbnails (Krawetz 2013, "Kind of like that") name
the pairs that may be the same; each pair is then verified: one thumbnail is moved, scaled and brightened until it fits
the other best (Lucas and Kanade 1981), and the remaining difference must be small against the image's own detail. Images
that merely resemble each other, two T-shirts of one make, do not pass.

Not found: crops of more than about a twentieth a side, turned images, colour made grey, parts drawn over; of images of up
to 64 pixels, only what is nearly equal.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from kd.config import SAMPLE, SMALL_SIDE, DistillConfig
from kd.data.images import BadPicture, file_digest, open_row, row_size
from kd.data.pixels import fingerprint, in_batches
from kd.data.splits import Splits
from kd.errors import UserError
from kd.system.files import write_whole

# Side of a thumbnail, in pixels.
SIDE = 32

# Pairs whose hashes differ in at most so many of 128 bits are verified.
BITS = 24

# Where all images resemble each other, fewer bits: as many as leave about so many pairs an image to verify.
PAIRS_PER_IMAGE = 10

# Share of a thumbnail's side at each edge that is not compared: a crop has taken it from one of the two.
MARGIN = 3 / 32

# The difference that may remain after the best fit, as a share of the image's detail: of photos, and of images of up to
# ``SMALL_SIDE`` pixels, which resemble each other. Among 3,409 photos of clothes and 11,000 images of Fashion-MNIST, no two
# that are not the same photo come as near (the nearest: over 0.35, and 0.094).
DIFFERENCE, SMALL_DIFFERENCE = 0.3, 0.085

# How many times that may remain after one step and after three steps towards the best fit, of images of half the size.
HOPEFUL = 4, 2

# A duplicate may be darker and brighter by these factors.
GAIN = (0.7, 1.4)

# Near duplicates of an image with less detail than this (of 255) cannot be found.
FLAT = 2.0

# Among more images only equal files are found: near duplicates take a comparison of every pair.
NEAR_MOST = 100_000

Progress = Callable[[int, int], None]


# --- Thumbnails, decoded once


@dataclass(frozen=True)
class Thumbnails:
    """What is kept of N images: ``thumbs`` uint8 ``[N, S, S, 3]``, ``sizes`` ``[N, 2]`` (width and height in pixels, zeros
    where one cannot be read), ``digests`` of the files ``[N]``, and ``unreadable``, index -> the reason."""

    thumbs: np.ndarray
    sizes: np.ndarray
    digests: np.ndarray
    unreadable: dict[int, str]


@dataclass(frozen=True)
class _Shrunk:
    """A dataset whose items are what ``Thumbnails`` keeps of each image."""

    dataset: Any

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[np.ndarray, tuple[int, int], bytes, str]:
        row = self.dataset[index]
        digest = file_digest(row)
        try:
            picture = open_row(row, least=2 * SIDE)
        except BadPicture as problem:
            return np.zeros((SIDE, SIDE, 3), np.uint8), (0, 0), digest, str(problem)
        return shrunk(picture), row_size(row) or picture.size, digest, ""


def shrunk(picture: Image.Image) -> np.ndarray:
    """Return an image as a thumbnail, uint8 ``[S, S, 3]``."""
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=3))


def load_thumbnails(dataset: Any, cache: Path, progress: Progress = lambda done, of: None) -> Thumbnails:
    """Return the thumbnails of a split, from ``cache`` if they were made before."""
    folder = Path(cache) / "thumbnails"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{fingerprint(dataset)}.npz"
    with FileLock(path.with_suffix(".lock")):
        found = _load(path)
        if found is None:
            found = _make_thumbnails(dataset, progress)
            with path.with_suffix(".part").open("wb") as file:
                np.savez(
                    file, thumbs=found.thumbs, sizes=found.sizes, digests=found.digests,
                    unreadable=json.dumps(found.unreadable),
                )  # fmt: skip
            os.replace(path.with_suffix(".part"), path)
        return found


def _load(path: Path) -> Thumbnails | None:
    """Return the thumbnails in a file; ``None`` where there is none, or it is damaged."""
    try:
        with np.load(path) as kept:
            unreadable = {int(index): reason for index, reason in json.loads(str(kept["unreadable"])).items()}
            return Thumbnails(kept["thumbs"], kept["sizes"], kept["digests"], unreadable)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        path.unlink()
        return None


def _make_thumbnails(dataset: Any, progress: Progress) -> Thumbnails:
    thumbs, sizes, digests, unreadable = [], [], [], {}
    for batch in in_batches(_Shrunk(dataset), 32):
        for thumb, size, digest, reason in batch:
            if reason:
                unreadable[len(thumbs)] = reason
            thumbs.append(thumb)
            sizes.append(size)
            digests.append(np.void(digest))
        progress(len(thumbs), len(dataset))
    return Thumbnails(np.stack(thumbs), np.array(sizes, np.int32), np.array(digests), unreadable)


def joined(parts: list[Thumbnails]) -> Thumbnails:
    """Return the thumbnails of several splits one after the other."""
    starts = np.cumsum([0, *(len(part.sizes) for part in parts)])
    return Thumbnails(
        np.concatenate([part.thumbs for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.digests for part in parts]),
        {start + i: why for start, part in zip(starts, parts, strict=False) for i, why in part.unreadable.items()},
    )


# --- Pairs


@dataclass(frozen=True)
class Pair:
    """Two images, ``one < other``, that are the same photo. ``kind`` is ``exact`` or ``near``, ``difference`` what remains
    after the best fit, as a share of the image's detail."""

    one: int
    other: int
    kind: str
    difference: float


def find_duplicates(seen: Thumbnails, progress: Progress = lambda done, of: None) -> list[Pair]:
    """Return the duplicates among images, exact ones first.

    Of several that are equal, each is paired with the first. In a group of near duplicates not every two are paired, but
    each is connected with every other through pairs.
    """
    exact = equal(seen.digests, list(seen.unreadable))
    first = np.setdiff1d(np.arange(len(seen.digests)), [pair.other for pair in exact])
    subjects = np.setdiff1d(first, list(seen.unreadable))
    subjects = subjects[_detail(_blurred(seen.thumbs[subjects])) >= FLAT]
    return exact + list(_near(seen, subjects, progress))


def equal(digests: np.ndarray, but: list[int]) -> list[Pair]:
    """Return the pairs of equal files, from their digests ``[N]``; those at the indices ``but`` are not images."""
    _, first, place = np.unique(digests, return_index=True, return_inverse=True)
    others = np.setdiff1d(np.arange(len(digests)), [*first, *but]).astype(int)
    return [Pair(int(first[place[i]]), int(i), "exact", 0.0) for i in others]


def _near(seen: Thumbnails, subjects: np.ndarray, progress: Progress) -> Iterator[Pair]:
    thumbs = seen.thumbs[subjects]
    coarse = coarser(thumbs)
    small = seen.sizes[subjects].min(1) <= SMALL_SIDE
    found: dict[tuple[int, int], float] = {}
    for candidates, mirrored in _candidates(thumbs, progress):
        for start in range(0, len(candidates), 512):
            pairs = candidates[start : start + 512]
            allowed = np.where(small[pairs].any(1), SMALL_DIFFERENCE, DIFFERENCE)
            left = differences(thumbs, coarse, pairs, allowed, mirrored)
            for i in np.flatnonzero(left <= allowed):
                pair = int(subjects[pairs[i, 0]]), int(subjects[pairs[i, 1]])
                found[pair] = min(float(left[i]), found.get(pair, 1.0))
    for (one, other), difference in sorted(found.items(), key=lambda item: item[1]):
        yield Pair(one, other, "near", round(difference, 4))


def hashes(thumbs: np.ndarray) -> np.ndarray:
    """Return difference hashes uint64 ``[N, 2]`` of thumbnails.

    A bit says whether one of 8 x 8 cells is brighter than the next, across in the first number and down in the second.
    """
    grey = thumbs.mean(-1, dtype=np.float32)
    turned = grey.transpose(0, 2, 1)
    words = []
    for side in (grey, turned):
        rows = side.reshape(len(side), 8, SIDE // 8, SIDE).mean(2)
        edges = np.linspace(0, SIDE, 10)
        sums = np.pad(rows.cumsum(-1), ((0, 0), (0, 0), (1, 1)), mode="edge")
        sums[..., 0] = 0
        whole = edges.astype(int)
        at_edges = sums[..., whole] + (edges - whole) * (sums[..., whole + 1] - sums[..., whole])
        bits = np.diff(np.diff(at_edges)) > 0
        words.append(np.packbits(bits.reshape(len(side), 64), axis=1).view(np.uint64)[:, 0])
    return np.stack(words, axis=1)


def _distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return in how many bits hashes ``[A, 2]`` and ``[B, 2]`` differ, uint8 ``[A, B]``."""
    across, down = (np.bitwise_count(one[:, None, word] ^ other[None, :, word]) for word in (0, 1))
    return across + down


def _candidates(thumbs: np.ndarray, progress: Progress) -> Iterator[tuple[np.ndarray, bool]]:
    """Yield pairs ``[P, 2]`` of thumbnails with similar hashes, and whether the first of each is to be mirrored."""
    plain, mirrored = hashes(thumbs), hashes(thumbs[:, :, ::-1])
    bits = _bits(plain)
    for start in range(0, len(plain), 256):
        block = slice(start, start + 256)
        for hashed in (plain, mirrored):
            one, other = np.nonzero(_distances(hashed[block], plain[start:]) <= bits)
            yield np.stack([one, other], axis=1)[other > one] + start, hashed is mirrored
        progress(min(start + 256, len(plain)), len(plain))


def _bits(hashed: np.ndarray) -> int:
    """Return ``BITS``, or fewer where that leaves more than ``PAIRS_PER_IMAGE`` pairs an image, estimated from some."""
    if len(hashed) <= PAIRS_PER_IMAGE:
        return BITS
    some = hashed[np.linspace(0, len(hashed) - 1, min(256, len(hashed)), dtype=int)]
    counts = np.bincount(_distances(some, hashed).ravel(), minlength=129)[: BITS + 1]
    pairs = (counts.cumsum() - len(some)) / len(some) / 2  # of each, half are counted with the other
    return max(4, int((pairs <= PAIRS_PER_IMAGE).sum()) - 1)


# --- Verified


def coarser(thumbs: np.ndarray) -> np.ndarray:
    """Return thumbnails uint8 ``[N, S, S, 3]`` at half the size, grey, float32 ``[N, S / 2, S / 2, 1]``."""
    grey = _blurred(thumbs.mean(-1, keepdims=True, dtype=np.float32))
    return grey.reshape(len(thumbs), SIDE // 2, 2, SIDE // 2, 2, 1).mean((2, 4))


def differences(
    thumbs: np.ndarray,
    coarse: np.ndarray,
    pairs: np.ndarray,
    allowed: np.ndarray,
    mirrored: bool = False,
) -> np.ndarray:
    """Return the difference ``[P]`` that remains between two thumbnails after the best fit, as a share of their detail.

    It is infinite where it will not come under what is ``allowed`` ``[P]``.

    Args:
        coarse: ``coarser`` of ``thumbs``.
        pairs: the indices of the two, ``[P, 2]``.
        mirrored: whether the first of each pair is mirrored.
    """
    one, other = pairs.T
    turn = slice(None, None, -1 if mirrored else 1)
    left, moved, hopeful = np.full(len(one), np.inf), np.zeros((len(one), 4)), np.arange(len(one))
    for pictures, rounds, times in ((coarse, 1, HOPEFUL[0]), (coarse, 2, HOPEFUL[1]), (thumbs, 2, np.inf)):
        a, b = pictures[one[hopeful]][:, :, turn], pictures[other[hopeful]]
        if pictures is thumbs:
            a, b, moved = _blurred(a), _blurred(b), 2 * moved
        found, moved = _fitted(a, b, moved, rounds)
        passed = found <= times * allowed[hopeful]
        found, moved, hopeful = found[passed], moved[passed], hopeful[passed]
        if not len(hopeful):
            return left
    left[hopeful] = found
    return left


def _fitted(one: np.ndarray, other: np.ndarray, moved: np.ndarray, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Fit images ``other`` to ``one`` ``[P, S, S, C]`` by least squares; return the difference ``[P]`` and the movement.

    The movement ``[P, 4]`` is to the right, down, wider, higher, in pixels at the edge; ``moved`` is where to begin.
    """
    side = one.shape[1]
    edge = round(MARGIN * side)
    inside = slice(edge, side - edge)
    along = np.linspace(-1, 1, side, dtype=np.float32)
    x, y = along[None, None, :, None], along[None, :, None, None]
    target = one[:, inside, inside].reshape(len(one), -1, 1)
    for _ in range(rounds):
        seen = _warped(other, moved, along) if moved.any() else other
        down, across = np.gradient(seen, axis=(1, 2))
        parts = [seen, np.ones_like(seen), across, down, across * x, down * y]
        basis = np.stack([part[:, inside, inside] for part in parts], axis=-1).reshape(len(one), -1, 6)
        across_basis = basis.transpose(0, 2, 1)
        weights = np.linalg.solve(across_basis @ basis + 0.1 * np.eye(6, dtype=np.float32), across_basis @ target)[
            ..., 0
        ]
        gain = weights[:, 0].clip(0.2)
        moved = (moved + (weights[:, 2:] / gain[:, None]).clip(-1.5, 1.5)).clip(-side / 10, side / 10)
    left = np.sqrt(((target - basis @ weights[..., None]) ** 2).mean((1, 2)))
    detail = np.minimum(_detail(one), _detail(other) * gain).clip(0.1)
    return np.where((gain > GAIN[0]) & (gain < GAIN[1]), left / detail, np.inf), moved


def _warped(pictures: np.ndarray, moved: np.ndarray, along: np.ndarray) -> np.ndarray:
    """Return images ``[P, S, S, C]`` sampled where ``moved`` says, linearly between pixels."""
    side, nth = len(along), np.arange(len(pictures))[:, None, None]
    places = []
    for shift, scale in ((moved[:, 0], moved[:, 2]), (moved[:, 1], moved[:, 3])):
        place = np.arange(side) + shift[:, None] + scale[:, None] * along
        place = place.clip(0, side - 1.001).astype(np.float32)
        places.append((place.astype(int), place % 1))
    (column, right), (row, low) = places
    row, column = row[:, :, None], column[:, None, :]
    right, low = right[:, None, :, None], low[:, :, None, None]
    above = pictures[nth, row, column] * (1 - right) + pictures[nth, row, column + 1] * right
    below = pictures[nth, row + 1, column] * (1 - right) + pictures[nth, row + 1, column + 1] * right
    return above * (1 - low) + below * low


def _blurred(pictures: np.ndarray) -> np.ndarray:
    """Return images ``[P, S, S, C]`` as float32, a little blurred, so that the grid of pixels matters less."""
    values = pictures.astype(np.float32)
    for axis in (1, 2):
        values = np.moveaxis(values, axis, 0)
        inner = 2 * values
        inner[1:] += values[:-1]
        inner[:-1] += values[1:]
        inner[0] += values[0]
        inner[-1] += values[-1]
        values = np.moveaxis(inner / 4, 0, axis)
    return values


def _detail(pictures: np.ndarray) -> np.ndarray:
    """Return how much images ``[P, S, S, C]`` vary within their 8 x 8 cells, root mean square ``[P]``."""
    count, side, _, channels = pictures.shape
    cells = pictures.reshape(count, 8, side // 8, 8, side // 8, channels)
    return np.sqrt(cells.var((2, 4)).mean((1, 2, 3)))


# --- Kept on one side


def groups(count: int, pairs: list[Pair]) -> np.ndarray:
    """Return for each of ``count`` images the first of those that it is connected with through pairs, ``[count]``."""
    first = list(range(count))

    def root(index: int) -> int:
        while first[index] != index:
            first[index] = first[first[index]]
            index = first[index]
        return index

    for pair in pairs:
        one, other = sorted((root(pair.one), root(pair.other)))
        first[other] = one
    return np.array([root(index) for index in range(count)], dtype=int)


def known_pairs(
    splits: Splits, cache: Path, phase: Callable[[str], Progress] = lambda name: lambda done, of: None
) -> list[Pair]:
    """Return the duplicates among all images of ``splits``, from ``cache`` if they were found before.

    Indices count through train, validation and test. ``phase`` gives a progress for each part of the work.
    """
    parts = [splits.train, splits.validation, splits.test]
    key = hashlib.blake2b("".join(map(fingerprint, parts)).encode(), digest_size=16).hexdigest()
    path = Path(cache) / "thumbnails" / f"pairs-{key}.json"
    try:
        return [Pair(*pair) for pair in json.loads(path.read_text())]
    except FileNotFoundError:
        pass
    except (ValueError, TypeError):
        path.unlink()
    if sum(map(len, parts)) > NEAR_MOST:
        pairs = equal(np.array([np.void(file_digest(row)) for part in parts for row in part]), [])
    else:
        seen = joined([load_thumbnails(part, cache, phase("looking for duplicates")) for part in parts])
        pairs = find_duplicates(seen, phase("comparing pictures"))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps([[pair.one, pair.other, pair.kind, pair.difference] for pair in pairs]))
    return pairs


def without_duplicates(
    splits: Splits,
    config: DistillConfig,
    cache: Path,
    phase: Callable[[str], Progress] = lambda name: lambda done, of: None,
) -> Splits:
    """Return ``splits`` as a run of ``config`` takes them, so that a score is of images that were never seen.

    With ``duplicates`` "one side", train and validation lose what has a duplicate in test, and train what has one in
    validation. The sample is taken as it is: it has none. Raises ``UserError`` where nothing would be left of a split or a class.
    """
    if config.duplicates == "keep" or config.dataset == SAMPLE:
        return splits
    pairs = known_pairs(splits, cache, phase)
    sizes = splits.sizes()
    group = groups(sum(sizes.values()), pairs)
    train, validation, test = np.split(group, np.cumsum(list(sizes.values()))[:-1])
    of_test = {"train": np.isin(train, test), "validation": np.isin(validation, test)}
    of_validation = np.isin(train, validation[~of_test["validation"]]) & ~of_test["train"]
    said = [_left_out(int(doubled.sum()), name, "test") for name, doubled in of_test.items() if doubled.any()]
    if of_validation.any():
        said.append(_left_out(int(of_validation.sum()), "train", "validation"))
    if not said:
        return splits
    kept = replace(
        splits,
        train=splits.train.select(np.flatnonzero(~(of_test["train"] | of_validation))),
        validation=splits.validation.select(np.flatnonzero(~of_test["validation"])),
        warnings=[*splits.warnings, *said],
    )
    _check_left(splits, kept)
    return kept


# What the images of a split are called.
WORDS = {"train": "training", "validation": "validation", "test": "test"}


def _left_out(count: int, name: str, other: str) -> str:
    use = "training" if name == "train" else "validation"
    if count == 1:
        return f"1 {WORDS[name]} picture is a duplicate of a {other} picture and is left out of {use}."
    return f"{count:,} {WORDS[name]} pictures are duplicates of {other} pictures and are left out of {use}."


def class_counts(dataset: Any, classes: list[str]) -> np.ndarray:
    """Return the number of images of each class, ``[C]``; those without a label are of none."""
    labels = np.asarray(dataset["label"])
    return np.bincount(labels[labels >= 0], minlength=len(classes))


def _check_left(before: Splits, after: Splits) -> None:
    """Raise ``UserError`` where leaving duplicates out has emptied a split, or a class of train."""
    advice = "Give other pictures, or keep them where they are with --duplicates keep; the score will then be too good."
    if not len(after.validation):
        raise UserError(f"All {len(before.validation):,} validation pictures are duplicates of test pictures. {advice}")
    counts = [class_counts(part.train, before.classes) for part in (before, after)]
    for name, was, now in zip(before.classes, *counts, strict=True):
        if was and not now:
            raise UserError(
                f"All {was:,} training pictures of {name} are duplicates of validation or test pictures. {advice}"
            )
