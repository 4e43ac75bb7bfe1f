"""What is measured on a machine with a GPU, in stages of which each writes its result as soon as it has it.

Such a machine is often lent for minutes only: the stages that say most come first, a stage begins only where there is
time for it, and another call goes on with those that are missing. What a stage has found is told as it comes, and kept where
the stage fails. ``small`` runs the same stages on a CPU, on little.
"""

import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from kd.config import DistillConfig
from kd.devtools import speed
from kd.devtools.contenders import Row, student_step
from kd.devtools.several import compare_counts, followed, seconds_by_stage
from kd.devtools.workload import Plan, prepare
from kd.errors import UserError
from kd.runs.queue import gpu_count
from kd.runs.run import Run
from kd.runs.store import create_run

# The recipe of the Transformers guide on beans: 1,034 training pictures of 500 x 500 pixels in three classes.
BEANS = {"epochs": 30, "views": 4}
PICTURES = {"images": 1034, "validation": 133}
BATCHES = (64, 256)
# The rows of the table, those that say most first.
ROWS = ("cached", "ceiling", "student only", "online", "guide", "loop", "plain")
# Steps that are timed, after some that are not.
STEPS, WARM_UP = 30, 5
# The seconds of each row's turns.
TURN_SECONDS = 1.0
# The share of a GPU's memory that the run has in which memory runs out, as gigabytes; ``small``: so many pictures at a time.
LITTLE_GB = 1.2
LITTLE_PICTURES = 8
# So many operations are named in a profile.
NAMED = 12


# Notes what a stage has found.
Note = Callable[..., None]


@dataclass
class Bench:
    """Where results are written (``out``, a line of JSON for each stage), for how many seconds stages are begun."""

    out: Path
    seconds: float
    small: bool
    tell: Callable[[str], None]
    folder: Path = Path()
    began: float = field(default_factory=time.monotonic)

    def done(self) -> dict[str, Any]:
        """Return the results of the stages that are done, by name."""
        lines = self.out.read_text().splitlines() if self.out.exists() else []
        return {one["stage"]: one["found"] for one in map(json.loads, lines)}

    def stage(self, name: str, expected: float, work: Callable[[Note], None]) -> None:
        """Do a stage that is not done, and for which there is time (``expected`` seconds), and write what it found, or why it
        failed. ``work`` calls what it is given with each figure as it comes."""
        left = self.seconds - (time.monotonic() - self.began)
        if name in self.done():
            self.tell(f"{name}: done before")
            return
        if left < expected:
            self.tell(
                f"{name}: takes about {expected:.0f} s, and {max(0, left):.0f} s are left. The same command goes on with it."
            )
            return
        began, found = time.monotonic(), {}

        def note(**figures: Any) -> None:
            found.update(figures)
            self.tell(f"{name}: " + ", ".join(f"{what} {json.dumps(value)}" for what, value in figures.items()))

        self.tell(f"{name}: about {expected:.0f} s")
        try:
            work(note)
        except Exception as error:  # it is a result as well, and the others are to come
            note(failed=f"{type(error).__name__}: {str(error)[:500]}")
        line = {"stage": name, "seconds": round(time.monotonic() - began, 1), "found": found}
        with self.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.tell(f"{name}: {line['seconds']} s")

    def plan(self, batch: int = 32, **changes: Any) -> Plan:
        """Return what the rows work on; ``small``: the sample's teacher, few and small pictures."""
        changes = {**PICTURES, **changes}
        if self.small:
            few = {"teacher": "sample", "dataset": "sample", "student": "mobilenet_v2_0.35", "image_size": 32, "device": "cpu",
                   "images": 64, "validation": 32, "epochs": min(2, changes.get("epochs", 2)), "turn_seconds": 0.3}  # fmt: skip
            changes, batch = {**changes, **few}, min(batch, 32)
        return Plan(batch_size=batch, rounds=2, **{"turn_seconds": TURN_SECONDS, **changes})

    def folder_for(self, name: str) -> Path:
        """Return a new folder with the teacher and the pictures that all stages work on, which are made once; the caches of
        one stage are not those of another."""
        made = self.folder / "made"
        if not (made / "ready").exists():
            self.tell("making the teacher and the pictures")
            made.mkdir(exist_ok=True)
            prepare(self.plan(full=True), made)
            (made / "ready").touch()
        folder = self.folder / name
        if not folder.exists():
            folder.mkdir()
            for part in ("teacher", "pictures"):
                (folder / part).symlink_to(made / part)
        return folder


