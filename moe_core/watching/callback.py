"""`watch` for transformers' Trainer, and so for TRL's: a callback that watches from the first step to the last."""

import inspect
import logging
import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from moe_core.schema import first_line
from moe_core.watching.live import Live, StopTraining
from moe_core.watching.ranks import bare
from moe_core.watching.start import watch

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as error:
    raise ImportError(f"MoECallback needs {error.name}: pip install transformers accelerate", name=error.name) from None

# The endings of those numbers in a Trainer's evaluation that are not measured on the model.
ASIDE = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")

log = logging.getLogger("moescope")


class MoECallback(TrainerCallback):  # type: ignore[misc]
    """Watches the model that a Trainer trains: Trainer(..., callbacks=[MoECallback("my-finetune")]).

    run: the run's name; a second train() with the same callback is recorded as NAME-2. options: those of watch(), except model
    and optimizer, which the Trainer gives. metrics=["loss", "accuracy"] takes eval_loss and eval_accuracy of each evaluation.
    The page's stop ends the training as the Trainer's own early stopping does, and its checkpoint has the Trainer save.
    """

    def __init__(self, run: str | None = None, **options: Any) -> None:
        known = inspect.signature(watch).parameters.keys() - {"model", "run", "optimizer"}
        if unknown := sorted(options.keys() - known):
            raise TypeError(f"MoECallback takes run and {', '.join(sorted(known))}, got {', '.join(unknown)}")
        self.run, self.options = run, options
        self.live: Live | None = None
        self.trained = 0  # how often train() was called
        self.undo: list[Callable[[], object]] = []  # take our hooks off the model and the Trainer
        self.loss: Tensor | None = None  # of the current step, summed over the micro-batches so far
        self.follows = False  # whether each loss is read in training_step, or only in the Trainer's log
        self.waiting = False  # whether a step is done and not yet recorded, since its log may follow
        self.logged = 0  # the last step whose loss was in a log
        self.saving = False  # whether a checkpoint was asked for
        self.said = False  # whether the log has named the metrics that are left out

    # What the Trainer calls

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **given: Any) -> None:
        self._end("failed", "train() was called again, and the training before had not said that it ended")
        self.trained += 1
        run = f"{self.run}-{self.trained}" if self.run and self.trained > 1 else self.run
        options = {"checkpoint": self._save, **self.options}
        model = bare(model)
        self.live = watch(model, run, optimizer=given.get("optimizer"), **options)
        self.undo.append(model.register_forward_pre_hook(self._mask, with_kwargs=True).remove)
        self.loss, self.waiting, self.logged = None, False, state.global_step
        trainer = trainer_of(state)
        self.follows = trainer is not None
        if trainer is not None:
            self._hear(trainer)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """A step of the optimizer is done. If it is to be logged, the log comes next, and with it the gradient's norm."""
        self.waiting = True
        if not control.should_log:
            self._step(control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
        if self.waiting and logs and "loss" in logs:
            # The logged loss is a mean over the steps since the last log: it is this step's if there was no other.
            alone = state.global_step - self.logged == 1
            self.logged = state.global_step
            self._step(control, logs["loss"] if alone else None, logs.get("grad_norm"))

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._step(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **given: Any) -> None:
        self._step(control)
        if self.live is None or self.live.closed:
            return
        if self.live.number == 0:  # before the first step there is no record to put it in
            self.live.taps.take_held_out()
            return
        found = {
            name.removeprefix("eval_"): float(value)
            for name, value in (metrics or {}).items()
            if name.startswith("eval_") and isinstance(value, float | int) and not name.endswith(ASIDE)
        }
        declared = {metric.name for metric in self.live.metrics}
        if (others := sorted(found.keys() - declared)) and not self.said:
            self.said = True
            names = ", ".join(repr(name) for name in [*sorted(declared), *others])
            log.warning(
                "of the evaluations %s is not recorded; MoECallback(metrics=[%s]) would", ", ".join(others), names
            )
        self.live.eval(**{name: value for name, value in found.items() if name in declared})

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        self._step(control)
        self._end()

    # How it does it

    def _step(self, control: Any, logged: float | None = None, grad_norm: float | None = None) -> None:
        """Record the step that is done, if one is."""
        if not self.waiting or self.live is None:
            return
        self.waiting = False
        loss, self.loss = self.loss if self.follows else logged, None
        try:
            self.live.step(
                loss=math.nan if loss is None else loss, grad_norm=math.nan if grad_norm is None else grad_norm
            )
        except StopTraining:
            control.should_training_stop = True
        if self.saving:
            self.saving, control.should_save = False, True

    def _save(self) -> str:
        self.saving = True
        return "asked of the Trainer, which saves now"

    def _mask(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Before each forward: take padding from attention_mask. Only a mask of two dimensions says which tokens are padding."""
        mask = kwargs.get("attention_mask")
        if self.live is not None:
            self.live.mask(mask if torch.is_tensor(mask) and mask.dim() == 2 else None)

    def _hear(self, trainer: Any) -> None:
        """Read the loss that training_step returns for each micro-batch: the Trainer logs only a mean over many steps."""
        inner, own = trainer.training_step, "training_step" in vars(trainer)

        def training_step(*args: Any, **kwargs: Any) -> Any:
            try:
                loss = inner(*args, **kwargs)
            except BaseException as error:
                self._end("failed", f"{type(error).__name__}: {first_line(error)}")
                raise
            self.loss = loss if self.loss is None else self.loss + loss
            return loss

        trainer.training_step = training_step
        self.undo.append(
            lambda: setattr(trainer, "training_step", inner) if own else vars(trainer).pop("training_step", None)
        )

    def _end(self, state: str = "finished", error: str = "") -> None:
        while self.undo:
            self.undo.pop()()
        if self.live is not None:
            self.live.close(state, error)


def trainer_of(state: Any) -> Any:
    """The Trainer whose state this is; None if it is not among the callers. A callback is not given its Trainer, and the loss of a
    single step cannot be read elsewhere."""
    frame = sys._getframe()
    while (frame := frame.f_back) is not None:  # type: ignore[assignment]
        caller = frame.f_locals.get("self")
        if getattr(caller, "state", None) is state and hasattr(caller, "training_step"):
            return caller
    return None
