"""Rules for a refit: what is zero stays zero, and what is left is trained without the penalty that chose it."""

from dataclasses import replace

from shrinkage.penalties.base import Penalty
from shrinkage.penalties.box import Box
from shrinkage.penalties.budget import Budget
from shrinkage.penalties.constraints import Constraint
from shrinkage.penalties.nonnegative import NonNegative
from shrinkage.selection.how import How
from shrinkage.selection.rules import Rule, Rules, as_rules
from shrinkage.training.freeze import held


def refit_rules(rules: Rules, how: How) -> list[Rule]:
    """Return rules by which zeros, of weights or of the groups of a penalty, stay, and nothing draws to zero.

    Smooth penalties, which choose nothing, act as they did, and so do constraints.
    """
    return [refit_rule(rule) for rule in as_rules(rules, how)]


def refit_rule(rule: Rule) -> Rule:
    """Return what follows from one rule."""
    penalty = rule.penalty
    if isinstance(penalty, Budget):
        return held(rule.parameters, penalty.groups)
    if penalty is None or penalty.smooth:
        return rule
    return replace(rule, every=1, until=0, after=constraint_of(penalty))


def constraint_of(penalty: Penalty) -> Penalty | None:
    """Return the set that a penalty keeps weights in, if it does."""
    if isinstance(penalty, Box | NonNegative):
        return replace(penalty, penalty=None)
    return penalty if isinstance(penalty, Constraint) else None
