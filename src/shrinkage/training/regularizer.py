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
from shrinkage.optimizers.hooks import hook_around, uncompiled
from shrinkage.optimizers.introspection import sign_of, unwrapped, working
from shrinkage.optimizers.parameter_state import Plan as ShrinkPlan
from shrinkage.optimizers.parameter_state import before_shrink
from shrinkage.selection.how import How
from shrinkage.selection.plan import Plan, resolve, warn_of_unpenalized
from shrinkage.selection.rules import Rules
from shrinkage.training.added_gradients import add_gradients_now
from shrinkage.training.attachment import Attachment, explicit_attachments
from shrinkage.training.checks_before_step import check_together
from shrinkage.training.global_hook import check_declared
from shrinkage.training.options import Options
from shrinkage.training.orphaned import Removable, follow
from shrinkage.training.penalized import Found, targets_of
from shrinkage.training.printed import text_of
from shrinkage.training.progress import BudgetProgress, numbers_of
from shrinkage.training.rankings import rankings_of
from shrinkage.training.regularize import declared_rules, rules_of
from shrinkage.training.saved_state import Progress, state_of
from shrinkage.training.state_hooks import Kept, leave, register_state_hooks, resume, resume_all


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
            constraints, and penalties whose zeros withstand every gradient, are not concerned.
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

    Without `attach` nothing is penalized. A new optimizer, and a copy or pickle of one, warns if it steps without it.

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
        self._model, self._options = model, Options(hold_zeros, stochastic_rounding, compile)
        declared = declared_rules(model)
        self.plan: Plan = resolve(model, rules_of(declared) if rules is None else rules, how)
        if rules is not None:
            warn_of_unpenalized(model, rules, how)
        check_declared(declared, self.plan)
        self._attachments: list[tuple[ref[Optimizer], Attachment, list[Removable]]] = []
        self._kept: list[Kept] = []  # for what is attached to next
        self._last: dict[str, Attachment] = {}  # by name of a parameter, what penalized it last
        self._iteration = 0  # reached by an optimizer that may be gone

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
            AttachmentError: the optimizer holds none of the penalized parameters, another regularizer penalizes one of
                them there, its steps are hidden from hooks (DeepSpeed's, `overlap_with_ddp`), or `compile` is True and
                there are no native kernels on a CPU.
            MetricError: a rule is proximal, and the optimizer's metric is not known.
            ValueError: what was loaded has averages or references of other shapes.
        """
        whole = unwrapped(optimizer)
        attachments = {each: self._attachment(whole) for each in working(whole) if each not in self._optimizers()}
        for each, attachment in attachments.items():
            attachment.targets(each)
        for each, attachment in attachments.items():
            self._hook(each, attachment)
        return self

    def _attachment(self, whole: Optimizer) -> Attachment:
        """Return what applies the rules in one of the optimizers that do the work of `whole`."""
        rankings = rankings_of(self.plan.budgets, kernels=self._options.compile is not False)
        return Attachment(partial(self._targets, ref(whole)), self._options, ref(whole), rankings)

    def _hook(self, optimizer: Optimizer, attachment: Attachment) -> None:
        """Let `attachment` act around the steps of `optimizer`, and go on from a state that was loaded before."""
        names = attachment.names(optimizer)
        attachment.go_on_from([self._last[name] for name in names if name in self._last])
        resume(optimizer, attachment, self, self._kept)
        self._last |= dict.fromkeys(names, attachment)
        handles: list[Removable] = [
            *attachment.budgets.hooks(optimizer),
            *hook_around(optimizer, attachment.before_step, attachment.after_step),
            *register_state_hooks(optimizer, attachment, self),
            *follow(self, self._model, optimizer, attachment),
        ]
        explicit_attachments[optimizer] = [*explicit_attachments.get(optimizer, []), attachment]
        self._attachments.append((ref(optimizer), attachment, handles))

    def detach(self) -> None:
        """Take all hooks off the optimizers; the parameters keep their values, the update counts are kept."""
        self._kept = [leave(optimizer, each, self) for optimizer, each in self._pairs()] + self._kept
        for optimizer, attachment in self._pairs():
            explicit_attachments[optimizer].remove(attachment)
        for handle in [each for _, _, handles in self._attachments for each in handles]:
            handle.remove()
        self._attachments = []

    def progress(self) -> tuple[BudgetProgress, ...]:
        """Return how far each `Budget` has come, in each attached optimizer, as of the last ranking.

        >>> import shrinkage, torch
        >>> layer = torch.nn.Linear(10, 10)
        >>> optimizer = torch.optim.SGD(layer.parameters())
        >>> print(*Regularizer(layer, shrinkage.Budget(zeros=0.9, updates=1000)).attach(optimizer).progress())
        update 0 of 1,000, waiting: 90 of 100 zeros in the end
        """
        return tuple(found for _, each in self._pairs() for found in each.budgets.progress())

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
        uncompiled(add_gradients_now)(self._pairs(), optimizer)

    def value(self) -> Tensor:
        """Return the sum of all penalties at the model's parameters now, a 0-dim tensor without a graph."""
        return value(self._model, self.plan, self.updates or 0)

    def stats(self) -> dict[str, float]:
        """Return what trainers log, as numbers; `shrinkage.diagnostics.stats` explains the keys.

        >>> import shrinkage, torch
        >>> sorted(Regularizer(torch.nn.Linear(4, 2), shrinkage.L1(0.1)).stats())[1:]
        ['shrinkage/penalty', 'shrinkage/strength/L1', 'shrinkage/zeros']
        """
        return in_logs(stats(self._model, self.plan, self.updates or 0) | numbers_of(self.progress()))

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
        pairs, reached = self._pairs(), self.updates or 0
        steps = {name: step for own, each in pairs for name, step in each.steps(own).items()}
        maximized = {t.name for own, each in pairs for t in each.targets_left(own) if sign_of(own, t.group) < 0}
        found = residuals(self._model, self.plan, reached, steps, maximized, closure, data, tolerance)
        training = training_of(self._model, self.plan, self._options.hold_zeros, (own for own, _ in pairs), reached)
        return found.after(training)

    def state_dict(self) -> dict[str, Any]:
        """Return the updates made through each attached optimizer, in the order of attachment, and what they need.

        That is averaged gradients if `hold_zeros` is on, and references that `Toward` took from the model.
        """
        return state_of(self._progress(), self.plan)

    def load_state_dict(self, state: Mapping[str, Any], *, plan: ShrinkPlan | None = None) -> None:
        """Go on where `state_dict` left off; before or after `attach`.

        Args:
            state: what `state_dict` returned, of this model or, with a plan, of the one before it was made smaller.
            plan: by which `shrink` made it smaller since: averaged gradients and references are cut by it.

        Raises:
            ValueError: the state is not one of `state_dict`, or counts more optimizers than are attached, or its
                averages or references are not those of this model; nothing is changed then.
        """
        self.plan, self._kept = resume_all(self._pairs(), self.plan, *before_shrink(state, plan))
        self._last = {name: each for own, each in self._pairs() for name in each.names(own)}

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles are not attached to anything, and go on counting when they are."""
        made = [Kept(Progress.of(each), None, frozenset(each.names(own))) for own, each in self._pairs()]
        return {**vars(self), "_attachments": [], "_last": {}, "_kept": [*made, *self._kept]}

    def __repr__(self) -> str:
        return text_of(self._model, self.plan, self._pairs(), self._options)

    def _progress(self) -> list[Progress]:
        return [Progress.of(each) for _, each in self._pairs()] + [each.progress for each in self._kept]

    @property
    def updates(self) -> int | None:
        """The number of updates made, at which strengths are taken outside of a step; None if never attached."""
        made = [each.updates.count() for optimizer, each in self._pairs() if each.concerned_left(optimizer)]
        reached = [*made, *(each.progress.updates for each in self._kept), self._iteration][0]
        return reached if self._last or self._kept else None

    def _optimizers(self) -> list[Optimizer]:
        """Return the optimizers that are attached to, after forgetting those that are gone."""
        self._iteration = [self._iteration, *(each.updates.count() for _, each, _ in self._attachments)][-1]
        self._attachments = [held for held in self._attachments if held[0]() is not None]
        return [optimizer for held, _, _ in self._attachments if (optimizer := held()) is not None]

    def _pairs(self) -> list[tuple[Optimizer, Attachment]]:
        return list(zip(self._optimizers(), (attachment for _, attachment, _ in self._attachments), strict=True))

    def _targets(self, whole: ref[Optimizer], optimizer: Optimizer) -> Found:
        """Return the penalized parameters that `optimizer` steps, found by their names in the model as it is now."""
        check_together(self._model, self.plan, optimizer)
        return targets_of(self._model, self.plan, optimizer, whole() or optimizer)
