"""What strength? A first one for each layer, and others around it to try."""

import glob
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, overload

from torch import nn

from shrinkage.diagnostics.evaluation import penalized_parameters
from shrinkage.diagnostics.loss_gradients import Closure, check_not_sharded, mean_gradients
from shrinkage.diagnostics.strength_max import least_strength
from shrinkage.errors import shown
from shrinkage.execution.at_origin import at_origin
from shrinkage.penalties.base import Penalty, strengths_of
from shrinkage.penalties.grouped import Grouped
from shrinkage.penalties.membership import coupled_of
from shrinkage.penalties.schedules import check_positive, fixed
from shrinkage.penalties.sparse_group import SparseGroupLasso
from shrinkage.penalties.value_objects import value_class
from shrinkage.selection.coupled_rules import block_text
from shrinkage.selection.plan import Entry, resolve, selected
from shrinkage.selection.rules import Rule, Rules, as_rules
from shrinkage.tables import Table, in_html

SHARE = 1 / 16
FACTORS = (1 / 16, 1 / 4, 1.0, 4.0, 16.0)


class LayerStrength(NamedTuple):
    """The largest useful strength of one layer, or of layers that share groups, with the rest of the model as it is."""

    names: tuple[str, ...]
    penalty: Penalty
    strength_max: float
    rule: Rule
    selectors: tuple[str | None, ...]

    def at(self, share: float) -> tuple[Rule, ...]:
        """Return the rules of this layer at a share of `strength_max`, one for each name of a parameter."""
        penalty = with_strength(self.penalty, share * self.strength_max)
        return tuple(replace(self.rule, penalty=penalty, parameters=selector) for selector in self.selectors)


@value_class
class SuggestedStrengths(Sequence[Rule]):
    """Rules with the suggested strengths, for a `Regularizer`. Prints as a table with weaker and stronger ones.

    Args:
        layers: the suggestion for each layer.
        others: rules that have no strength, as they were: None, constraints, budgets.
        share: of each layer's `strength_max` that is suggested.
    """

    layers: tuple[LayerStrength, ...]
    others: tuple[Rule, ...]
    share: float

    def times(self, factor: float) -> tuple[Rule, ...]:
        """Return the rules with `factor` times the suggested strengths.

        >>> from shrinkage import L1
        >>> layer = nn.Linear(1, 1, bias=False)
        >>> suggest_strengths(layer, lambda: 16.0 * layer.weight.sum(), L1(1.0)).times(0.25)[0].penalty
        L1(strength=0.25)
        """
        check_positive("times", "factor", factor)
        suggested = (rule for layer in self.layers for rule in layer.at(factor * self.share))
        return (*suggested, *self.others)

    @property
    def factors(self) -> tuple[float, ...]:
        """Five multiples of the suggested strengths that are worth a try, from weak to strong."""
        return FACTORS

    @overload
    def __getitem__(self, index: int) -> Rule: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Rule]: ...

    def __getitem__(self, index: int | slice) -> Rule | Sequence[Rule]:
        return self.times(1.0)[index]

    def __len__(self) -> int:
        return len(self.times(1.0))

    def __repr__(self) -> str:
        return "\n".join(map(str, self._parts()))

    def _repr_html_(self) -> str:
        return in_html(self._parts())

    def _parts(self) -> list[str | Table]:
        header = ["parameter", "penalty", "strength_max", *map(factor_text, self.factors)]
        return [
            Table(header, [self._cells(layer) for layer in self.layers], range(2, len(header))),
            "The suggestion is the column x 1. Train with each column, which is .times(factor), and keep the "
            "largest strengths whose loss on validation data is good enough.",
        ]

    def _cells(self, layer: LayerStrength) -> list[str]:
        strengths = (layer.strength_max, *(factor * self.share * layer.strength_max for factor in self.factors))
        return [
            block_text(layer.names),
            layer.penalty.describe(None).penalty,
            *(f"{strength:.2g}" for strength in strengths),
        ]


