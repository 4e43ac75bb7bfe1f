"""Turn somebody's archive, folder or files into a stored dataset, in the process that ``import_dataset`` starts.

Everything is read twice: once to see what it is and whether it can be decoded, and when all of that is known (classes,
splits, how much is unreadable), once more to be written as it is. So nothing is stored that is refused later.
"""

import errno
import hashlib
import json
import os
import shutil
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from kd import limits
from kd.data.folders import SPLIT_NAMES, Layout, layout
from kd.data.images import ENDINGS
from kd.data.library import archive
from kd.data.library.archive import Member, Unreadable
from kd.data.library.decoder import Decoder, Judge, bound_memory
from kd.data.library.store import HALF, ImportRefused, Upload, datasets_folder, list_uploads, remove_leftovers
from kd.data.metadata import METADATA, read_labels, with_labels
from kd.errors import UserError
from kd.system.files import write_whole
from kd.system.ids import new_id
from kd.system.processes import answer_parent
from kd.text import shown

MB = archive.MB

# So many skipped files are named on the page; ``skipped.txt`` has all.
EXAMPLES = 100

# A row group of a parquet file is written when so much has come together.
GROUP_BYTES, GROUP_ROWS = 16 * MB, 1000

Tell = Callable[[int, int], None]


def child() -> int:
    """Do the import that ``import_dataset`` asks for on standard input; return the exit code."""
    bound_memory()
    return answer_parent(_import)


