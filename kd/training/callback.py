"""Write a run's events while Trainer trains, change the view each epoch, and obey STOP."""

import math
import time

from transformers import TrainerCallback

from kd.runs.run import Run
from kd.training.batches import ViewBatches
from kd.training.lent_gpu import LentGpu
from kd.training.plan import Plan, Trial
from kd.training.trainer import Diverged, ImageDistilTrainer

# At most one ``step`` event in this time.
EVENT_SECONDS = 0.5


class RunCallback(TrainerCallback):
    """Writes a run's ``step`` and ``eval`` events, changes the view each epoch, obeys ``STOP`` and stops on NaN."""

    def __init__(self, run: Run, batches: ViewBatches, plan: Plan, trial: Trial, seconds_before: float = 0.0) -> None:
        """Note what to write about; ``seconds_before`` are those that the trial was trained before the run was resumed."""
        self.run, self.batches, self.plan, self.trial = run, batches, plan, trial
        self.seconds_before = seconds_before
        self.whose = {"arm": trial.name, "seed": trial.seed}  # other trainings may write events at the same time
        self.trainer: ImageDistilTrainer | None = None
        self.lent: LentGpu | None = None  # where the GPU is lent for a while only

    @property
    def seconds(self) -> float:
        """Return the seconds of the trial's training so far, those before a resume included."""
        return self.seconds_before + time.perf_counter() - self.started

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.started = self.told = time.perf_counter()
        trial = self.trial
        self.run.append(
            "training", epochs=int(args.num_train_epochs), steps=state.max_steps, step=state.global_step, arm=trial.name,
            seed=trial.seed, nth=trial.nth, of=trial.of, **({"at_once": self.plan.at_once} if self.plan.at_once > 1 else {}),
        )  # fmt: skip

    def on_epoch_begin(self, args, state, control, **kwargs) -> None:
        epoch = int(round(state.epoch, 6))  # a resume may begin in the middle of one
        self.batches.show(epoch % self.plan.views, self.plan.size_in(epoch))
        self.told = time.perf_counter()

    def asks(self) -> tuple[bool, bool]:
        """Return whether training is to stop after this step, and whether it is time for a ``step`` event."""
        return self.run.stop_asked(), time.perf_counter() - self.told >= EVENT_SECONDS

    def on_step_end(self, args, state, control, **kwargs) -> None:
        stop, tell = self.trainer.agreed or self.asks()
        if stop:  # end as an epoch does: what was learned is evaluated and saved
            control.should_training_stop = True
        if tell or state.global_step == 1:
            self._tell(state)

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        self._tell(state)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self.trained = self.seconds

    def _tell(self, state) -> None:
        """Write one ``step`` event: the mean losses since the last one."""
        means, count = self.trainer.take_means()
        if not count:
            return
        if not all(map(math.isfinite, means)):
            raise Diverged(f"the loss became {means.total} in epoch {math.ceil(state.epoch)}, step {state.global_step}")
        now = time.perf_counter()
        seconds, self.told = now - self.told, now
        self.run.append(
            "step",
            step=state.global_step,
            epoch=round(state.epoch, 4),
            total=round(means.total, 5),
            soft=round(means.soft, 5),
            hard=round(means.hard, 5),
            images_per_second=round(count / seconds, 1),
            seconds=round(self.seconds, 2),
            **self.whose,
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
            **self.whose,
        )
        self.told = time.perf_counter()
