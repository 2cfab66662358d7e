"""Rules: a selector, a penalty, and how it enters the step."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY
from functools import reduce
from operator import add
from typing import Protocol

from torch import nn

from shrinkage.errors import SelectionError, shown
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.budget import NO_STRENGTH, Budget
from shrinkage.penalties.membership import coupled_of
from shrinkage.penalties.toward import Toward
from shrinkage.penalties.value_objects import Value, value_class
from shrinkage.selection.default_selector import Weights
from shrinkage.selection.how import How, check_every, check_explicit, check_how
from shrinkage.selection.selectors import AnySelector, Named, Selector, check_selector, groups_hint, selector_text


@value_class
class Rule(Value):
    """One penalty, the parameters it penalizes, and how it enters the optimizer's step.

    Args:
        penalty: the penalty, or a `Budget`; None leaves the parameters alone.
        parameters: a selector: a glob on the dotted name ("blocks.*.weight", which takes norms and embeddings too), a
            module class or a layer of the model (its weights: `weight`; the matrices of recurrent layers; those of
            `MultiheadAttention` and its `out_proj.weight`), a pair of one of these and a glob on the parameter's own
            name such as `(nn.LSTM, "weight_hh*")`, or a function of (name, module, parameter) that returns a bool. None
            selects such weights, with two dimensions or more, outside of norm and embedding layers.
        how: "proximal" (exact zeros, in the optimizer's own metric), "gradient" (adds the derivative to the gradient
            before the step), "decoupled" (times the learning rate only, in the units of AdamW's `weight_decay`), or
            "cautious" (decoupled decay by `L2`, of the weights alone that the optimizer moves towards 0 in this step).
        every: apply a costly proximal operator (`Nuclear`, groups in the metric of Adam) at every so many steps only,
            with the sum of the steps since the last. Solutions of the stated problem stay solutions as far as gradients
            do not change in between: at one, gradients move the weights away for `every` - 1 steps, and the proximal
            operator brings them back. So there are exact zeros right after it, and none in between.
        until: from this update on, the first being 0, nothing is penalized, and what is zero stays exactly zero: single
            weights, or the groups of the penalty. What is left is trained as it is without a penalty. Nothing has to be
            saved for it but the update count: the zeros in the weights are the mask.
        after: what is penalized from then on in place of `penalty`, while zeros stay. With `L1` of a smaller strength
            this is the relaxed lasso.

    Raises:
        TypeError: the penalty is not a penalty, the selector not a selector.
        SelectionError: the selector can be called and is no plain function.
        ValueError: `how` is none of the four, or "gradient" for a penalty that has no derivative to follow; `every` is
            not a whole number >= 1, or more than 1 for a rule that acts through a derivative; `until` is no update, or
            no multiple of `every`; `after` comes without `until`.

    Cautious decay minimizes no sum of the loss and a penalty: at a minimum of the loss it still decays.

    Reference: Meinshausen (2007), "Relaxed lasso", eq. 1, for `until` with `after`; Chen et al. (2025), "Cautious
    weight decay" (arXiv:2510.12402), for "cautious".

    >>> from shrinkage import L1
    >>> Rule(L1(1e-4), "*.weight")
    Rule(penalty=L1(strength=0.0001), parameters='*.weight', how='proximal', every=1, until=None, after=None)
    """

    penalty: Penalty | Budget | None
    parameters: Selector | None = None
    how: How = "proximal"
    _: KW_ONLY
    every: int = 1
    until: int | None = None
    after: Penalty | None = None

    def __post_init__(self) -> None:
        check_penalty(self.penalty)
        check_how(self.how)
        if isinstance(self.penalty, Budget):
            check_plain(self)
        else:
            check_explicit(self.penalty, self.how)
            check_every(self.every, self.how, self.penalty is not None and self.penalty.smooth)
            check_until(self, self.penalty)
        if self.parameters is not None:
            check_selector(self.parameters)
            if coupled_of(self.penalty) is not None:
                raise ValueError(
                    f"the groups of {self.penalty} name their parameters: leave the selector "
                    f"{selector_text(self.parameters)} out"
                )

    def selector(self, model: nn.Module) -> AnySelector:
        """Return which parameters of `model` the rule is about."""
        coupled = coupled_of(self.penalty)
        if coupled is not None:
            return Named(coupled.names)
        return Weights.of(model) if self.parameters is None else self.parameters

    @property
    def label(self) -> str:
        """What logs call the rule: its selector, or the kind of its penalty where it has none.

        >>> from shrinkage import L1
        >>> Rule(L1(1e-4), "*.weight").label, Rule(L1(1e-4), nn.Linear).label, Rule(L1(1e-4)).label
        ('*.weight', 'Linear', 'L1')
        """
        if self.parameters is None:
            return self.penalty.describe(None).penalty if isinstance(self.penalty, Penalty) else "Budget"
        return self.parameters if isinstance(self.parameters, str) else selector_text(self.parameters)


def check_until(rule: Rule, penalty: Penalty | None) -> None:
    """Raise unless a second stage of `rule` can follow the one with `penalty`."""
    until, after = rule.until, rule.after
    if isinstance(after, Budget):
        raise TypeError(f"after={after} is no penalty: a Budget stands alone in a rule, from the start")
    check_penalty(after, "after: ")
    if until is None:
        if after is not None:
            raise ValueError(f"after={after} needs until=, the update from which it is penalized")
        return
    if not isinstance(until, int) or isinstance(until, bool) or until < 0:
        raise ValueError(f"until must be an update, a whole number >= 0, or None, got {shown(until)}")
    if penalty is None:
        raise ValueError(
            f"until={until} needs a penalty that makes zeros; freeze_zeros(model, {{selector: None}}) holds those that "
            "are there"
        )
    if until % rule.every:
        raise ValueError(
            f"until={until} is no multiple of every={rule.every}: there are zeros right after a proximal operator, and "
            "none in between"
        )
    if after is not None:
        check_explicit(after, rule.how)
        check_every(rule.every, rule.how, after.smooth)
        if coupled_of(after) not in (None, coupled_of(penalty)):
            raise ValueError(f"the groups of after={after} span parameters: {penalty} needs the same groups")
        if isinstance(after, Toward) and after.reference is None:
            raise ValueError(f"after={after} takes its reference from the model: give it a tensor or a state_dict")


class Penalizes(Protocol):
    """A rule, or what follows from one: a penalty, and how it enters the step at every so many steps."""

    @property
    def penalty(self) -> Penalty | Budget | None:
        """What is penalized."""

    @property
    def how(self) -> How:
        """How the penalty enters the step."""

    @property
    def every(self) -> int:
        """The number of steps from one proximal operator to the next."""

    @property
    def until(self) -> int | None:
        """The update from which zeros stay."""

    @property
    def after(self) -> Penalty | None:
        """What is penalized from then on."""


def check_same_rule(name: str, other_name: str, rule: Penalizes, other: Penalizes, now: str = "") -> None:
    """Raise `SelectionError` if a tied parameter, which has two names, is penalized otherwise under each of them."""
    if terms(rule) != terms(other):
        raise SelectionError(
            f"{name!r} and {other_name!r} are one tied parameter{now}, but two rules clash on it: "
            f"{rule.penalty} ({rule.how}) and {other.penalty} ({other.how}); give both names one rule"
        )


def terms(rule: Penalizes) -> tuple[object, ...]:
    """Return what is compared of two rules; tensors that are the same object are equal without a look at them."""
    penalty = id(rule.penalty) if isinstance(rule.penalty, Budget) else rule.penalty
    return penalty, rule.how, rule.every, rule.until, rule.after


Rules = Penalty | Budget | Rule | Mapping[Selector, Penalty | Budget | None] | Sequence[Rule]


def check_plain(rule: Rule) -> None:
    """Raise `ValueError` if a rule with a budget says how, how often or how long a penalty is applied."""
    given = {"how": rule.how, "every": rule.every, "until": rule.until, "after": rule.after}
    for name, value in given.items():
        if value not in ("proximal", 1, None):
            what = f'{name}="{value}"' if isinstance(value, str) else f"{name}={value}"
            raise ValueError(f"{what} does not go with a Budget: {NO_STRENGTH}")


def check_penalty(penalty: object, where: str = "") -> None:
    """Raise `TypeError` unless `penalty` is a penalty or None; `where` begins the message."""
    if isinstance(penalty, list | tuple) and penalty and all(isinstance(each, Penalty) for each in penalty):
        both = reduce(add, penalty)  # raises, and says why, if there is no such penalty
        raise TypeError(f"{where}several penalties on one parameter are penalized as their sum: write {both}")
    if not (penalty is None or isinstance(penalty, Penalty | Budget)):
        raise TypeError(f"{where}expected a penalty such as L1(1e-4), or None to leave alone, got {shown(penalty)}")


def as_rules(rules: Rules, how: How) -> tuple[Rule, ...]:
    """Return `rules` as a tuple of `Rule`; penalties that come without one are applied as `how` says."""
    check_how(how)
    if isinstance(rules, Penalty | Budget):
        return (Rule(rules, how=how_of(rules, how)),)
    if isinstance(rules, Mapping):
        for selector, penalty in rules.items():
            check_penalty(penalty, f"rule {selector_text(selector)}: ")
        found = [Rule(penalty, selector, how_of(penalty, how)) for selector, penalty in rules.items()]
    else:
        found = [rules] if isinstance(rules, Rule) else list(rules) if isinstance(rules, Sequence) else []
        if not all(isinstance(rule, Rule) for rule in found) or not isinstance(rules, Rule | Sequence):
            raise TypeError(
                "rules are a penalty, a mapping from selectors to penalties, a Rule or a sequence of Rule, "
                f"got {shown(rules)}{groups_hint(rules)}"
            )
    if not found:
        raise SelectionError("there are no rules: give at least one, such as {nn.Linear: L1(1e-4)}")
    return tuple(found)


def how_of(penalty: Penalty | Budget | None, how: How) -> How:
    """Return how `penalty` is applied if it comes without a rule, where others are applied as `how` says."""
    return "proximal" if isinstance(penalty, Budget) else how