def measure_gpu(out: Path, seconds: float, small: bool, tell: Callable[[str], None]) -> dict[str, Any]:
    """Do all stages for which there is time, and return the results of those that are done, by name.

    Raises ``UserError`` where there is no GPU and they are not to be tried on a CPU (``small``).
    """
    if not small and gpu_count() == 0:
        raise UserError("There is no GPU here. Add --small to try the same stages on the CPU, on little.")
    few, many = (8, 16) if small else BATCHES
    if small:
        import torch

        torch.set_num_threads(1)  # those of so small operations wait for each other, and for whatever else runs here
    with tempfile.TemporaryDirectory(prefix="kd-gpu-") as name:
        bench = Bench(out, seconds, small, tell, Path(name))
        bench.stage("machine", 5, lambda note: note(**speed.machine()))
        for batch in (few, many):
            bench.stage(f"steps of {batch}", 15, partial(measure_steps, bench, batch))
        bench.stage("the default", 50, partial(measure_default, bench))
        bench.stage("beans", 120, partial(measure_beans, bench))
        measure_rows(bench, few)
        bench.stage("too little memory", 40, partial(measure_little_memory, bench))
        bench.stage(f"compiled steps of {few}", 60, partial(measure_compiled, bench, few))
        measure_rows(bench, many)
        if small or gpu_count() > 1:
            bench.stage("two processes", 90, partial(measure_two, bench))
        return bench.done()


def measure_rows(bench: Bench, batch: int) -> None:
    """Do a stage for each row of ``kd bench``."""
    for row in ROWS:
        bench.stage(f"{row}, batch {batch}", 12, partial(measure_row, bench, row, batch))


# --- Whole runs


def measure_default(bench: Bench, note: Note) -> None:
    """Make the default run: the sample, with and without the teacher."""
    few = {"epochs": 1, "device": "cpu", "export": "no"} if bench.small else {}
    note(**followed(create_run(DistillConfig.preset("sample", **few), bench.folder / "runs-default", "bench")))


def measure_beans(bench: Bench, note: Note) -> None:
    """Make the recipe of the Transformers guide's dataset whole, on as many made-up pictures."""
    folder = bench.folder_for("beans")
    note(**followed(create_run(bench.plan(**BEANS).config(folder), folder / "runs", "bench")))


def measure_two(bench: Bench, note: Note) -> None:
    """Make a run with one process and with two."""
    folder = bench.folder_for("two")
    for figures in compare_counts(bench.plan(64), folder, [1, 2]):
        note(**{f"{figures['processes']} processes": figures})


def measure_row(bench: Bench, row: str, batch: int, note: Note) -> None:
    """Measure one row of ``kd bench``."""
    plan = bench.plan(batch)
    note(**speed.measure_speed([Row(row, plan, bench.folder_for(f"rows-{batch}"), None)], bench.tell)[row])


def measure_little_memory(bench: Bench, note: Note) -> None:
    """Make a run whose process may use little of the GPU's memory, and note how its batches were cut. Raises ``UserError``
    where it was not done."""
    folder = bench.folder_for("memory")
    config = bench.plan(256, epochs=1).config(folder, export="no")
    run = create_run(config, folder / "runs", "bench")
    work = execute_with_few_pictures if bench.small else execute_in_little_memory
    process = multiprocessing.get_context("spawn").Process(target=work, args=(run.path,))
    process.start()
    process.join()
    parts = [event["parts"] for event in run.events() if event["event"] == "memory"]
    note(**({"at_once": LITTLE_PICTURES} if bench.small else {"gigabytes": LITTLE_GB}), parts=parts)
    if run.status() != "done":
        failed = run.last("failed")
        raise UserError(failed["message"] if failed else f"The run {run.status()}.")
    note(**seconds_by_stage(run.events()))


def execute_in_little_memory(folder: Path) -> None:
    """Work on a run in this process, which may use ``LITTLE_GB`` of the GPU's memory."""
    import torch

    from kd.distill import execute

    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(LITTLE_GB * 1e9 / total)
    execute(Run(folder))


