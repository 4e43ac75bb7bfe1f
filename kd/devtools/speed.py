"""How fast: the guide's way, ours, and the ceiling, side by side on this machine.

Each way (a *row*, see ``kd.devtools.contenders``) works in a process of its own, so that its memory and its allocator are its
own; they take turns, a few steps each, so that a noisy moment hits all of them, and the medians of the rounds are
compared. Nothing here is for training: a run never imports it.
"""

import multiprocessing
import os
import platform
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from kd.devtools.contenders import SCALES, Cost, Plan, prepare, work_on
from kd.errors import UserError
from kd.runs.process import KEEP_MEMORY

ROWS = ("guide", "online", "cached", "ceiling", "plain", "student only")

FULL_ROWS = ("guide", "online", "cached")

SWEEP_ROWS = ("cached", "student only")

SCALE_ROWS = tuple(f"cached {times}x" for times in SCALES)

AS_IT_COMES = ("guide", "plain")
"""The rows whose process has the allocator's own settings."""

SWEEP_POINTS = 12

STAGES = (
    "start", "decode", "crop", "targets", "forward/backward", "optimiser", "Trainer and callbacks", "evaluation",
    "saving",
)  # fmt: skip
"""In the order of a run."""


def measure_speed(
    plan: Plan, rows: tuple[str, ...], folder: Path, tell: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """Each row's ``images_per_second``, ``recipe_seconds``, ``peak_mb``, ``stages`` and what they were made from."""
    workers = {}
    with ExitStack() as stack:
        for row in rows:
            tell(f"{row}: setting up")
            workers[row] = stack.enter_context(worker(row, plan, folder))
            if not plan.full:
                receive(workers[row], row)  # one at a time: two that decode would slow each other
            else:
                workers[row] = receive(workers[row], row)
        if plan.full:
            return {row: finish_full(facts) for row, facts in workers.items()}
        turns: dict[str, list[tuple[float, dict]]] = {row: [] for row in rows}
        for turn in range(plan.rounds):
            for row, connection in workers.items():
                connection.send("stages" if turn == plan.rounds - 1 else "go")
                images, seconds, stages = receive(connection, row)
                turns[row].append(
                    (images / seconds, {**stages, "Trainer and callbacks": seconds - sum(stages.values())})
                )
            tell(f"round {turn + 1} of {plan.rounds}: " + ", ".join(f"{r} {t[-1][0]:,.1f}" for r, t in turns.items()))
        found = {}
        for row, connection in workers.items():
            tell(f"{row}: its other costs")
            connection.send("enough")
            found[row] = finish(plan, receive(connection, row), turns[row])
        return found


@contextmanager
def worker(row: str, plan: Plan, folder: Path) -> Iterator[Any]:
    """A row's process, as a connection; it ends with the context."""
    context = multiprocessing.get_context("spawn")
    ours_, theirs = context.Pipe()
    before = dict(os.environ)
    os.environ.update({} if row in AS_IT_COMES else KEEP_MEMORY)
    os.environ["KD_CACHE_DIR"] = str(folder / f"cache-{row.replace(' ', '-')}")
    try:
        process = context.Process(target=work_on, args=(row, plan, folder, theirs), daemon=False)
        process.start()
    finally:
        os.environ.clear()
        os.environ.update(before)
    theirs.close()
    try:
        yield ours_
    finally:
        ours_.close()
        process.join(5)
        process.kill()


def receive(connection: Any, row: str) -> Any:
    """What a row's process says next. Raises its ``UserError``, or one if it has ended."""
    try:
        said = connection.recv()
    except EOFError:
        raise UserError(f"The bench's process of {row!r} ended without an answer; see its words above.") from None
    if isinstance(said, UserError):
        raise said
    return said


def finish(plan: Plan, facts: dict[str, Any], turns: list[tuple[float, dict]]) -> dict[str, Any]:
    """A row's figures: the median of its turns, and its recipe's seconds by stage with the arithmetic.

    Where a row has no recipe, ``recipe_seconds`` is ``None`` and ``stages`` are those of a step.
    """
    speed = statistics.median(speed for speed, _ in turns)
    step, costs = turns[-1][1], facts.pop("costs")
    shares = {stage: seconds / sum(step.values()) for stage, seconds in step.items()}
    row = {"images_per_second": round(speed, 2), "turns": [round(speed, 2) for speed, _ in turns]}
    if costs is None:
        return {**row, "recipe_seconds": None, "stages": rounded(shares), **facts}
    training = plan.images * plan.epochs / speed
    costs = [Cost("start", "start", 1, facts["start"]), *costs]
    spent = {stage: training * share for stage, share in shares.items()}
    for cost in costs:
        spent[cost.stage] = spent.get(cost.stage, 0) + cost.total
    total = sum(spent.values())
    arithmetic = f"train: {plan.images:,} x {plan.epochs} / {speed:,.1f} images/s = {training:,.1f} s"
    return {
        **row,
        "recipe_seconds": round(total, 1),
        "stages": rounded({stage: seconds / total for stage, seconds in spent.items()}),
        "shared_seconds": {
            what: round(sum(cost.total for cost in costs if cost.shared == what), 1) for what in ("decode", "teacher")
        },
        "arithmetic": [arithmetic, *map(str, costs)],
        **facts,
    }


def rounded(shares: dict[str, float]) -> dict[str, float]:
    return {stage: round(shares[stage], 4) for stage in STAGES if stage in shares}


def finish_full(facts: dict[str, Any]) -> dict[str, Any]:
    """A row that was run from beginning to end."""
    return {"images_per_second": None, "recipe_seconds": round(facts["seconds"], 1), "stages": {}, **facts}


def bench(plan: Plan, rows: tuple[str, ...] = ROWS, tell: Callable[[str], None] = lambda text: None) -> dict[str, Any]:
    """``rows`` side by side: figures in ``rows`` by name, ``ratios``, ``machine`` and the ``plan``.

    Raises ``UserError`` where the teacher, the pictures or the student cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix="kd-bench-") as name:
        folder = Path(name)
        tell("making the teacher and the pictures")
        prepare(plan, folder)
        found = measure_speed(plan, rows, folder, tell)
    return {"rows": found, "ratios": ratios(plan, found), "machine": machine(), "plan": asdict(plan)}


def ratios(plan: Plan, rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The figures that the project is held to, of the rows that there are."""

    def of(figure: str, one: str, other: str) -> float | None:
        values = [rows.get(row, {}).get(figure) for row in (one, other)]
        return round(values[0] / values[1], 3) if all(values) else None

    found = {
        "cached_over_guide": of("images_per_second", "cached", "guide"),
        "cached_over_online": of("images_per_second", "cached", "online"),
        "cached_over_ceiling": of("images_per_second", "cached", "ceiling"),
        "ceiling_over_plain": of("images_per_second", "ceiling", "plain"),
        "recipe_guide_over_cached": of("recipe_seconds", "guide", "cached"),
        "recipe_guide_over_cached_4_views": four_views_ratio(plan, rows) if {"guide", "cached"} <= set(rows) else None,
        "sweep_over_students": sweep_ratio(rows) if "student only" in rows else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def four_views_ratio(plan: Plan, rows: dict[str, dict[str, Any]]) -> float | None:
    """``recipe_guide_over_cached`` if the teacher saw four views; ``None`` where the row was measured in full."""
    cached = rows["cached"]
    targets = cached["recipe_seconds"] * cached["stages"].get("targets", 0)
    if not targets:
        return None
    more = min(4, plan.epochs) / min(plan.views, plan.epochs) - 1
    return round(rows["guide"]["recipe_seconds"] / (cached["recipe_seconds"] + targets * more), 3)


def sweep_ratio(rows: dict[str, dict[str, Any]], points: int = SWEEP_POINTS) -> float:
    """Seconds of a sweep over those of as many trainings without a teacher."""
    sweep, students = (sweep_seconds(rows[row], points) for row in SWEEP_ROWS)
    return round(sum(sweep.values()) / sum(students.values()), 3)


def sweep_seconds(row: dict[str, Any], points: int = SWEEP_POINTS) -> dict[str, float]:
    """What ``points`` runs of a row cost: seconds of ``decode`` and ``teacher`` (its targets and scores), which the
    first run leaves for the others, and of the ``rest``."""
    shared = row["shared_seconds"]
    return {**shared, "rest": round(points * (row["recipe_seconds"] - sum(shared.values())), 1)}


def table(found: dict[str, Any]) -> list[list[str]]:
    """What ``bench`` returned, the head first, then a line a row."""
    stages = [stage for stage in STAGES if any(stage in row["stages"] for row in found["rows"].values())]
    lines = [["", "images/s", "recipe s", "peak MB", "precision", *stages]]
    for name, row in found["rows"].items():
        speed, seconds = row["images_per_second"], row["recipe_seconds"]
        shares = [f"{row['stages'][stage]:.1%}" if stage in row["stages"] else "" for stage in stages]
        lines.append([
            name, f"{speed:,.1f}" if speed else "", f"{seconds:,.0f}" if seconds else "", f"{row['peak_mb']:,}",
            row["precision"], *shares,
        ])  # fmt: skip
    return lines


def notes(plan: Plan, found: dict[str, Any]) -> list[str]:
    """What a reader of the table needs: how its recipes were reckoned, ratios, the machine."""
    rows = found["rows"]
    recipe = (
        f"The recipe: {plan.epochs} epochs on {plan.images:,} pictures of {plan.image_size} px, batch {plan.batch_size}, "
        f"evaluated each epoch on {plan.validation} and tested on {plan.validation}, {plan.views} view(s)."
    )
    lines = [
        *([recipe] if any(row["recipe_seconds"] for row in rows.values()) else []),
        *(f"  {name}: {'; '.join(row['arithmetic'])}" for name, row in rows.items() if "arithmetic" in row),
        *(f"  {name}: {row['images']:,} pictures, a file of {row['file_gb']} GB" for name, row in rows.items()
          if "file_gb" in row),
    ]  # fmt: skip
    if set(SWEEP_ROWS) <= set(rows):
        for row, what in zip(
            SWEEP_ROWS, (f"a sweep of {SWEEP_POINTS} points", "as many without a teacher"), strict=True
        ):
            parts = sweep_seconds(rows[row])
            lines.append(
                f"{what}: {' + '.join(f'{s:,.0f} s {n}' for n, s in parts.items())} = {sum(parts.values()):,.0f} s"
            )
    lines += [f"{name.replace('_', ' ')}: {value:.3g}" for name, value in found["ratios"].items()]
    return [*lines, ", ".join(f"{name} {value}" for name, value in found["machine"].items() if value is not None)]


def machine() -> dict[str, Any]:
    """What all this was measured on."""
    import torch

    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "datasets", "accelerate")},
    }