def _import(job: dict[str, Any], tell: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Return the ``id`` of the dataset, or the reason why it was ``refused`` and the ``skipped`` files."""
    try:
        with Decoder() as judge:
            return {"id": import_source(job, judge, partial(tell, "reading files"))}
    except ImportRefused as problem:
        return {"refused": str(problem), "skipped": problem.skipped}
    except MemoryError:
        raise UserError(f"The import needs more than {limits.current().decoder_mb:,g} MB of memory.") from None


def import_source(job: dict[str, Any], judge: Judge, tell: Tell) -> str:
    """Import what the job of ``import_dataset`` names and return the dataset's id. Raises ``UserError``."""
    source = _source(job["source"])
    print_ = _sha256(source) if isinstance(source, Path) and source.is_file() else None
    known = (one for one in list_uploads(job["folder"]) if print_ and _is(one, job["owner"], print_))
    if same := next(known, None):
        return same.id
    survey = survey_source(source, judge, tell)
    plan = understand(survey, labelled=isinstance(source, list))
    created = time.time()
    id, place = new_id(created), datasets_folder(job["folder"])
    with _half_made(place, id, needed=survey.size(plan), room=job["room"]) as half:
        write(source, survey, plan, half)
        info = {
            "id": id, "created": created, "owner": job["owner"], "sha256": print_,
            "name": shown(job["name"].strip()) or _own_name(source), **describe(survey, plan),
        }  # fmt: skip
        write_whole(half / "dataset.json", json.dumps(info, indent=2))
        os.replace(half, place / id)
    return id


def _is(upload: Upload, owner: str, sha256: str) -> bool:
    try:
        info = upload.info()
    except UserError:  # deleted meanwhile, or damaged: another's bad file is not this import's concern
        return False
    return info.get("owner") == owner and info.get("sha256") == sha256


def _own_name(source: "Path | list[Member]") -> str:
    if not isinstance(source, Path):
        return "My pictures"
    name = source.name.removesuffix(source.suffix) if source.is_file() else source.resolve().name
    return shown(name.removesuffix(".tar")) or "Pictures"


# --- Where the pictures come from


def _source(asked: str | list[list[str]]) -> "Path | list[Member]":
    """Return an archive's or a folder's path, or the members that (class, file) pairs make."""
    most = limits.current().upload_mb
    if isinstance(asked, str):
        path = Path(os.path.expanduser(asked))
        if path.is_file() and path.stat().st_size > most * MB:
            raise UserError(f"{path.name} is larger than {most:,g} MB, the most that is taken (KD_UPLOAD_MB).")
        return path
    classes = {name: unicodedata.normalize("NFC", name).strip() for name, _ in asked}
    _check_names(classes.values())
    if "" in classes.values() and len(classes) > 1:
        raise UserError("A class has no name. Name it, or remove it.")
    if len(set(classes.values())) == 1 and "" not in classes.values():
        raise UserError("There is one class. A classifier needs at least two: add another, with pictures in it.")
    found = [_member(classes[name], Path(file)) for name, file in asked]
    if sum(member.size for member in found) > most * MB:
        raise UserError(f"The files are larger than {most:,g} MB together, the most that is taken (KD_UPLOAD_MB).")
    return found


def _check_names(classes: Iterable[str]) -> None:
    """Raise ``UserError`` for a class with a name that a terminal or a page would act on."""
    for name in classes:
        if problem := archive.wrong_with(name):
            raise UserError(f"The class {shown(name)!r} cannot be called so: {problem}. Choose another name.")


def _member(name: str, file: Path) -> Member:
    most, size = limits.current().picture_mb, file.stat().st_size
    reason = f"is larger than {most:g} MB" if size > most * MB else ""
    parts = tuple(filter(None, (name, file.name)))
    return Member(shown("/".join(parts)), parts, size, reason, partial(archive.from_folder, file))


def _members(source: "Path | list[Member]") -> Iterator[Member]:
    return archive.members(source) if isinstance(source, Path) else iter(source)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- First reading


@dataclass
class Survey:
    """What a source holds: ``names`` of the images that can be decoded, by their place among the members, and their
    ``sizes`` in bytes; the ``skipped`` files with their reasons, and how many of those are ``unreadable`` images; the
    ``tables`` of labels by their names (``kd.data.metadata``), and what is ``said`` of them."""

    names: dict[int, tuple[str, ...]] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    unreadable: int = 0
    tables: dict[tuple[str, ...], bytes] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def size(self, plan: Layout) -> int:
        return sum(self.sizes[index] for index in plan.places)


def survey_source(source: "Path | list[Member]", judge: Judge, tell: Tell) -> Survey:
    """Decode every image once. Raises ``UserError``, ``ImportRefused`` with the list where too many cannot be read."""
    of = sum(1 for _ in _members(source))
    found, most = Survey(), limits.current().pictures
    for index, member in enumerate(_members(source)):
        tell(index, of)
        _judge_member(index, member, found, judge)
        if len(found.names) > most:
            raise UserError(f"There are more than {most:,g} pictures, the most that is taken (KD_PICTURES).")
    tell(of, of)
    pictures = len(found.names) + found.unreadable
    if not pictures:
        raise ImportRefused("There is no picture in it. Expected class folders with pictures.", found.skipped)
    share = limits.current().unreadable_share
    if found.unreadable > share * pictures:
        raise ImportRefused(
            f"{found.unreadable} of {pictures} pictures cannot be read, more than {share:.0%}, so nothing was stored. "
            + " ".join(f"{name} {reason}." for name, reason in found.skipped[:5]),
            found.skipped,
        )
    return found


def _judge_member(index: int, member: Member, found: Survey, judge: Judge) -> None:
    """Read and judge one file, and add it to ``found``."""
    answer = {"reason": member.reason} if member.reason else {}
    if not answer:
        try:
            data = member.read()
            if member.parts[-1] in METADATA:
                found.tables[member.parts] = data
                return
            answer = judge(data, member.parts[-1])
        except Unreadable as problem:
            answer = {"reason": str(problem)}
    if not answer:
        found.names[index], found.sizes[index] = member.parts, len(data)
        return
    has_ending = Path(member.name).suffix.lower() in ENDINGS
    reason = answer["reason"] if has_ending or answer.get("picture", True) else "is no picture"
    found.skipped.append((member.name, reason.rstrip(".")))
    found.unreadable += (has_ending or answer.get("picture", False)) and reason != archive.TWICE


# --- What it means


def understand(survey: Survey, labelled: bool) -> Layout:
    """Return each image's split and class; ``labelled``: its class is the first part of its name, whatever else is there."""
    indices = list(survey.names)
    if labelled:
        found = {i: ("train", parts[0] if len(parts) > 1 else None) for i, parts in survey.names.items()}
        plan = Layout(found)
        survey.skipped += [(shown("/".join(name)), "is no picture") for name in survey.tables]
    else:
        names = list(survey.names.values())
        by_place, table = layout(names), read_labels(survey.tables, names)
        survey.said += table.said
        if table.labels:
            by_place = with_labels(by_place, names, table.labels)
            _check_names(by_place.classes)
        stripped = {i: (split, name and name.strip()) for i, (split, name) in by_place.places.items()}
        plan = Layout(
            {indices[i]: place for i, place in stripped.items()},
            {indices[i]: reason for i, reason in by_place.skipped.items()},
        )
    most = limits.current().classes
    if len(plan.classes) > most:
        raise UserError(f"There are {len(plan.classes):,} classes; at most {most:,g} are taken (KD_CLASSES).")
    return plan


def describe(survey: Survey, plan: Layout) -> dict[str, Any]:
    """Return what ``dataset.json`` says of the images."""
    skipped = every_skipped(survey, plan)
    counts = {split: Counter(name or "" for s, name in plan.places.values() if s == split) for split in SPLIT_NAMES}
    return {
        "classes": plan.classes,
        "pictures": {split: dict(sorted(count.items())) for split, count in counts.items() if count},
        "notes": [*survey.said, *notes(plan)],
        "skipped": len(skipped),
        "examples": skipped[:EXAMPLES],
    }


def every_skipped(survey: Survey, plan: Layout) -> list[tuple[str, str]]:
    """Return the files that are not in the dataset, each with the reason."""
    return survey.skipped + [(shown("/".join(survey.names[i])), why) for i, why in plan.skipped.items()]


def notes(plan: Layout) -> list[str]:
    """Return what is odd about a dataset, in sentences."""
    said = []
    if not plan.classes:
        said.append("There are no class folders, so no labels: a student can learn from the teacher alone.")
    alike = Counter(name.casefold() for name in plan.classes)
    if same := [name for name in plan.classes if alike[name.casefold()] > 1]:
        said.append(f"Classes that differ in capitals only are kept apart: {', '.join(same[:6])}.")
    trained = {name for split, name in plan.places.values() if split == "train"}
    if missing := [name for name in plan.classes if name not in trained]:
        said.append(f"No training picture of {', '.join(missing[:6])}. Add some, or remove the class.")
    return said


# --- Second reading


@contextmanager
def _half_made(place: Path, id: str, needed: int, room: float | None) -> Iterator[Path]:
    """Give a folder to fill, which is locked meanwhile and removed afterwards.

    Raises ``UserError`` where there is no room for ``needed`` bytes.
    """
    if room is not None and needed > room:
        raise UserError(
            f"The pictures take {needed / MB:,.0f} MB, and {max(0, room) / MB:,.0f} MB are left of what you may keep here. "
            "Delete a dataset or a run first."
        )
    try:
        place.mkdir(parents=True, exist_ok=True)
        if needed > shutil.disk_usage(place).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with FileLock(place / ".lock"):
            remove_leftovers(place)
            half = place / f"{HALF}{id}"
            lock = FileLock(f"{half}.lock")
            lock.acquire()
            half.mkdir()
    except OSError as error:
        raise _not_kept(place, needed, error) from error
    try:
        yield half
    except OSError as error:
        raise _not_kept(place, needed, error) from error
    finally:
        shutil.rmtree(half, ignore_errors=True)
        Path(f"{half}.lock").unlink(missing_ok=True)
        lock.release()


def _not_kept(place: Path, needed: int, error: OSError) -> UserError:
    return UserError(
        f"The dataset ({needed / MB:,.0f} MB) cannot be kept in {place}: {error.strerror}. Free some space, or delete "
        "datasets that are not needed any more (`python -m kd datasets`)."
    )


def write(source: "Path | list[Member]", survey: Survey, plan: Layout, folder: Path) -> None:
    """Write the images' own bytes as parquet files, a split each, and the list of what was skipped."""
    splits = {
        split: _Parquet(folder / f"{split}.parquet", plan.classes) for split in {s for s, _ in plan.places.values()}
    }
    index_of = {name: index for index, name in enumerate(plan.classes)}
    for index, member in enumerate(_members(source)):
        if index in plan.places:
            split, name = plan.places[index]
            try:
                data = member.read()
            except Unreadable as problem:
                raise UserError(f"{member.name} {problem}, now but not before. Try again.") from problem
            splits[split].add(data, "/".join(member.parts), index_of.get(name))
    for one in splits.values():
        one.close()
    lines = (f"{name}: {reason}\n" for name, reason in every_skipped(survey, plan))
    (folder / "skipped.txt").write_text("".join(lines), encoding="utf-8")


class _Parquet:
    """A parquet file of images as `datasets` writes and reads it, a bounded part of it in memory."""

    def __init__(self, path: Path, classes: list[str]) -> None:
        import pyarrow
        from pyarrow import parquet

        features: dict[str, Any] = {"image": {"_type": "Image"}}
        columns = [("image", pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())]))]
        if classes:
            features["label"] = {"names": classes, "_type": "ClassLabel"}
            columns.append(("label", pyarrow.int64()))
        notes = {"huggingface": json.dumps({"info": {"features": features}})}
        self.schema, self.rows, self.bytes = pyarrow.schema(columns, metadata=notes), [], 0
        # The pictures are packed already; statistics would hold the smallest and largest of them once more.
        self.file = parquet.ParquetWriter(
            path, self.schema, compression="none", use_dictionary=False, write_statistics=False
        )

    def add(self, data: bytes, path: str, label: int | None) -> None:
        self.rows.append({"image": {"bytes": data, "path": path}, "label": label})
        self.bytes += len(data)
        if self.bytes > GROUP_BYTES or len(self.rows) >= GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        self.file.write_table(pyarrow.Table.from_pylist(self.rows, schema=self.schema))
        self.rows, self.bytes = [], 0

    def close(self) -> None:
        if self.rows:
            self._flush()
        self.file.close()
