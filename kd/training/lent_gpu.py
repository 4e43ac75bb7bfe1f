"""End a training in time where its GPU is lent for a while only, so that the next piece goes on from there."""

import time

from transformers import TrainerCallback

from kd.runs.pieces import Piece
from kd.runs.run import Run

# A time that was measured before is told again where it is so much longer.
LONGER = 1.2


class LentGpu(TrainerCallback):
    """Saves and ends a training before the GPU is taken away, and measures how long saving takes.

    The first step of a run is saved, which shows it. A training that ends within an epoch is not evaluated, so that its
    evaluations, and with them the student that is kept, are those of a training in one piece.
    """

    def __init__(self, run: Run, piece: Piece, validation: int) -> None:
        """Note the piece that ends, and the number of ``validation`` images."""
        self.run, self.piece, self.validation = run, piece, validation
        self.is_paused = False

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.first_step, self.began = None, 0.0  # counted from the second step of a piece on: the first takes longer

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.piece.saving is None:
            control.should_save = True
        elif not control.should_training_stop and self.piece.is_over(self._seconds_to_save(args, state)):
            control.should_training_stop = self.is_paused = True
        if self.first_step is None:
            self.first_step, self.began = state.global_step, time.monotonic()
        self.since = time.monotonic()

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        if self.is_paused:
            args.load_best_model_at_end = state.global_step == state.max_steps  # it is read for nothing before
            control.should_evaluate = abs(state.epoch - round(state.epoch)) < 1e-6
        self.since = time.monotonic()

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        now = time.monotonic()
        self._tell(evaluating=now - self.since)
        self.since = now

    def on_save(self, args, state, control, **kwargs) -> None:
        self._tell(saving=time.monotonic() - self.since)
        self.since = time.monotonic()

    def _seconds_to_save(self, args, state) -> float:
        """Return how long evaluating and saving take: as it was measured, and before the first evaluation no longer than the
        same number of images takes in training."""
        evaluating = self.piece.evaluating
        if evaluating is None and self.first_step is None:
            evaluating = 0.0
        elif evaluating is None:
            images = (state.global_step - self.first_step) * args.train_batch_size * args.gradient_accumulation_steps
            evaluating = self.validation * (time.monotonic() - self.began) / images
        return self.piece.saving + evaluating

    def _tell(self, **measured: float) -> None:
        """Keep what was measured, and write it down where it is the longest so far."""
        for name, seconds in measured.items():
            before = getattr(self.piece, name)
            if before is None or seconds > before:
                setattr(self.piece, name, seconds)
                if self.piece.saving is not None and (before is None or seconds > LONGER * before):
                    evaluating = self.piece.evaluating
                    self.run.append(
                        "saved",
                        saving=round(self.piece.saving, 3),
                        evaluating=None if evaluating is None else round(evaluating, 3),
                    )
