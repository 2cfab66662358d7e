"""Hugging Face: a `TrainerCallback` that applies penalties, and smaller models that `from_pretrained` loads.

`RegularizerCallback` and `keep_plan` are imported from here. The import also tells transformers how smaller models are
loaded.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from shrinkage.errors import warn_user
from shrinkage.integrations.kept_plans import keep_plan as keep_plan
from shrinkage.integrations.makes_regularizer import MakesRegularizer

try:
    from transformers import IntervalStrategy, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.integrations.integration_utils import TensorBoardCallback, get_reporting_integration_callbacks
except ImportError as error:
    raise ImportError("this callback needs transformers: pip install accelerate transformers") from error


class RegularizerCallback(MakesRegularizer, TrainerCallback):
    """Penalizes parameters of the trainer's model that rules select, around the steps of its optimizer.

    minimizes  training loss + sum over rules of  R(parameters); a penalty comes after the trainer's gradient clipping,
    and once per optimizer step, however many batches it accumulates.

    Args:
        rules: as in `Regularizer`, with the names of the model that the trainer was given, or plain data as in
            `rules_from`; left out, what its layers declare with `regularize`.
        how: as in `Regularizer`.
        hold_zeros: as in `Regularizer`.
        stochastic_rounding: as in `Regularizer`.
        compile: as in `Regularizer`.

    Raises:
        SelectionError: when training begins, if a rule matches nothing or never wins.
        AttachmentError: when training begins, if the optimizer holds no penalized parameter, or another regularizer
            penalizes one.
        MetricError: when training begins, if a rule is proximal, and the optimizer's metric is not known.

    Attributes:
        regularizer: the `Regularizer`, as soon as training has begun; it stays after the end, for its `residuals`.

    The state is part of the optimizer's, so `train(resume_from_checkpoint=...)` continues from it, unless checkpoints
    were made with `save_only_model=True`. Every call of `train` that does not resume counts updates from 0, as the
    trainer counts its steps.

    The numbers of `Regularizer.stats` are logged at the end of every epoch, unless `logging_strategy="no"`: they are in
    `trainer.state.log_history`, and in what `report_to` names. Evaluations have them too, as "eval_shrinkage/zeros" and
    so on, for `metric_for_best_model` and an `EarlyStoppingCallback` that comes after this callback.

    >>> from shrinkage import L1
    >>> callback = RegularizerCallback({"*.attention.*.weight": L1(1e-3)})  # Trainer(..., callbacks=[callback])
    """

    _loggers: Sequence[TrainerCallback] = ()
    _epoch_ended = False

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        optimizer: Optimizer | None = None,
        **kwargs: Any,
    ) -> None:
        """Attach to the optimizer, which the trainer has made, and loaded from a checkpoint if it resumes."""
        if model is None or optimizer is None:
            raise TypeError("on_train_begin is called by a Trainer, with a model and an optimizer")
        self._detach()  # a run that raised never came to its end
        self.regularizer = self._make(model)
        self.regularizer.attach(optimizer)
        self._epoch_ended = False
        # The trainer's own loggers have their turn before callbacks of users, and would not see what is added here.
        self._loggers = loggers_of(args)
        for logger in self._loggers:
            logger.on_train_begin(args, state, control, model=model)
        if state.global_step and not any(self.regularizer.state_dict()["updates"]):
            warn_user(
                f"training resumes at step {state.global_step}, but the checkpoint's optimizer holds no state of a "
                "regularizer: update counts of schedules, averaged gradients and references start anew"
            )

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let the trainer log at the end of an epoch, if it logs at all."""
        self._epoch_ended = args.logging_strategy != IntervalStrategy.NO
        control.should_log = control.should_log or self._epoch_ended

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add how far budgets have come to what the trainer logs, and all other numbers at the end of an epoch."""
        if self.regularizer is None or logs is None:
            return
        numbers = self.regularizer.stats() if self._epoch_ended else self._budgets()
        self._epoch_ended = False
        logs.update(numbers)
        if state.log_history:
            state.log_history[-1].update(numbers)
        for logger in self._loggers if numbers else ():
            logger.on_log(args, state, control, logs=dict(numbers), **kwargs)

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add the numbers to those of an evaluation during training, which can choose and stop by them."""
        if self.regularizer is not None and metrics is not None:
            metrics.update({f"eval_{name}": number for name, number in self.regularizer.stats().items()})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove all hooks, so that nothing is penalized twice by another run."""
        self._detach()
        for logger in self._loggers:
            if isinstance(logger, TensorBoardCallback):  # the only one with a file of its own
                logger.on_train_end(args, state, control, **kwargs)  # type: ignore[no-untyped-call]  # it has no types
        self._loggers = []


def loggers_of(args: TrainingArguments) -> list[TrainerCallback]:
    """Return new instances of the callbacks that write to what `report_to` names."""
    kinds = get_reporting_integration_callbacks(args.report_to)  # type: ignore[no-untyped-call]  # it has no types
    return [kind() for kind in kinds]
