"""Write a run's events while Trainer trains, change the view each epoch, and obey STOP."""

import math
import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback

from kd.runs.run import Run
from kd.training.batches import ViewBatches
from kd.training.trainer import Diverged, ImageDistilTrainer

EVENT_SECONDS = 0.5
"""At most one ``step`` event in this time."""


class RunCallback(TrainerCallback):
    """Writes a run's ``step`` and ``eval`` events, changes the view each epoch, obeys ``STOP`` and stops on NaN."""

    def __init__(
        self,
        run: Run,
        batches: ViewBatches,
        views: int,
        sizes: Callable[[int], tuple[int, int] | None] = lambda epoch: None,
        seconds_before: float = 0.0,
        arm: dict[str, Any] | None = None,
    ) -> None:
        """``sizes``: epoch, from 0 on -> the size of the student's input in it."""
        self.run, self.batches, self.views, self.sizes, self.arm = run, batches, views, sizes, arm or {}
        self.seconds_before = seconds_before
        self.trainer: ImageDistilTrainer | None = None

    @property
    def seconds(self) -> float:
        """Seconds of the run's training so far, those before a resume included."""
        return self.seconds_before + time.perf_counter() - self.started

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.started = self.looked = time.perf_counter()
        self.run.append(
            "training", epochs=int(args.num_train_epochs), steps=state.max_steps, step=state.global_step, **self.arm
        )

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        epoch = int(round(state.epoch, 6))  # a resume may begin in the middle of one
        self.batches.show(epoch % self.views, self.sizes(epoch))
        self.looked = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.run.stop_asked():  # end as an epoch does: what was learned is evaluated and saved
            control.should_training_stop = True
        if time.perf_counter() - self.looked >= EVENT_SECONDS or state.global_step == 1:
            self._tell(state)

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        self._tell(state)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.trained = self.seconds

    def _tell(self, state) -> None:
        """One ``step`` event: the mean losses since the last one."""
        means, count = self.trainer.take_means()
        if not count:
            return
        if not all(map(math.isfinite, means)):
            raise Diverged(f"the loss became {means.total} in epoch {math.ceil(state.epoch)}, step {state.global_step}")
        now = time.perf_counter()
        seconds, self.looked = now - self.looked, now
        self.run.append(
            "step",
            step=state.global_step,
            epoch=round(state.epoch, 4),
            total=round(means.total, 5),
            soft=round(means.soft, 5),
            hard=round(means.hard, 5),
            images_per_second=round(count / seconds, 1),
            seconds=round(self.seconds, 2),
        )

    def on_evaluate(self, args, state, control, metrics: dict[str, float], **kwargs) -> None:
        agreed = {"agreement": round(metrics["eval_agreement"], 5)} if "eval_agreement" in metrics else {}
        self.run.append(
            "eval",
            step=state.global_step,
            epoch=round(state.epoch, 2),
            accuracy=round(metrics["eval_accuracy"], 5),
            f1=round(metrics["eval_f1"], 5),
            **agreed,
            loss=round(metrics["eval_loss"], 5) if math.isfinite(metrics["eval_loss"]) else None,
            seconds=round(self.seconds, 2),
        )
        self.looked = time.perf_counter()
