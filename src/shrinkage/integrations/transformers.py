"""A Hugging Face `TrainerCallback` that applies penalties around the steps of the optimizer that the trainer makes."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from shrinkage.errors import warn_user
from shrinkage.integrations.makes_regularizer import MakesRegularizer, numbers_of

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
except ImportError as error:
    raise ImportError("this callback needs transformers: pip install accelerate transformers") from error


class RegularizerCallback(MakesRegularizer, TrainerCallback):
    """Penalizes parameters of the trainer's model that rules select, around the steps of its optimizer.

    minimizes  training loss + sum over rules of  R(parameters); a penalty comes after the trainer's gradient clipping,
    and once per optimizer step, however many batches it accumulates.

    Args:
        rules: as in `Regularizer`, with the names of the model that the trainer was given; left out, what its layers
            declare with `regularize`.
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

    >>> from shrinkage import L1
    >>> callback = RegularizerCallback({"*.attention.*.weight": L1(1e-3)})  # Trainer(..., callbacks=[callback])
    """

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
        if state.global_step and not any(self.regularizer.state_dict()["updates"]):
            warn_user(
                f"training resumes at step {state.global_step}, but the checkpoint's optimizer holds no state of a "
                "regularizer: update counts of schedules, averaged gradients and references start anew"
            )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add how far budgets have come to what the trainer logs."""
        if self.regularizer is not None and logs is not None:
            logs.update(numbers_of(self.regularizer))

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remove all hooks, so that nothing is penalized twice by another run."""
        self._detach()
