"""Open what a configuration names as a stream: its rows come one after the other, and nothing is downloaded first.

That serves a dataset of the Hub, and many parquet files or tar shards of one's own. What is on the disk as pictures, or as
`datasets` maps it, needs no streaming, and is refused in words.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kd.config import SAMPLE, DistillConfig, joined_classes
from kd.data.folders import in_order as in_class_order
from kd.data.images import file_digest
from kd.data.labels import label_name
from kd.data.metadata import METADATA
from kd.data.sources import SAVED, SAVED_SPLITS, check_pointers, explained_files, table_split
from kd.data.splits import joined_names, pick_names, standard_columns
from kd.data.streamed import ParquetRows, opened_parquet
from kd.errors import UserError
from kd.system.hub import from_hub
from kd.text import some

# What is read at once: so many rows, or so many bytes of files.
CHUNK_ROWS, CHUNK_BYTES = 4096, 64e6

# How many images are looked at before the stream begins, and over how many of its files they are spread.
LOOKED_AT, LOOKED_IN = 128, 8

LEAVE_OUT = "Leave out --streaming: it is for a dataset of the Hub, or for many parquet files or tar shards."


@dataclass(frozen=True)
class Row:
    """One image of a stream: its ``image`` (``bytes`` and ``path``), its ``label`` (-1 for none), the ``digest`` of its file,
    and its ``place``, the number of its row in the split as it came."""

    image: dict[str, Any]
    label: int
    digest: bytes
    place: int


@dataclass
class Stream:
    """One split of a source: its rows in order, from any of them on.

    Args:
        name: what the split is called in words: train, validation or test.
        dataset: the ``datasets.IterableDataset`` with the columns ``image`` (undecoded) and ``label``, or only the first.
        count: its rows, where they are known beforehand.
        files: the parquet files that it is read from; empty where it is read from others.
        column: the column of images in those files.
        label_of: label as it is written -> index of its class, -1 for none.
        hub: the Hub id that it comes from, if it does.
    """

    name: str
    dataset: Any
    count: int | None
    files: list[str]
    column: str
    label_of: Callable[[Any], int]
    hub: str | None

    def chunks(self, state: dict[str, Any] | None, done: int) -> Iterator[tuple[list[Row], dict[str, Any]]]:
        """Yield lists of rows, each with the state from which the next goes on. ``state`` is that of ``done`` rows.

        A connection that breaks is taken up again at the last of these states.
        """
        rows, failed = None, 0
        while True:
            if rows is None:
                if state is not None:
                    self.dataset.load_state_dict(state)
                rows = iter(self.dataset)
            try:
                found = self._read(rows, done)
            except Exception as error:
                rows, failed = None, failed + 1
                self._wait(error, failed)
                continue
            if not found:
                return
            failed = 0
            done += len(found)
            state = self.dataset.state_dict()
            yield found, state

    def _wait(self, error: Exception, times: int) -> None:
        """Return once a connection that broke ``times`` in a row may be tried again, each time later.

        Raises where it broke too often, and where the error is another.
        """
        left = [error] * times

        def fail() -> None:
            if left:
                raise left.pop()

        if self.hub is None:
            explained_files(f"The {self.name} split", fail)
        explained_files(self.hub, lambda: from_hub("dataset", self.hub, fail, is_local=True))

    def _read(self, rows: Iterator[Any], done: int) -> list[Row]:
        """Return the next rows, ``CHUNK_ROWS`` or ``CHUNK_BYTES`` of them; none at the end."""
        found, size = [], 0
        for row in rows:
            image = row["image"] or {"bytes": b"", "path": None}
            image = {"bytes": image["bytes"], "path": image["path"] and os.path.basename(image["path"])}
            image["bytes"] = image["bytes"] or b""  # what is elsewhere is not followed: it counts as unreadable
            row = Row(image, self.label_of(row.get("label")), file_digest({"image": image}), done + len(found))
            found.append(row)
            size += len(image["bytes"])
            if len(found) >= CHUNK_ROWS or size >= CHUNK_BYTES:
                break
        return found

    def parquet_rows(self) -> ParquetRows:
        """Return its images as rows that can be read again. The footers of all its files are read for that."""

        def load() -> ParquetRows:
            return ParquetRows.of(self.files, self.column)

        if self.hub is None:
            return explained_files(f"The {self.name} split", load)
        return explained_files(self.hub, lambda: from_hub("dataset", self.hub, load, is_local=True))

    def sample(self) -> list[Row]:
        """Return some of the first rows of several of its files."""
        if self.hub is None:
            return explained_files(f"The {self.name} split", self._sample)
        return explained_files(self.hub, lambda: from_hub("dataset", self.hub, self._sample, is_local=True))

    def _sample(self) -> list[Row]:
        parts = min(LOOKED_IN, self.dataset.num_shards)
        found = []
        for part in range(parts):
            # Of as many shards as there are, the first of each stretch.
            nth = part * self.dataset.num_shards // parts
            shard = self.dataset.shard(num_shards=self.dataset.num_shards, index=nth, contiguous=True)
            few = Stream(self.name, shard.take(LOOKED_AT // parts), None, [], "", self.label_of, self.hub)
            found += few._read(iter(few.dataset), 0)
        return found


@dataclass(frozen=True)
class Source:
    """What is streamed: ``splits`` by name, ``train`` among them, the ``classes`` (none where nothing is ``labelled``), what
    is to be ``said`` of it, and its ``identity``: another one where a file has changed."""

    splits: dict[str, Stream]
    classes: list[str]
    labelled: bool
    identity: str
    said: list[str] = field(default_factory=list)

    def expected(self, config: DistillConfig) -> dict[str, int] | None:
        """Return about how many images each split will have; ``None`` where that is not known beforehand."""
        counts = {name: stream.count for name, stream in self.splits.items()}
        if None in counts.values():
            return None
        shares = cut_shares(config, list(self.splits))
        cut = {name: round(counts["train"] * share) for name, share in shares.items()}
        return {"train": counts["train"] - sum(cut.values()), **cut} | {n: c for n, c in counts.items() if n != "train"}


# --- Which split a row is cut for


def cut_shares(config: DistillConfig, given: list[str]) -> dict[str, float]:
    """Return the splits that are cut from train, because they are not ``given``, each with its share of it."""
    shares, left = {}, 1.0
    for name, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if name not in given:
            shares[name] = left * fraction
            left -= shares[name]
    return shares


def split_of(digest: bytes, shares: dict[str, float], seed: int) -> str:
    """Return the split that the image with this digest belongs to, train where it is cut for none of ``shares``.

    It depends on the file itself and ``seed`` alone, so equal files are always in the same split.
    """
    drawn = hashlib.blake2b(digest, digest_size=8, salt=seed.to_bytes(8, "little")).digest()
    at, end = int.from_bytes(drawn, "little") / 2**64, 0.0
    for name, share in shares.items():
        end += share
        if at < end:
            return name
    return "train"


# --- Opening


def open_source(config: DistillConfig) -> Source:
    """Open what ``config`` names. Raises ``UserError``, in words, for what cannot be streamed."""
    files = _local_files(config.dataset)
    if files is None:
        return _open_hub(config)
    local = {name: files[actual] for name, actual in pick_names(list(files), config).items()}
    check_pointers(file for part in local.values() for file in part)
    kind = "parquet" if local["train"][0].suffix == ".parquet" else "webdataset"

    def load() -> Source:
        from datasets import load_dataset_builder

        builder = load_dataset_builder(kind, data_files={name: list(map(str, part)) for name, part in local.items()})
        found = dict(builder.as_streaming_dataset())
        status = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for part in local.values() for file in part]
        return _source(builder, found, config, repr(status))

    return explained_files(config.dataset, load)


def _local_files(dataset: str) -> dict[str, list[Path]] | None:
    """Return the parquet files or tar shards of each split of a folder, or a file's own; ``None`` for a Hub id.

    Raises ``UserError`` for other folders and files.
    """
    path = Path(os.path.expanduser(dataset))
    if dataset == SAMPLE:
        raise UserError(f"The sample is on this disk and small. {LEAVE_OUT}", setting="streaming")
    if path.is_file() and path.suffix in (".parquet", ".tar"):
        return {"train": [path]}
    if path.is_file():
        raise UserError(f"{path} is on this disk as one file that cannot be streamed. {LEAVE_OUT}", setting="streaming")
    if not path.is_dir():
        return None
    if (path / SAVED_SPLITS).is_file() or (path / SAVED).is_file():
        raise UserError(
            f"{path} was written by `save_to_disk` and is read from the disk, not into memory, as it is. {LEAVE_OUT}",
            setting="streaming",
        )
    for suffix in (".parquet", ".tar"):
        files = sorted(file for file in path.glob(f"*{suffix}") if file.name not in METADATA)
        if files:
            names = dict.fromkeys(map(table_split, files))
            return {name: [file for file in files if table_split(file) == name] for name in names}
    raise UserError(
        f"{path} is a folder without parquet files or tar shards, and what is in it is on this disk already. {LEAVE_OUT}",
        setting="streaming",
    )


def _open_hub(config: DistillConfig) -> Source:
    """Open a dataset of the Hub at its present commit."""
    name = config.dataset

    def load() -> Source:
        from datasets import load_dataset_builder
        from huggingface_hub import HfApi, is_offline_mode
        from huggingface_hub.errors import OfflineModeIsEnabled

        if is_offline_mode():
            raise OfflineModeIsEnabled("A stream needs the Hub.")
        commit = HfApi().dataset_info(name).sha
        builder = load_dataset_builder(name, config.dataset_config, revision=commit)
        found = dict(builder.as_streaming_dataset())
        found = {split: found[actual] for split, actual in pick_names(list(found), config).items()}
        return _source(builder, found, config, repr((name, builder.config.name, commit)), name)

    return explained_files(name, lambda: from_hub("dataset", name, load))


def _source(builder: Any, found: Any, config: DistillConfig, identity: str, hub: str | None = None) -> Source:
    """Return the source of the splits ``found``, with the columns and classes that ``config`` names."""
    said: list[str] = []
    streams, label_columns, features = {}, {}, {}
    for name, one in found.items():
        one = one if one.features is not None else one._resolve_features()
        features[name] = one.features
        part, image, label = standard_columns(one, config, name, said)
        label_columns[name] = label
        files = _files_of(builder, one.split or name)
        info = (builder.info.splits or {}).get(str(one.split))
        count = info.num_examples if info is not None and info.num_examples else None
        if files and (count is None or hub is None):
            count = int(ParquetRows.of(files, image).groups[:, 3].sum())
        if count == 0:
            raise UserError(f"The {name} split is empty.")
        streams[name] = Stream(name, part, count, files, image, lambda value: -1, hub)
    labelled = label_columns["train"] is not None
    classes: list[str] = []
    if labelled:
        _drop_unlabelled(streams, label_columns, said)
        names = _class_names(features["train"], label_columns["train"], streams["train"], builder.config.data_files)
        classes = _give_classes(streams, {n: (features[n], label_columns[n]) for n in streams}, names, config, said)
    elif columns := [name for name in features["train"] if name != streams["train"].column]:
        said.append(f"No column of {some(columns)} has labels. If another one holds them, name it with --label-column.")
    return Source(streams, classes, labelled, identity, said)


def _files_of(builder: Any, split: str) -> list[str]:
    """Return the parquet files of a split, in order; none where it is made of other files."""
    files = [str(file) for file in (builder.config.data_files or {}).get(str(split), [])]
    return files if files and all(file.endswith(".parquet") for file in files) else []


def _drop_unlabelled(streams: dict[str, Stream], columns: dict[str, str | None], said: list[str]) -> None:
    """Drop splits without labels, where train has some: others are cut from train in their place."""
    for name in [name for name in streams if columns[name] is None]:
        said.append(f"The {name} split has no labels, so a {name} split is cut from train.")
        del streams[name]


def _class_names(features: Any, column: str, train: Stream, files: Any) -> list[str]:
    """Return the classes: those that the column of labels lists, else those that a pass over the labels alone finds."""
    from datasets import ClassLabel

    if isinstance(features[column], ClassLabel):
        return [name for name in map(label_name, features[column].names) if name is not None]
    if train.files:
        return in_class_order(_labels_in_parquet(train.files, column))
    tars = [str(file) for part in files.values() for file in part]
    if train.hub is None and all(Path(file).is_file() for file in tars):
        return in_class_order(_labels_in_tars(tars, column))
    raise UserError(
        f"The column of labels ({column}) does not say which classes there are, and in shards on the Hub that cannot be found "
        "out without reading all of them. Name the classes in the dataset's README (`class_label` in `dataset_info`), or use "
        "a copy of it in parquet.",
        setting="streaming",
    )


def _labels_in_parquet(files: list[str], column: str) -> set[str]:
    """Return the class names in a column of parquet files, of which nothing else is read."""
    from pyarrow import compute

    found: set[str] = set()
    for file in files:
        with opened_parquet(file) as opened:
            for group in range(opened.num_row_groups):
                values = opened.read_row_group(group, columns=[column], use_threads=False).column(0)
                found |= {name for value in compute.unique(values).to_pylist() if (name := label_name(value))}
    return found


def _labels_in_tars(files: list[str], column: str) -> set[str]:
    """Return the class names in the members of tar shards that hold ``column``; the images are skipped."""
    import tarfile

    from datasets.packaged_modules.webdataset.webdataset import WebDataset, base_plus_ext

    decode, found = WebDataset.DECODERS.get(column.split(".")[-1], lambda data: data), set()
    for file in files:
        with tarfile.open(file) as archive:
            for member in archive:
                if member.isfile() and base_plus_ext(member.name)[1] == column:
                    name = label_name(decode(archive.extractfile(member).read()))
                    found |= {name} if name else set()
    return found


def _give_classes(
    streams: dict[str, Stream], columns: dict[str, Any], names: list[str], config: DistillConfig, said: list[str]
) -> list[str]:
    """Return the classes after a label map has joined some, and let each stream turn its labels into their indices."""
    from datasets import ClassLabel

    joined = joined_classes(config.label_map)
    classes = joined_names(names, joined, said) if joined else names
    if len(classes) < 2:
        raise UserError(
            f"The dataset has {'one class (' + classes[0] + ')' if classes else 'no class'}. A classifier needs at least two. To "
            "learn from the teacher alone, name a dataset without a column of labels."
        )
    index = {name: nth for nth, name in enumerate(classes)}
    for split, (features, column) in columns.items():
        listed = features[column].names if isinstance(features[column], ClassLabel) else None

        def label_of(value: Any, listed: list[str] | None = listed, split: str = split) -> int:
            if listed is not None:
                value = None if value is None or value < 0 else listed[value]
            name = label_name(value)
            if name is None:
                return -1
            name = joined.get(name, name)
            if name not in index:
                raise UserError(
                    f"The {split} split has pictures of {name}, but train has only the classes {some(classes)}. Add training "
                    "pictures of it, or remove the class."
                )
            return index[name]

        streams[split].label_of = label_of
    return classes
