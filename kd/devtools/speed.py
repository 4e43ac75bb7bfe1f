"""The benchmark: the throughput of the Transformers guide's code, of ours, and of the student alone, on this machine.

Each of these (a *row*, see ``kd.devtools.contenders``) trains in a process with memory and an allocator of its own.
They take turns of a few steps, so that a noisy moment hits all of them, and the medians of the rounds are compared.
No run imports this.
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

from kd.devtools.contenders import SCALES, Execute, Row, work_on_row
from kd.devtools.timing import Cost
from kd.devtools.workload import Plan, prepare
from kd.errors import UserError
from kd.runs.process import CPU_SETTINGS

# The rows of `kd bench`, and of its flags.
ROWS = ("guide", "loop", "online", "cached", "ceiling", "plain", "student only")
FULL_ROWS = ("guide", "online", "cached")
SWEEP_ROWS = ("cached", "student only")
SCALE_ROWS = tuple(f"cached {times}x" for times in SCALES)

# The rows whose process keeps the default settings of allocator and threads.
DEFAULT_ALLOCATOR_ROWS = ("guide", "loop", "plain")

SWEEP_POINTS = 12

# In the order of a run.
STAGES = (
    "start", "decode", "crop", "targets", "forward/backward", "optimiser", "Trainer and callbacks", "evaluation",
    "saving",
)  # fmt: skip


def measure_speed(rows: list[Row], tell: Callable[[str], None]) -> dict[str, dict[str, Any]]:
    """Measure the ``images_per_second``, ``recipe_seconds``, ``peak_mb`` and ``stages`` of each row, by its name."""
    plan = rows[0].plan
    workers, answers = {}, {}
    with ExitStack() as stack:
        for row in rows:
            tell(f"{row.name}: setting up")
            workers[row.name] = stack.enter_context(worker(row))
            # One after the other: two that decode at the same time would slow each other.
            answers[row.name] = receive(workers[row.name], row.name)
        if plan.full:
            return {row: finish_full(facts) for row, facts in answers.items()}
        turns: dict[str, list[tuple[float, dict]]] = {row: [] for row in workers}
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
def worker(row: Row) -> Iterator[Any]:
    """Start the process of a row and yield the connection to it; the process ends with the context."""
    context = multiprocessing.get_context("spawn")
    ours_, theirs = context.Pipe()
    before = dict(os.environ)
    os.environ.update({} if row.name in DEFAULT_ALLOCATOR_ROWS else CPU_SETTINGS)
    os.environ["KD_CACHE_DIR"] = str(row.folder / f"cache-{row.name.replace(' ', '-')}")
    try:
        process = context.Process(target=work_on_row, args=(row, theirs), daemon=False)
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
    """Return the next answer of a row's process. Raises its ``UserError``, or one that says that it has ended."""
    try:
        answer = connection.recv()
    except EOFError:
        raise UserError(f"The benchmark's process of {row!r} ended without an answer; see its output above.") from None
    if isinstance(answer, UserError):
        raise answer
    return answer


def finish(plan: Plan, facts: dict[str, Any], turns: list[tuple[float, dict]]) -> dict[str, Any]:
    """Return the figures of a row: the median of its turns, and the seconds of its recipe, with the arithmetic.

    Where a row has no recipe, ``recipe_seconds`` is ``None`` and ``stages`` are the shares of a step.
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
    """Round the shares of the stages, in the order of a run."""
    return {stage: round(shares[stage], 4) for stage in STAGES if stage in shares}


def finish_full(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a row whose whole recipe was run."""
    return {"images_per_second": None, "recipe_seconds": round(facts["seconds"], 1), "stages": {}, **facts}


def bench(
    plan: Plan,
    rows: tuple[str, ...] = ROWS,
    tell: Callable[[str], None] = lambda text: None,
    execute: Execute | None = None,
) -> dict[str, Any]:
    """Measure ``rows`` and return their figures (``rows``, by name), ``ratios``, ``machine`` and the ``plan``.

    ``execute`` (``kd.distill.execute``) is needed where the plan is ``full``. Raises ``UserError`` where the teacher,
    the images or the student cannot be loaded.
    """
    with tempfile.TemporaryDirectory(prefix="kd-bench-") as name:
        folder = Path(name)
        tell("making the teacher and the pictures")
        prepare(plan, folder)
        found = measure_speed([Row(name, plan, folder, execute) for name in rows], tell)
    return {"rows": found, "ratios": ratios(plan, found), "machine": machine(), "plan": asdict(plan)}


def ratios(plan: Plan, rows: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the ratios that the project promises, as far as their rows were measured."""

    def of(figure: str, one: str, other: str) -> float | None:
        values = [rows.get(row, {}).get(figure) for row in (one, other)]
        return round(values[0] / values[1], 3) if all(values) else None

    found = {
        "cached_over_guide": of("images_per_second", "cached", "guide"),
        "cached_over_online": of("images_per_second", "cached", "online"),
        "online_over_loop": of("images_per_second", "online", "loop"),
        "cached_over_ceiling": of("images_per_second", "cached", "ceiling"),
        "ceiling_over_plain": of("images_per_second", "ceiling", "plain"),
        "recipe_guide_over_cached": of("recipe_seconds", "guide", "cached"),
        "recipe_guide_over_cached_4_views": four_views_ratio(plan, rows) if {"guide", "cached"} <= set(rows) else None,
        "sweep_over_students": sweep_ratio(rows) if "student only" in rows else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def four_views_ratio(plan: Plan, rows: dict[str, dict[str, Any]]) -> float | None:
    """Return ``recipe_guide_over_cached`` as it would be if the teacher saw four views.

    ``None`` where whole recipes were run: then it is not known what the targets cost.
    """
    cached = rows["cached"]
    targets = cached["recipe_seconds"] * cached["stages"].get("targets", 0)
    if not targets:
        return None
    more = min(4, plan.epochs) / min(plan.views, plan.epochs) - 1
    return round(rows["guide"]["recipe_seconds"] / (cached["recipe_seconds"] + targets * more), 3)


def sweep_ratio(rows: dict[str, dict[str, Any]], points: int = SWEEP_POINTS) -> float:
    """Divide the seconds of a sweep by those of as many trainings without a teacher."""
    sweep, students = (sweep_seconds(rows[row], points) for row in SWEEP_ROWS)
    return round(sum(sweep.values()) / sum(students.values()), 3)


def sweep_seconds(row: dict[str, Any], points: int = SWEEP_POINTS) -> dict[str, float]:
    """Return what ``points`` runs of a row cost, in seconds.

    ``decode`` and ``teacher`` (its targets and scores) are spent once, by the first run; the ``rest`` by every run.
    """
    shared = row["shared_seconds"]
    return {**shared, "rest": round(points * (row["recipe_seconds"] - sum(shared.values())), 1)}


def table(found: dict[str, Any]) -> list[list[str]]:
    """Format what ``bench`` returned as a table: the head, then a line for each row."""
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
    """List what the table does not say: how the seconds of its recipes were computed, the ratios, the machine."""
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
    """Describe the machine and the versions with which all this was measured."""
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