def execute_with_few_pictures(folder: Path) -> None:
    """Work on a run in this process, in which the memory is said to run out with more than ``LITTLE_PICTURES`` at a time: that
    of a CPU does not run out as a GPU's does."""
    import torch

    from kd.distill import execute
    from kd.training.trainer import ImageDistilTrainer

    ours = ImageDistilTrainer.compute_loss

    def short(self: Any, model: Any, inputs: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        if model.training and len(inputs["labels"]) > LITTLE_PICTURES:
            raise torch.OutOfMemoryError("out of memory, as far as the benchmark is concerned")
        return ours(self, model, inputs, *arguments, **options)

    ImageDistilTrainer.compute_loss = short
    execute(Run(folder))


# --- The student's step alone


def measure_steps(bench: Bench, batch: int, note: Note) -> None:
    """Time a step as PyTorch does it, and as one CUDA graph, which has no launches; and say where its time goes."""
    import torch

    step = step_of(bench, batch)
    eager = milliseconds(step)
    note(eager_ms=eager)
    note(profile=profiled(step))
    if torch.cuda.is_available() and not bench.small:
        graph = milliseconds(graphed(bench, batch))
        note(graph_ms=graph, eager_over_graph=round(eager / graph, 2))


def step_of(bench: Bench, batch: int) -> Callable[[], None]:
    """Return the step of the row ``ceiling`` in the precision and layout that trainings on a GPU have."""
    import torch

    return student_step(Row("ceiling", bench.plan(batch), bench.folder, None), "bf16", torch.channels_last, True)


def training_parts(bench: Bench, batch: int) -> tuple[Any, Any, Callable[[], Any]]:
    """Return a student on its device, an optimizer that a CUDA graph can hold, and a function that computes the loss."""
    import torch

    from kd.models.device import pick_device
    from kd.models.student import load_student
    from kd.training.losses import distillation_loss

    plan = bench.plan(batch)
    device = pick_device(plan.device)
    student = load_student(plan.student, [str(i) for i in range(10)], plan.image_size, 0)
    model = student.model.train().to(device, memory_format=torch.channels_last)
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True, capturable=on_gpu)
    values = torch.randn(plan.batch_size, 3, *student.normalization.size, device=device)
    values = values.contiguous(memory_format=torch.channels_last)
    logits = torch.randn(plan.batch_size, 10, device=device)
    labels = torch.arange(plan.batch_size, device=device) % 10

    def loss(forward: Any = model) -> Any:
        # Weights that autocast keeps would belong to the graph in which they were made.
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=not on_gpu):
            answers = forward(pixel_values=values).logits
        return distillation_loss(answers.float(), logits, labels, 5.0, 0.5).total

    return model, optimizer, loss


def graphed(bench: Bench, batch: int) -> Callable[[], None]:
    """Return a step as one CUDA graph, the optimizer's part included."""
    import torch

    _, optimizer, loss = training_parts(bench, batch)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is made in the first steps must not be part of the graph
        for _ in range(3):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad()
    with torch.cuda.graph(graph):
        loss().backward()
        optimizer.step()
    return graph.replay


def measure_compiled(bench: Bench, batch: int, note: Note) -> None:
    """Time a step of a student that `torch.compile` has compiled, and how long that took; on a GPU also with its graphs."""
    import torch

    note(eager_ms=milliseconds(step_of(bench, batch)))
    for mode in ("default",) if bench.small else ("default", "reduce-overhead"):
        torch.compiler.reset()
        model, optimizer, loss = training_parts(bench, batch)
        compiled = torch.compile(model, mode=mode)

        def step(compiled: Any = compiled, optimizer: Any = optimizer, loss: Any = loss) -> None:
            optimizer.zero_grad()
            loss(compiled).backward()
            optimizer.step()

        began = time.perf_counter()
        step()
        _wait()
        seconds = round(time.perf_counter() - began, 1)
        note(**{f"{mode}_compile_seconds": seconds, f"{mode}_ms": milliseconds(step)})


def milliseconds(step: Callable[[], None]) -> float:
    """Return the mean time of a step, in ms, over many in a row: a GPU works on one while the next is launched."""
    for _ in range(WARM_UP):
        step()
    _wait()
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    _wait()
    return round((time.perf_counter() - began) / STEPS * 1000, 3)


def profiled(step: Callable[[], None]) -> dict[str, Any]:
    """Say where the time of a step goes: in launching operations, or in the GPU's kernels, and in which.

    ``launches`` is the number of kernels of a step; ``kernels_ms`` the time in them: where it is far below that of the step,
    the GPU waits for the CPU.
    """
    import torch
    from torch.profiler import ProfilerActivity, profile

    gpu = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]) as seen:
        for _ in range(5):
            step()
        _wait()
    averages = seen.key_averages()
    kernels = [one for one in averages if str(one.device_type).endswith("CUDA")]
    own = kernels or [one for one in averages if one.self_cpu_time_total]
    time_of = (lambda one: one.self_device_time_total) if kernels else (lambda one: one.self_cpu_time_total)
    most = sorted(own, key=time_of, reverse=True)[:NAMED]
    return {
        "launches": round(sum(one.count for one in kernels) / 5) if kernels else None,
        "kernels_ms": round(sum(map(time_of, kernels)) / 5000, 3) if kernels else None,
        "cpu_ms": round(sum(one.self_cpu_time_total for one in averages) / 5000, 3),
        "most": {one.key[:60]: round(time_of(one) / 5000, 3) for one in most},
    }


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