def suggest_strengths(
    model: nn.Module, closure: Closure, rules: Rules, data: Iterable[Any] | None = None, *, share: float = SHARE
) -> SuggestedStrengths:
    """Return `rules` with a strength for each layer to begin with, and print others to try around it.

    strength of a layer = share * max over its groups of the dual norm of the gradient, where the layer alone is zero

    That is `share` times `strength_max`, asked for one layer at a time with the rest of the model as it is. What is
    returned is a sequence of `Rule`, one for each layer, for `Regularizer(model, ...)`; `print` shows five columns of
    strengths, and `.times(factor)` gives the rules of a column. Where several things add up to a strength, as in
    `SparseGroupLasso`, they keep their proportion; half squares (`l2`) stay as they are.

    Args:
        model: as training begins with it. It is unchanged when this returns, as is what `closure` changes: see
            `Regularizer.residuals`.
        closure: returns the loss of all training data, or of one batch of `data`, as in `Regularizer.residuals`.
        rules: as for a `Regularizer`; the strengths in them play no part. Those without a strength stay: None,
            constraints, budgets.
        data: batches, gone through once for each layer: a list or a loader, not an iterator.
        share: of `strength_max`, a number > 0.

    Raises:
        SelectionError, GroupError, ParameterError: as in `Regularizer`.
        ValueError: a penalty has no such strength (`L2` makes no zeros, `L0` keeps every zero), a strength is a
            schedule, a rule is in units of weight decay (`how="decoupled"`), no gradient reaches a layer, or no rule
            has a strength; the message says what to do.

    Reference: Friedman, Hastie and Tibshirani (2010), "Regularization paths for generalized linear models via
    coordinate descent", section 2.5, for strengths as shares of the largest.
    A heuristic for networks that are trained from their initialization: other layers go on to train, and with them
    what a strength does.

    >>> import torch
    >>> from shrinkage import L1
    >>> layer = nn.Linear(2, 1, bias=False)
    >>> x = torch.tensor([[1.0, 0.0], [0.0, 0.5]])
    >>> print(suggest_strengths(layer, lambda: layer(x).sum(), L1(1.0)))  # doctest: +ELLIPSIS
    parameter  penalty  strength_max  x 1/16  x 1/4    x 1   x 4  x 16
    ---------  -------  ------------  ------  -----  -----  ----  ----
    weight     L1                  1  0.0039  0.016  0.062  0.25     1
    The suggestion is the column x 1. ...
    """
    check_positive("suggest_strengths", "share", share)
    given = as_rules(rules, "proximal")
    for rule in given:
        check_suggestible(rule)
    plan = resolve(model, given)
    winners = {candidate.name: rule for candidate, rule in selected(model, given)}
    found = penalized_parameters(model, plan)
    check_not_sharded(found)
    trained = {entry.name: parameter for entry, parameter in found if parameter.requires_grad}
    layers, others = [], []
    for entries in plan.families():
        held = {entry.name: trained[entry.name] for entry in entries if entry.name in trained}
        rule = winners[entries[0].name]
        if has_no_strength(rule):
            continue
        selectors = [glob.escape(name) for entry in entries for name in (entry.name, *entry.aliases)]
        if held:
            strength = layer_strength(model, closure, entries[0].penalty, held, data)
            penalty, coupled = penalty_of(rule, entries), coupled_of(rule.penalty) is not None
            layers.append(LayerStrength(tuple(held), penalty, strength, rule, (None,) if coupled else tuple(selectors)))
        else:
            others += [Rule(None, selector) for selector in selectors]
    if not layers:
        raise ValueError(f"no rule penalizes, with a strength, a parameter that takes a gradient: {shown(rules)}")
    return SuggestedStrengths(tuple(layers), (*others, *filter(has_no_strength, given)), share)


def layer_strength(
    model: nn.Module, closure: Closure, penalty: Penalty, held: Mapping[str, nn.Parameter], data: Iterable[Any] | None
) -> float:
    """Return the smallest strength of `penalty` at which the parameters `held` can be zero, all others unchanged."""
    with at_origin([(penalty, parameter) for parameter in held.values()]):
        grads = mean_gradients(model, list(held.values()), closure, data)
    name = next(iter(held))
    try:
        strength = least_strength(penalty, dict(zip(held, grads, strict=True)))
    except ValueError as error:
        raise ValueError(
            f"{name!r}: {error}; ask without it, with None in place of this penalty, and choose its strength by hand"
        ) from None
    if not strength:
        raise ValueError(
            f"no gradient reaches {name!r} where what {penalty} penalizes is zero, so that every strength leaves it "
            "there; train a few steps first, or ask with None in place of this penalty"
        )
    return strength


def check_suggestible(rule: Rule) -> None:
    """Raise `ValueError` if a number cannot take the place of the strength in `rule`."""
    penalty = rule.penalty
    if has_no_strength(rule) or not isinstance(penalty, Penalty):
        return
    if penalty.scheduled:
        raise ValueError(
            f"{penalty} has a schedule, and what is suggested is a number: ask with a number in its place, and make a "
            "schedule up to what comes back"
        )
    if rule.how == "decoupled":
        raise ValueError(
            f'the strength of {penalty} with how="decoupled" is in units of weight decay, of which gradients of the '
            'loss say nothing: ask for the same rule with how="proximal", or choose it as weight decay is chosen'
        )
    if rule.after is not None:
        raise ValueError(
            f"after={rule.after} has a strength of its own: ask for the rule without after=, and choose that as a part "
            "of what comes back"
        )


def has_no_strength(rule: Rule) -> bool:
    """Return whether `rule` stays as it is: it leaves alone, keeps weights in a set, or ranks them."""
    return not isinstance(rule.penalty, Penalty) or rule.penalty.strengthless


def with_strength(penalty: Penalty, strength: float) -> Penalty:
    """Return `penalty` with its strength set in the unit in which `strength_max` gives it.

    >>> from shrinkage import L1, ElasticNet, Rows
    >>> with_strength(ElasticNet(1.0, 0.5), 0.1), with_strength(SparseGroupLasso(1.0, 3.0, Rows()), 0.4).group
    (ElasticNet(l1=0.1, l2=0.5), 0.30000000000000004)
    """
    if isinstance(penalty, SparseGroupLasso):
        factor = strength / (fixed(penalty.l1) + fixed(penalty.group))
        return penalty.scaled(factor)
    inner = {name: value for name, value in penalty.arguments().items() if isinstance(value, Penalty)}
    if inner:
        return replace(penalty, **{name: with_strength(value, strength) for name, value in inner.items()})
    first, *_ = strengths_of(type(penalty))
    return replace(penalty, **{first: strength})


def penalty_of(rule: Rule, entries: Sequence[Entry]) -> Penalty:
    """Return the penalty of `rule`; of groups that span parameters, those of `entries` alone."""
    penalty, coupled = rule.penalty, coupled_of(rule.penalty)
    if not isinstance(penalty, Penalty):
        raise TypeError(f"expected a rule with a penalty, got {rule}")
    if coupled is None or not isinstance(penalty, Grouped):
        return penalty
    own = {entry.name for entry in entries}
    members = [member for member in coupled.members if member.parameter in own]
    return replace(penalty, groups=replace(coupled, members=members, sizes=(), kinds=None))


def factor_text(factor: float) -> str:
    """Return a column's name.

    >>> factor_text(0.25), factor_text(4.0)
    ('x 1/4', 'x 4')
    """
    return f"x 1/{1 / factor:g}" if factor < 1 else f"x {factor:g}"
