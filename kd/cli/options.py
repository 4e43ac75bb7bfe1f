"""What commands share: options, and the settings, runs and datasets that these name."""

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kd.cli.screen import Screen
from kd.config import PRESETS, RUN_TEACHER, SAMPLE, DistillConfig, public_name
from kd.data.library.store import UPLOAD_PREFIX, ImportRefused, Library, Upload, import_dataset
from kd.runs.queue import gpu_count
from kd.runs.run import Run
from kd.runs.store import find_run, local_owner, resolve

# Adds a command: (name, the function that it calls, help, the group that it belongs to) -> its parser.
Command = Callable[..., argparse.ArgumentParser]

# When an import is refused, so many skipped files are named, and so many reasons for the others.
MOST_SKIPPED, MOST_REASONS = 20, 8


class BadUsage(Exception):
    """The options make no sense; nothing was started."""


def add_json(one: argparse.ArgumentParser, help: str = "print it as the last line of standard output") -> None:
    one.add_argument("--json", action="store_true", help=help)


def add_child(one: argparse.ArgumentParser) -> None:
    """Let the page start the command as a child process: ``kd.system.processes.Child`` says how they speak."""
    one.add_argument("--child", action="store_true", help=argparse.SUPPRESS)


def add_preset(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--preset", default="sample", help=f"settings to start from: {', '.join(PRESETS)} (default: sample)"
    )


def add_settings(one: argparse.ArgumentParser, but: tuple[str, ...] = ()) -> None:
    """Add a flag for each setting of a distillation, except ``but``."""
    for field in dataclasses.fields(DistillConfig):
        name = public_name(field)
        if name not in but:
            one.add_argument(f"--{name.replace('_', '-')}", dest=f"set_{name}", metavar="VALUE", help=help_of(field))


def config_from(options: argparse.Namespace) -> DistillConfig:
    """Return the configuration that was asked for, its names resolved. Raises ``BadUsage``, and ``UserError`` as they do."""
    try:
        config = DistillConfig.preset(options.preset, **given_settings(options))
    except ValueError as error:
        raise BadUsage(str(error)) from error
    return with_folders(config, options.runs_dir)


def with_folders(config: DistillConfig, folder: Path) -> DistillConfig:
    """Return ``config`` with the folders of the dataset and the teacher that it names, as ``resolve`` does.

    An archive is imported now, once; that takes long, so the teacher is looked for before.
    """
    is_named = config.dataset.startswith(UPLOAD_PREFIX) or config.teacher.startswith(RUN_TEACHER)
    owner = local_owner(folder) if is_named else None  # which is made in ``folder`` when it is first asked for
    path = Path(config.dataset).expanduser()
    if config.dataset == SAMPLE or not path.is_file() or path.suffix == ".parquet":
        return resolve(config, folder, owner)
    config = resolve(dataclasses.replace(config, dataset=SAMPLE), folder, owner)
    upload = import_pictures(path, "", folder)
    print(f"{path.name} is dataset upload:{upload.id}", file=sys.stderr)
    return dataclasses.replace(config, dataset=str(upload.path))


def given_settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given as flags. A label map's file is read. Raises ``BadUsage``."""
    given = {name.removeprefix("set_"): value for name, value in vars(options).items() if name.startswith("set_")}
    if given.get("processes") == "auto":
        size = given.get("batch_size") or PRESETS.get(getattr(options, "preset", ""), {}).get("batch_size")
        given["processes"] = process_count("auto", size or DistillConfig.batch_size)
    label_map = given.get("label_map")
    if label_map and "=" not in label_map and "{" not in label_map:
        try:
            given["label_map"] = Path(label_map).expanduser().read_text()
        except OSError as error:
            raise BadUsage(
                f"label-map is {label_map!r}, and there is no such file: {error.strerror}. Expected a JSON file, or pairs such as "
                "'sneakers=running shoe, mug=coffee mug'."
            ) from error
    return {name: value for name, value in given.items() if value is not None}


def process_count(asked: str, batch_size: Any) -> Any:
    """Return how many processes ``auto`` stands for: one for each GPU, as far as batches can be cut into so many equal parts;
    anything else as it is, to be checked as other settings are."""
    size = str(batch_size)
    if asked != "auto" or not size.isdecimal():
        return 1 if asked == "auto" else asked
    return next(count for count in range(max(1, min(64, gpu_count())), 0, -1) if int(size) % count == 0)


def help_of(field: dataclasses.Field) -> str:
    """Return the help of a setting with its choices, its default, and the presets that have another default."""
    help, choices = field.metadata["help"], field.metadata.get("choices", ())
    if choices and not all(choice in help for choice in choices):
        help += f": {', '.join(choices)}"
    if field.default is None:
        return help
    name = public_name(field)
    others = [
        f"{preset}: {values[name]}"
        for preset, values in PRESETS.items()
        if values.get(name, field.default) != field.default
    ]
    return f"{help} ({'; '.join([f'default: {field.default}', *others])})"


def own_run(options: argparse.Namespace) -> Run:
    """Find the run that was named. Raises ``UserError``, and ``PermissionError`` for a run of somebody else."""
    run = find_run(options.runs_dir, options.run)
    run.check_owner(local_owner(options.runs_dir))
    return run


def quiet() -> None:
    """Keep the libraries from printing messages and progress bars between the lines of a table."""
    import datasets
    from transformers.utils import logging

    datasets.disable_progress_bars()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def import_pictures(source: Path, name: str, folder: Path) -> Upload:
    """Import a dataset, with progress on standard error. If it is refused, the skipped files are listed there."""
    screen = Screen()
    try:
        return import_dataset(
            source, name, Library(folder, local_owner(folder)),
            lambda done, of: of and screen.progress(f"file {done:,} of {of:,}", done / of),
        )  # fmt: skip
    except ImportRefused as problem:
        screen.clear()
        print(
            *skipped_lines(problem.skipped[:MOST_SKIPPED]),
            *_more(problem.skipped[MOST_SKIPPED:]),
            sep="\n",
            file=sys.stderr,
        )
        raise
    finally:
        screen.clear()


def skipped_lines(skipped: list[tuple[str, str]]) -> list[str]:
    """Return a line for each skipped file, with the reason."""
    return [f"  {name}: {reason}" for name, reason in skipped]


def _more(skipped: list[tuple[str, str]]) -> list[str]:
    """Say how many other files were skipped, and why. Nothing was stored, so no file lists them."""
    counts = Counter(reason for _, reason in skipped).most_common()
    most, others = counts[:MOST_REASONS], sum(count for _, count in counts[MOST_REASONS:])
    lines = [f"  {count:,}: {reason}" for reason, count in most] + ([f"  {others:,}: other reasons"] if others else [])
    return [f"and {len(skipped):,} more:", *lines] if skipped else []
