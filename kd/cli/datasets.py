"""Commands for datasets: ``import datasets check labels``."""

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kd.cli.options import (
    BadUsage,
    Command,
    add_child,
    add_json,
    add_settings,
    config_from,
    given_settings,
    import_pictures,
    quiet,
    skipped_lines,
)
from kd.cli.screen import table
from kd.config import CHECKED, OF_PICTURES, DistillConfig, public_name
from kd.data.library.store import Upload, find_upload, list_uploads
from kd.errors import UserError
from kd.runs.store import delete_dataset, existing_teacher, local_owner
from kd.system.files import write_whole
from kd.system.processes import answer_parent


def add(command: Command) -> None:
    every = tuple(map(public_name, dataclasses.fields(DistillConfig)))

    one = command("import", import_dataset, "store the pictures of an archive or a folder as a dataset, for many runs")
    one.add_argument("source", nargs="?", type=Path, metavar="SOURCE", help="a zip, a tar (.gz, .bz2, .xz) or a folder")
    one.add_argument("--name", default="", help="what to call it (default: as the source is called)")
    add_json(one, "print what was found as the last line of standard output")
    add_child(one)

    one = command("datasets", datasets, "list the datasets that were imported, with their sizes, or delete one")
    one.add_argument("action", nargs="?", choices=["delete"])
    one.add_argument("dataset", nargs="?", metavar="ID", help="its id, the start of one, or last")
    add_json(one)

    one = command(
        "check",
        check,
        "check a dataset before training: duplicates, labels, classes, sizes, files that cannot be read",
    )
    one.set_defaults(preset="custom")
    add_settings(one, but=tuple(name for name in every if name not in CHECKED))
    one.add_argument(
        "--out", type=Path, metavar="FILE", help="write the check to FILE.html, a page with pictures, or to FILE.json"
    )
    add_json(one, "print the check as the last line of standard output")
    add_child(one)

    one = command(
        "labels", label_table, "show which class of a teacher is taken for which of a dataset, without training"
    )
    one.set_defaults(preset="custom")
    add_settings(one, but=tuple(name for name in every if name not in ("teacher", "label_map", *OF_PICTURES)))
    add_json(one)


def label_table(options: argparse.Namespace) -> int:
    """Print how the classes of the teacher and of the dataset are matched, and what follows from that."""
    config = config_from(options)
    quiet()
    from kd.data.splits import SPLIT_NAMES, load_splits
    from kd.models.class_map import label_table, match_classes
    from kd.models.teacher import teacher_classes

    splits, theirs = load_splits(config), teacher_classes(existing_teacher(config.teacher))
    if not splits.labelled:
        raise UserError(
            f"The dataset has no labels, so there is nothing to match: a student would learn the teacher's {len(theirs)} classes."
        )
    match = match_classes(theirs, splits.classes, config.label_map)
    counts = [sum(split) for split in zip(*map(splits.counts, SPLIT_NAMES), strict=True)]
    rows = label_table(match, counts)
    if options.json:
        print(json.dumps(rows))
    else:
        cells = [[row["class"], f"{row['pictures']:,}", row["teacher"] or "-", row["found"]] for row in rows]
        print(table(["class", "pictures", "teacher", "found by"], cells))
    match.check()
    for sentence in match.warnings(splits.counts("train")):
        print(sentence, file=sys.stderr)
    return 0


def check(options: argparse.Namespace) -> int:
    """Check a dataset and print its problems, the worst first. The exit code is 0 also where there are some."""
    if options.child:
        return answer_parent(_check_for_parent)
    if options.out and options.out.suffix not in (".html", ".json"):
        raise BadUsage(f"--out is {options.out}; expected a name that ends in .html or .json.")
    if options.out and not options.out.absolute().parent.is_dir():
        raise BadUsage(f"There is no folder {options.out.absolute().parent} to write the check to.")
    config, given = config_from(options), given_settings(options)
    from kd.evaluation import dataset_report

    try:
        found = _check(config, options.runs_dir, "teacher" in given, _show_progress)
    except (UserError, FileNotFoundError) as problem:  # the second: a path that is not there, from `datasets`
        raise BadUsage(str(problem)) from problem
    if options.out:
        write_whole(options.out, dataset_report.page(found) if options.out.suffix == ".html" else json.dumps(found))
    if found["classes"]:
        print(table(["class", *found["counts"]], dataset_report.counts_table(found)))
        print()
    print(*dataset_report.lines(found), sep="\n")
    if options.json:
        print(json.dumps(dataset_report.as_json(found)))
    return 0


