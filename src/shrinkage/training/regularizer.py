"""`Regularizer`: rules for a model, attached to its optimizers."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any
from weakref import ref

from torch import Tensor, nn
from torch.optim import Optimizer

from shrinkage.diagnostics.advice import training_of
from shrinkage.diagnostics.evaluation import value
from shrinkage.diagnostics.loss_gradients import Closure
from shrinkage.diagnostics.residuals import Residuals, residuals
from shrinkage.diagnostics.stats import in_logs, stats
from shrinkage.execution.task import Compile
from shrinkage.optimizers.hooks import uncompiled
from shrinkage.optimizers.introspection import unwrapped, working
from shrinkage.optimizers.parameter_state import Plan as ShrinkPlan
from shrinkage.selection.how import How
from shrinkage.selection.plan import Plan, resolve, warn_of_unpenalized
from shrinkage.selection.rules import Rules
from shrinkage.training.acting import Acting, by_layers, by_regularizer, declared_in, updates_by_layers
from shrinkage.training.added_gradients import add_gradients_now
from shrinkage.training.attachment import Attachment
from shrinkage.training.attachments import Attachments
from shrinkage.training.checks_before_step import check_together
from shrinkage.training.options import Options
from shrinkage.training.penalized import Found, targets_of
from shrinkage.training.printed import text_of
from shrinkage.training.progress import BudgetProgress, numbers_of
from shrinkage.training.rankings import rankings_of
from shrinkage.training.regularize import check_declared, check_one_decay, decays_of, declared_rules, rules_of
from shrinkage.training.saved_state import state_of


class Regularizer:
    """Penalizes the parameters that rules select, around each step of the attached optimizers.

    minimizes  loss + sum over rules of  R(parameters)  in the optimizer's own steps, with no term in the loss.

    Args:
        model: the model whose parameters are penalized.
        rules: a penalty (penalizes the weights of two dimensions or more outside of norm and embedding layers), a
            mapping from selectors to penalties (the first match wins, None leaves alone; see `Rule` for selectors), a
            `Rule` or a sequence of them; left out, what the layers of the model declare with `regularize`.
        how: "proximal", "gradient" or "decoupled" for the penalties that come without a `Rule`.
        hold_zeros: keep exact zeros from leaving with the noise of minibatches: a weight or group that is zero stays so
            while the running average of its gradient, with this decay, is too small to move it. 0.99 averages over
            about 100 updates and suits most; 0.999 finds zeros more sharply in runs of 10000 updates and more. It has
            to be more than the optimizer's own momentum: 0.9 adds nothing to Adam or to momentum 0.9. Keeps one tensor
            of each parameter's size. None, the default, lets every gradient move zeros. For proximal rules;
            constraints, and penalties whose zeros withstand every gradient, are not concerned. Without `rules`, None is
            what the layers declare.
        stochastic_rounding: write bfloat16 and float16 parameters rounded up or down at random, so that penalties too
            small to move a weight in one step move it in the mean. The same in all replicas of a model, whatever the
            seeds; other types are not concerned, nor is what how="gradient" adds to gradients.
        compile: move parameters by kernels: native ones on CPUs, built at first use, and those of torch.compile for the
            rest, if "auto" where that saves its seconds in a thousand steps. True raises if there are no native ones.

    Raises:
        ValueError: `hold_zeros` is not between 0 and 1, or `compile` is not one of its three values.
        SelectionError: a rule matches nothing or never wins, or two rules clash on a parameter.
        GroupError: a parameter does not fall into the groups of its penalty.
        ParameterError: a selected parameter is not floating point, or is computed by a parametrization.

    Attributes:
        plan: the penalized parameters, with shape, groups, penalty, strength and how; prints as a table.

    Without `attach` nothing is penalized but what layers declare. A new optimizer, and a copy or pickle of one, warns
    if it steps without it.

    >>> import shrinkage, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> optimizer = torch.optim.Adam(model.parameters())
    >>> Regularizer(model, {"2.*": None, "*.weight": shrinkage.L1(1e-3)}).attach(optimizer)
    Regularizer: 1 parameter, attached to Adam
    parameter  shape  groups  penalty  strength  how
    ---------  -----  ------  -------  --------  --------
    0.weight   8x4    -       L1       0.001     proximal
    """

    def __init__(
        self,
        model: nn.Module,
        rules: Rules | None = None,
        *,
        how: How = "proximal",
        hold_zeros: float | None = None,
        stochastic_rounding: bool = False,
        compile: Compile = "auto",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"expected a module, got {type(model).__name__}: Regularizer(model, rules)")
        declared = declared_rules(model)
        self._decays = decays_of(declared) if rules is None and hold_zeros is None else set()
        decay = next(iter(self._decays)) if len(self._decays) == 1 else hold_zeros
        self._model, self._options = model, Options(decay, stochastic_rounding, compile)
        self.plan: Plan = resolve(model, rules_of(declared) if rules is None else rules, how)
        if rules is not None:
            warn_of_unpenalized(model, rules, how)
        check_declared(declared, self.plan)
        self._attached = Attachments()

    def attach(self, optimizer: Optimizer) -> "Regularizer":
        """Apply the rules around every step of `optimizer` from now on, and return this regularizer.

        The optimizer's `state_dict` takes this one's along, and its `load_state_dict` brings it back, if called before
        `attach` too. A state that was saved without a regularizer leaves the update count as it is. An optimizer that
        holds a parameter of one that was attached to before goes on with its count: both have one in common.

        A wrapper or container that keeps optimizers in itself (Accelerate's, SAM's, ZeroRedundancyOptimizer) is
        attached to by those that do the work. A model that is trained by several optimizers attaches to each; an
        optimizer that is attached to already stays as it is.

        Raises:
            TypeError: there is no optimizer in `optimizer`.
            SelectionError: the rules are what layers declare, and these hold zeros in different ways.
            AttachmentError: the optimizer holds none of the penalized parameters, another regularizer penalizes one of
                them there, its steps are hidden from hooks (DeepSpeed's, `overlap_with_ddp`), or `compile` is True and
                there are no native kernels on a CPU.
            MetricError: a rule is proximal, and the optimizer's metric is not known.
            ValueError: what was loaded has averages or references of other shapes.
        """
        check_one_decay(self._decays)
        whole = unwrapped(optimizer)
        held = self._attached.optimizers()
        attachments = {each: self._attachment(whole) for each in working(whole) if each not in held}
        for each, attachment in attachments.items():
            attachment.targets(each)
        for each, attachment in attachments.items():
            self._attached.add(each, attachment, self, self._model)
        return self

    def _attachment(self, whole: Optimizer) -> Attachment:
        """Return what applies the rules in one of the optimizers that do the work of `whole`."""
        rankings = rankings_of(self.plan.budgets, kernels=self._options.compile is not False)
        return Attachment(partial(self._targets, ref(whole)), self._options, ref(whole), rankings)

    def detach(self) -> None:
        """Take all hooks off the optimizers; the parameters keep their values, the update counts are kept."""
        self._attached.remove(self)

    def progress(self) -> tuple[BudgetProgress, ...]:
        """Return how far each `Budget` has come, in each attached optimizer, as of the last ranking.

        >>> import shrinkage, torch
        >>> layer = torch.nn.Linear(10, 10)
        >>> optimizer = torch.optim.SGD(layer.parameters())
        >>> print(*Regularizer(layer, shrinkage.Budget(zeros=0.9, updates=1000)).attach(optimizer).progress())
        update 0 of 1,000, waiting: 90 of 100 zeros in the end
        """
        return self._attached.budgets()

    def add_gradients_(self, optimizer: Optimizer | None = None) -> None:
        """Add the derivatives of the penalties with `how="gradient"` to `.grad` now, as terms of the loss would.

        For a loop that clips gradients with the penalties in them: call it once per update, after the last
        `backward()` and `scaler.unscale_(optimizer)`, before the clipping. The next step does not add them again.
        Without it they come after the clipping, as torch's `weight_decay` does. Other rules act as ever. What is added
        to a gradient that still carries the loss scale is divided by that later: the step of a fused optimizer sees it
        and raises, others cannot know.

        Args:
            optimizer: the one that steps next, where several are attached; left out, all of them.

        Raises:
            AttachmentError: the regularizer is not attached to the optimizer, or added to these gradients before.
            ParameterError: a gradient is sparse.

        >>> import shrinkage, torch
        >>> layer = torch.nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> regularizer = Regularizer(layer, shrinkage.L2(0.5), how="gradient").attach(optimizer)
        >>> layer(torch.ones(2)).sum().backward()
        >>> regularizer.add_gradients_()
        >>> torch.equal(layer.weight.grad, 1 + 0.5 * layer.weight.detach())
        True
        """
        uncompiled(add_gradients_now)(self._attached.pairs(), optimizer)

    def value(self) -> Tensor:
        """Return the sum of all penalties at the model's parameters now, a 0-dim tensor without a graph."""
        return value(self._model, self.plan, self._reached())

    def stats(self) -> dict[str, float]:
        """Return what trainers log, as numbers; `shrinkage.diagnostics.stats` explains the keys.

        >>> import shrinkage, torch
        >>> sorted(Regularizer(torch.nn.Linear(4, 2), shrinkage.L1(0.1)).stats())[1:]
        ['shrinkage/penalty', 'shrinkage/strength/L1', 'shrinkage/zeros']
        """
        return in_logs(stats(self._model, self.plan, self._reached()) | numbers_of(self.progress()))

    def residuals(self, closure: Closure, data: Iterable[Any] | None = None, *, tolerance: float = 1e-3) -> Residuals:
        """Tell how far the model is from solving the stated problem: the residual of every parameter, and in words.

        A residual is the distance from the negative gradient of the loss to the subdifferential of the penalty; it is 0
        at a solution. For `L0` and `Lp`, whose zeros withstand every gradient, it is how far one more step and prox
        would move the weights, per unit of the optimizer's own step.

        Args:
            closure: returns the loss of all training data, or of one batch of `data`; a mean over its examples, and
                deterministic: call `model.eval()` first if there is dropout or batch normalisation.
            data: batches; their losses are averaged, each weighed by the length of its first tensor.
            tolerance: largest residual that counts as solved, relative to the strength.

        Raises:
            TypeError: the closure does not return a loss that can be differentiated.
            ValueError: `data` is empty.

        Buffers, attributes, modes, `.grad` and random states are as they were afterwards, also if the closure raises.

        >>> import shrinkage, torch
        >>> layer = torch.nn.Linear(2, 1, bias=False)
        >>> _ = layer.load_state_dict({"weight": torch.tensor([[0.0, -1.0]])})
        >>> x = torch.tensor([[0.5, 0.0], [0.0, 1.0]])
        >>> print(Regularizer(layer, shrinkage.L1(0.5)).residuals(lambda: layer(x).mean()))
        parameter  penalty  strength  measure  max  mean  of the strength  zeros
        ---------  -------  --------  -------  ---  ----  ---------------  -----
        weight     L1       0.5       KKT        0     0                0    50%
        Solved: the weights are stationary for the loss plus the penalties, to 0.001 of the strength.
        """
        acting, reached = self._acting(), self._reached()
        steps = {name: step for each in acting for name, step in each.steps().items()}
        maximized = {name for each in acting for name in each.maximized()}
        found = residuals(self._model, self.plan, reached, steps, maximized, closure, data, tolerance)
        decays = {target.name: each.decay for each in acting for target in each.targets}
        optimizers = [each.optimizer for each in acting]
        training = training_of(self._model, self.plan, decays, optimizers, reached, declared_in(self._model).keys())
        return found.after(training)

    def state_dict(self) -> dict[str, Any]:
        """Return the updates made through each attached optimizer, in the order of attachment, and what they need.

        That is averaged gradients if `hold_zeros` is on, and references that `Toward` took from the model.
        """
        return state_of(self._attached.progress(), self.plan)

    def load_state_dict(self, state: Mapping[str, Any], *, plan: ShrinkPlan | None = None) -> None:
        """Go on where `state_dict` left off; before or after `attach`.

        Args:
            state: what `state_dict` returned, of this model or, with a plan, of the one before it was made smaller.
            plan: by which `shrink` made it smaller since: averaged gradients and references are cut by it.

        Raises:
            ValueError: the state is not one of `state_dict`, or counts more optimizers than are attached, or its
                averages or references are not those of this model; nothing is changed then.
        """
        self.plan = self._attached.go_on_from(state, plan, self.plan)

    def __repr__(self) -> str:
        return text_of(self._model, self.plan, by_regularizer(self._attached.pairs()), self._options)

    @property
    def updates(self) -> int | None:
        """The number of updates made, at which strengths are taken outside of a step; None if never attached."""
        return self._attached.updates()

    def _reached(self) -> int:
        """Return the same; if never attached, that of the optimizers that step what layers declare."""
        own = self.updates
        declared = own is None and {entry.name for entry in self.plan} <= declared_in(self._model).keys()
        return updates_by_layers(self._model) if declared else own or 0

    def _acting(self) -> list[Acting]:
        """Return what penalizes the model: in optimizers that are attached to, and what layers declare in others."""
        own = by_regularizer(self._attached.pairs())
        return [*own, *by_layers(self._model, own)]

    def _targets(self, whole: ref[Optimizer], optimizer: Optimizer) -> Found:
        """Return the penalized parameters that `optimizer` steps, found by their names in the model as it is now."""
        check_together(self._model, self.plan, optimizer)
        return targets_of(self._model, self.plan, optimizer, whole() or optimizer)
