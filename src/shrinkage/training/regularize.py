"""Declarations that live on the layer: `regularize(layer, penalty)`, and no other line in the training loop.

The layer keeps its declarations among its attributes, so that they travel with `deepcopy`, `pickle` and `model.to`, and
stand in neither `state_dict` nor `parameters()`.
"""

import glob
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeVar

from torch import Tensor, nn

from shrinkage.errors import GroupError, SelectionError, shown
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.budget import Budget
from shrinkage.penalties.controlled import has_control
from shrinkage.penalties.toward import Toward
from shrinkage.private import compiled_from
from shrinkage.selection.declaration import ATTRIBUTE, Declaration
from shrinkage.selection.first_match import nearest
from shrinkage.selection.how import How
from shrinkage.selection.matrices import weights_of
from shrinkage.selection.named_parameters import named_parameters
from shrinkage.selection.plan import Plan, resolve
from shrinkage.selection.rules import Rule
from shrinkage.training.global_hook import check_same_declaration, targets_of
from shrinkage.training.options import Options

LayerType = TypeVar("LayerType", bound=nn.Module)


def regularize(
    layer: LayerType,
    penalty: Penalty | None,
    *,
    parameter: str | None = None,
    how: How = "proximal",
    hold_zeros: float | None = None,
) -> LayerType:
    """Penalize a layer's weights in each step of the optimizer that holds them, and return the layer.

    minimizes loss + penalty(layer.weight), with nothing to add to the training loop. The layer stays what it was: its
    type, its `state_dict` keys, and its behaviour under `deepcopy`, `pickle`, `to` and `torch.compile`.

    What penalizes is a step of a `torch.optim` optimizer that holds the layer's own parameter. Tensors that are stacked
    from several layers (`torch.func.stack_module_state`), given to `functional_call`, or updated by hand are not
    penalized; `report(model)` names such layers once optimizers made ten steps. Stacked tensors become parameters of a
    module, which declares, and of which the optimizer is made:
    `nn.ParameterDict({name.replace(".", "_"): nn.Parameter(v.detach()) for name, v in params.items()})`.

    Args:
        layer: any module.
        penalty: what is penalized; None takes the declaration for `parameter` back.
        parameter: name of the parameter in the layer; a glob such as "weight_hh*" or, for a whole block, "*.weight".
            Left out, the layer's weights: `weight`, or the matrices of a recurrent or an attention layer.
        how: "proximal" (exact zeros), "gradient" or "decoupled"; see `Rule`.
        hold_zeros: keep exact zeros from leaving with the noise of minibatches, by gradients averaged with this decay;
            see `Regularizer`.

    Raises:
        SelectionError: the layer has no such parameter, or penalizes it already.
        GroupError: the parameter does not fall into the groups of the penalty.
        ParameterError: the parameter is not floating point, or is computed by a parametrization.
        ValueError: a reference is to be taken from the model, which has to be saved: use `Regularizer`; or `hold_zeros`
            is not between 0 and 1.
        MetricError: at the first step, if `how="proximal"` and the optimizer's metric is not known.

    A strength may be a schedule. It counts the updates of the optimizer since it held a parameter declared so; copies
    of the layer, and its next optimizer, count on. The count and averaged gradients are in the optimizer's
    `state_dict`. To resume, build the optimizer from the same parameters in the same order.

    A `Regularizer` that penalizes the same parameter takes the declaration's place while it is attached; one that
    leaves the parameter alone leaves the declaration in force.

    >>> import shrinkage, torch
    >>> layer = regularize(torch.nn.Linear(4, 2), shrinkage.L1(0.1))
    >>> layer
    Linear(in_features=4, out_features=2, bias=True)
    """
    if not isinstance(layer, nn.Module):
        raise TypeError(f"expected a module such as nn.Linear(64, 10), got {type(layer).__name__}")
    inside = compiled_from(layer)
    owner = layer if inside is None else inside
    known = vars(owner).get(ATTRIBUTE)
    rules: tuple[Rule, ...] = () if known is None else known.rules
    globs = own_weights(owner) if parameter is None else (parameter,)
    check_stateless(penalty)
    Options(hold_zeros=hold_zeros)
    decays = {} if known is None else dict(known.decays)
    if penalty is None:
        rules = without(rules, globs, owner)
    else:
        declared = [Rule(with_own_reference(penalty), glob, how) for glob in globs]
        for rule in declared:
            check_matches(owner, rule)
            check_declarations(owner, rule)
        rules = (*rules, *declared)
        decays |= {} if hold_zeros is None else dict.fromkeys(globs, hold_zeros)
    kept = {str(rule.parameters) for rule in rules}
    declaration = Declaration(owner, rules, {name: decay for name, decay in decays.items() if name in kept})
    if known is not None:
        declaration.reached |= known.reached
        known.taken_back(owner)
    vars(owner)[ATTRIBUTE] = declaration
    return layer


def with_own_reference(penalty: Penalty) -> Penalty:
    """Return `penalty` with a reference that does not move, or raise `ValueError` if it takes one from the model."""
    if not isinstance(penalty, Toward) or isinstance(penalty.reference, Tensor):
        return penalty
    if penalty.reference is None:
        raise ValueError(
            f"{penalty}: a reference that is taken from the model has to be saved with a checkpoint; use "
            "Regularizer(model, {...}), whose state_dict() holds it, or give a tensor or a state_dict as reference"
        )
    # A state_dict holds the very parameters that are going to move.
    return replace(penalty, reference={name: value.detach().clone() for name, value in penalty.reference.items()})