def _check_for_parent(job: dict[str, Any], tell: Callable[[str, int, int], None]) -> dict[str, Any]:
    """Check the dataset of the page's job."""
    config = DistillConfig.from_dict(job["config"])
    return _check(config, Path(job["runs_dir"]), job["ask_teacher"], lambda phase: partial(tell, phase))


def _check(config: DistillConfig, folder: Path, ask_teacher: bool, phase: Any) -> dict[str, Any]:
    """Return what is wrong with the dataset of ``config``; ``folder`` is that of the runs, beside which the caches are."""
    quiet()
    from kd.evaluation.dataset_check import check_dataset
    from kd.system.files import cache_folder

    return check_dataset(config, cache_folder(folder, config.dataset), ask_teacher, phase)


def _show_progress(phase: str) -> Callable[[int, int], None]:
    """Return a function that prints the progress of a phase on standard error, once a second."""
    last = 0.0

    def tell(done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last > 1:
            last = time.monotonic()
            print(f"{phase}: {done:,} of {of:,}", file=sys.stderr, flush=True)

    return tell


def import_dataset(options: argparse.Namespace) -> int:
    """Import a dataset, then print what was found."""
    if options.child:
        from kd.data.library.importer import child

        return child()
    if options.source is None:
        raise BadUsage("Name an archive or a folder: python -m kd import photos.zip")
    upload = import_pictures(options.source, options.name, options.runs_dir)
    info = upload.info()
    print(class_table(info))
    for note in info["notes"]:
        print(note)
    if info["skipped"]:
        print(
            f"{info['skipped']:,} skipped, all in {upload.path / 'skipped.txt'}:",
            *skipped_lines(info["examples"][:10]),
            sep="\n",
        )
    print(
        f"upload:{upload.id}\n`python -m kd distill --preset custom --teacher TEACHER --dataset upload:{upload.id}` distils."
    )
    if options.json:
        print(json.dumps({**{k: v for k, v in info.items() if k != "owner"}, "bytes": upload.bytes()}))
    return 0


def class_table(info: dict[str, Any]) -> str:
    """Return the number of images of each class and split of an imported dataset, as text."""
    splits = list(info["pictures"])
    names = [(name, name) for name in info["classes"]]
    if any("" in info["pictures"][split] for split in splits):
        names.append(("no label", ""))
    rows = [[shown, *(info["pictures"][split].get(name, 0) for split in splits)] for shown, name in names]
    total = [
        "all" if info["classes"] else "without labels",
        *(sum(info["pictures"][split].values()) for split in splits),
    ]
    return table(["class", *splits], [*(rows if info["classes"] else []), total])


def datasets(options: argparse.Namespace) -> int:
    """List the imported datasets, or delete one."""
    if options.action:
        if not options.dataset:
            raise BadUsage("Say which: python -m kd datasets delete ID")
        upload = find_upload(options.runs_dir, options.dataset)
        upload.check_owner(local_owner(options.runs_dir))
        size, name = upload.bytes(), upload.info()["name"]
        delete_dataset(upload)
        print(f"Deleted {name} ({upload.id}), {size / 1e6:,.1f} MB.")
        return 0
    rows = [_dataset_row(upload) for upload in list_uploads(options.runs_dir)]
    if options.json:
        print(json.dumps(rows))
    elif rows:
        print(table([*rows[0]], [[*row.values()] for row in rows]))
    else:
        print("No datasets yet. `python -m kd import photos.zip` makes one.")
    return 0


def _dataset_row(upload: Upload) -> dict[str, Any]:
    info = upload.info()
    return {
        "dataset": f"upload:{upload.id}", "name": info["name"], "classes": len(info["classes"]),
        **{split: sum(info["pictures"].get(split, {}).values()) for split in ("train", "validation", "test")},
        "MB": round(upload.bytes() / 1e6, 1), "skipped": info["skipped"],
        "imported": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(info["created"])),
    }  # fmt: skip
