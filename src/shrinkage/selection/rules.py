"""Rules: a selector, a penalty, and how it enters the step."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from functools import reduce
from operator import add
from typing import Protocol

from torch import nn

from shrinkage.errors import SelectionError, shown
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.budget import NO_STRENGTH, Budget
from shrinkage.penalties.membership import coupled_of
from shrinkage.penalties.value_objects import Value
from shrinkage.selection.default_selector import Weights
from shrinkage.selection.how import How, check_every, check_explicit, check_how
from shrinkage.selection.selectors import AnySelector, Named, Selector, check_selector, selector_text


@dataclass(frozen=True, eq=False, repr=False)
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
            before the step) or "decoupled" (times the learning rate only, in the units of AdamW's `weight_decay`).
        every: apply a costly proximal operator (`Nuclear`, groups in the metric of Adam) at every so many steps only,
            with the sum of the steps since the last. Solutions of the stated problem stay solutions as far as gradients
            do not change in between: at one, gradients move the weights away for `every` - 1 steps, and the proximal
            operator brings them back. So there are exact zeros right after it, and none in between.

    Raises:
        TypeError: the penalty is not a penalty, the selector not a selector.
        SelectionError: the selector can be called and is no plain function.
        ValueError: `how` is none of the three, or "gradient" for a penalty that has no derivative to follow; `every` is
            not a whole number >= 1, or more than 1 for a rule that acts through a derivative.

    >>> from shrinkage import L1
    >>> Rule(L1(1e-4), "*.weight")
    Rule(penalty=L1(strength=0.0001), parameters='*.weight', how='proximal', every=1)
    """

    penalty: Penalty | Budget | None
    parameters: Selector | None = None
    how: How = "proximal"
    _: KW_ONLY
    every: int = 1

    def __post_init__(self) -> None:
        check_penalty(self.penalty)
        check_how(self.how)
        if isinstance(self.penalty, Budget):
            check_plain(self.how, self.every)
        else:
            check_explicit(self.penalty, self.how)
            check_every(self.every, self.how, self.penalty is not None and self.penalty.smooth)
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


def check_same_rule(name: str, other_name: str, rule: Penalizes, other: Penalizes, now: str = "") -> None:
    """Raise `SelectionError` if a tied parameter, which has two names, is penalized otherwise under each of them."""
    same = rule.penalty is other.penalty or (not isinstance(rule.penalty, Budget) and rule.penalty == other.penalty)
    if not same or (rule.how, rule.every) != (other.how, other.every):
        raise SelectionError(
            f"{name!r} and {other_name!r} are one tied parameter{now}, but two rules clash on it: "
            f"{rule.penalty} ({rule.how}) and {other.penalty} ({other.how}); give both names one rule"
        )


Rules = Penalty | Budget | Rule | Mapping[Selector, Penalty | Budget | None] | Sequence[Rule]


def check_plain(how: str, every: int) -> None:
    """Raise `ValueError` if a rule with a budget says how, or how often, a penalty is applied."""
    if how != "proximal" or every != 1:
        given = f'how="{how}"' if how != "proximal" else f"every={every}"
        raise ValueError(f"{given} does not go with a Budget: {NO_STRENGTH}")


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
                f"got {shown(rules)}"
            )
    if not found:
        raise SelectionError("there are no rules: give at least one, such as {nn.Linear: L1(1e-4)}")
    return tuple(found)


def how_of(penalty: Penalty | Budget | None, how: How) -> How:
    """Return how `penalty` is applied if it comes without a rule, where others are applied as `how` says."""
    return "proximal" if isinstance(penalty, Budget) else how
