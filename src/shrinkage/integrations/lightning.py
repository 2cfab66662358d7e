"""A Lightning `Callback` that applies penalties around the steps of the optimizers that the trainer makes."""

from typing import Any

from shrinkage.errors import AttachmentError
from shrinkage.integrations.makes_regularizer import MakesRegularizer
from shrinkage.optimizers.introspection import stepped, unwrapped
from shrinkage.selection.named_parameters import named_parameters
from shrinkage.selection.rules import Rule
from shrinkage.selection.selectors import selector_text

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as error:
    raise ImportError("this callback needs Lightning: pip install lightning") from error


class RegularizerCallback(MakesRegularizer, Callback):
    """Penalizes parameters of a LightningModule that rules select, in every optimizer of the trainer that holds them.

    minimizes  training loss + sum over rules of  R(parameters); a penalty comes after the trainer's gradient clipping,
    and once per optimizer step, however many batches it accumulates.

    Args:
        rules: as in `Regularizer`, with the names that parameters have in the LightningModule ("model.0.weight"), or
            plain data as in `rules_from`, such as a list in the YAML file of a LightningCLI; left out, what its layers
            declare with `regularize`.
        how: as in `Regularizer`.
        hold_zeros: as in `Regularizer`.
        stochastic_rounding: as in `Regularizer`.
        compile: as in `Regularizer`.

    Raises:
        SelectionError: when fit starts, if a rule matches nothing or never wins.
        AttachmentError: when fit starts, if no optimizer holds a penalized parameter, or another regularizer penalizes
        one.
        MetricError: when fit starts, if a rule is proximal, and the metric of an optimizer is not known.

    Attributes:
        regularizer: the `Regularizer`, as soon as fit has started; it stays after the end, for its `residuals`.

    A checkpoint of the trainer holds the state, and `fit(ckpt_path=...)` goes on from it. Another `fit` of the same
    trainer goes on counting updates where the last one ended, as the trainer does; that of a new trainer starts at 0.
    Several callbacks in one trainer are told apart by their selectors, kinds of penalty and `how`.

    The numbers of `Regularizer.stats` are logged at the end of every epoch: in every logger of the trainer, and in its
    `callback_metrics`, so that `EarlyStopping(monitor="shrinkage/zeros", mode="max")` works.

    >>> from lightning.pytorch import Trainer
    >>> from shrinkage import L1
    >>> trainer = Trainer(callbacks=[RegularizerCallback({"model.*.weight": L1(1e-3)})], logger=False)
    """

    _module: LightningModule | None = None
    _saved: dict[str, Any] | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget what a checkpoint of an earlier run brought: this one's is loaded after this."""
        self._saved = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach to the optimizers, which the trainer has just made, and is going to load from a checkpoint."""
        regularizer = self.regularizer
        if regularizer is None or self._module is not pl_module or not trainer.global_step:
            regularizer = self._make(pl_module)
        if self._saved is not None:
            regularizer.load_state_dict(self._saved)
        names = set(regularizer.plan.names)
        penalized = {id(each.parameter) for each in named_parameters(pl_module) if each.name in names}
        holding = [
            optimizer for optimizer in trainer.optimizers if not penalized.isdisjoint(stepped(unwrapped(optimizer)))
        ]
        if not holding:
            made = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers) or "none at all"
            raise AttachmentError(
                f"no optimizer of the trainer (it has {made}) holds any of the penalized parameters "
                f"{sorted(names)[:3]}; return one from configure_optimizers() that does"
            )
        self.regularizer, self._module = regularizer, pl_module
        for optimizer in holding:
            regularizer.attach(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log how far budgets have come, when the trainer logs."""
        often: int = getattr(trainer, "log_every_n_steps", 1)  # a connector sets it
        if trainer.loggers and trainer.global_step % often == 0:
            pl_module.log_dict(self._budgets())

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let callbacks see the numbers right after a validation, when they stop the training or save it."""
        if self.regularizer is not None and trainer.state.fn == "fit" and not trainer.sanity_checking:
            pl_module.log_dict(self.regularizer.stats(), logger=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the numbers of `Regularizer.stats` at the end of every epoch."""
        if self.regularizer is not None:
            pl_module.log_dict(self.regularizer.stats())

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove all hooks, so that nothing is penalized twice by another fit."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove all hooks: Lightning does not call `teardown` after an exception."""
        self._detach()

    @property
    def state_key(self) -> str:
        """Tell this callback's state from that of another in a checkpoint: they penalize different parameters.

        Strengths are left out: a run that resumes with another one finds the state.
        """
        penalized = None if self._rules is None else [penalized_text(rule) for rule in self._rules]
        key: str = self._generate_state_key(rules=penalized)
        return key

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the regularizer, which is also part of the optimizers' while fit runs."""
        return {} if self.regularizer is None else self.regularizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until there are optimizers."""
        self._saved = state_dict


def penalized_text(rule: Rule) -> str:
    """Return which parameters a rule selects, and what kind of penalty penalizes them, if one does."""
    selected = "every weight" if rule.parameters is None else selector_text(rule.parameters)
    return f"{selected}: {rule.penalty and type(rule.penalty).__name__} ({rule.how})"