def check_stateless(penalty: object) -> None:
    """Raise `TypeError` if `penalty` is a budget, or has a strength that finds itself."""
    use = "use Regularizer(model, {...}), whose state_dict() holds"
    if isinstance(penalty, Budget):
        raise TypeError(
            f"{penalty} ranks weights of a whole model, at updates that have to be saved with a checkpoint; {use} them"
        )
    if isinstance(penalty, Penalty) and has_control(penalty):
        raise TypeError(
            f"{penalty} has a strength that finds itself, from numbers that have to be saved with a checkpoint; {use} "
            "them"
        )


def own_weights(layer: nn.Module) -> tuple[str, ...]:
    """Return globs on the names of the weights of `layer` itself."""
    return weights_of(layer, (each.attribute for each in named_parameters(layer) if each.module is layer))


def without(rules: Sequence[Rule], parameters: Sequence[str], layer: nn.Module) -> tuple[Rule, ...]:
    """Return `rules` without those for `parameters`."""
    kept = tuple(rule for rule in rules if rule.parameters not in parameters)
    if len(kept) == len(rules):
        declared = ", ".join(repr(rule.parameters) for rule in rules) or "nothing"
        sought = " and ".join(map(repr, parameters))
        raise SelectionError(
            f"{type(layer).__name__} declares no penalty for {sought} to take back (it declares {declared})"
        )
    return kept


def check_matches(layer: nn.Module, rule: Rule) -> None:
    """Raise `SelectionError` if `layer` has no parameter that `rule` selects."""
    names = [candidate.name for candidate in named_parameters(layer)]
    if not any(fnmatchcase(name, str(rule.parameters)) for name in names):
        raise SelectionError(
            f"this {type(layer).__name__} has no parameter {shown(rule.parameters)}; nearest names: "
            f"{nearest(str(rule.parameters), names)}; regularize a layer inside of it, or name parameters with a glob "
            'such as parameter="*.weight"'
        )


def check_declarations(layer: nn.Module, rule: Rule) -> None:
    """Raise if `rule` cannot be applied, or penalizes what `layer` or a layer inside of it penalizes already."""
    declared = declared_rules(layer)
    for entry in resolve(layer, rule):
        if entry.name in declared:
            other = declared[entry.name].rule
            raise SelectionError(
                f"{entry.name!r} of this {type(layer).__name__} is penalized already: {other.penalty} ({other.how}); "
                f"remove that with regularize(layer, None, parameter={other.parameters!r}) first"
                f"{together(other.penalty, rule.penalty)}"
            )


def together(one: Penalty | Budget | None, other: Penalty | Budget | None) -> str:
    """Return the end of a message about two penalties on one parameter: how to penalize both, if that can be done."""
    try:
        return f", or penalize both at once with {one + other}" if one and other else ""
    except (TypeError, GroupError) as reason:
        return f". {reason}"


class DeclaredRule(NamedTuple):
    """What a layer declares for one parameter, and the decay of the averages that hold its zeros."""

    rule: Rule
    hold_zeros: float | None


def declared_rules(model: nn.Module) -> dict[str, DeclaredRule]:
    """Return what the layers of `model` declare, by the name of the parameter."""
    names = {id(c.parameter): c.name for c in reversed(list(named_parameters(model))) if c.parameter is not None}
    found: dict[str, DeclaredRule] = {}
    for module in model.modules():
        declaration: Declaration | None = vars(module).get(ATTRIBUTE)
        if declaration is None:
            continue
        for rule, target in targets_of(declaration, {}):
            name = names[id(target.parameter)]
            decay = declaration.decays.get(str(rule.parameters))
            bound = DeclaredRule(replace(rule, penalty=target.penalty), decay)
            check_same_declaration(name, found.setdefault(name, bound).rule, bound.rule)
    return found


def check_declared(declared: Mapping[str, DeclaredRule], plan: Plan) -> None:
    """Raise `SelectionError` unless `plan` penalizes what layers declared, by name, in the same way."""
    for entry in plan:
        for name in {entry.name, *entry.aliases} & declared.keys():
            check_same_declaration(name, declared[name].rule, entry)
    for planned in plan.budgets:
        for name in declared.keys() & planned.names:
            penalty = declared[name].rule.penalty
            raise SelectionError(
                f"two rules clash on {name!r}: its layer declares {penalty} with regularize(), another rule gives it "
                f"{planned.budget}; keep one of them"
            )


def decays_of(declared: Mapping[str, DeclaredRule]) -> set[float | None]:
    """Return the decays of the averages that hold zeros of what is `declared`; None where none do."""
    return {each.hold_zeros for each in declared.values()}


def check_one_decay(decays: Set[float | None]) -> None:
    """Raise `SelectionError` if layers hold their zeros in different ways: a regularizer has one for all."""
    if len(decays) > 1:
        shown_decays = " and ".join(sorted(f"hold_zeros={decay}" for decay in decays))
        raise SelectionError(
            f"the layers declare {shown_decays}, and a Regularizer has one for all: give hold_zeros=, or attach none, "
            "since declared layers are penalized without it"
        )


def rules_of(declared: Mapping[str, DeclaredRule]) -> list[Rule]:
    """Return the declarations of a model's layers as rules for the model."""
    if not declared:
        raise SelectionError(
            "there are no rules, and no layer of the model declares any with regularize(); "
            "give at least one, such as {nn.Linear: L1(1e-4)}"
        )
    return [replace(each.rule, parameters=glob.escape(name)) for name, each in declared.items()]
