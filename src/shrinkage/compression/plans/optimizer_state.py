"""An optimizer continues with the smaller model: its parameters are replaced, and its state is cut."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adagrad, Optimizer
from torch.utils._pytree import tree_leaves

from shrinkage.compression.copying.copies import plain
from shrinkage.compression.plans.normed_weights import factors_of_lengths
from shrinkage.compression.plans.shrink_plan import ShrinkPlan
from shrinkage.compression.plans.tensors import AS_IT_IS, Shape, cut, joined, scaled, tensors_of
from shrinkage.errors import PlanError, warn_user
from shrinkage.optimizers.parameter_state import (
    Cut,
    check_nothing_aside,
    is_scaled,
    put_smaller,
    raised,
    states_beside,
)
from shrinkage.selection.named_parameters import named_parameters

# Which dimension the factors of a second moment lack, by how their names end: the means over columns and over rows.
LACKS = {"row": -1, "col": -2}
# A parameter that is multiplied by a factor has gradients divided by it. These are of gradients, of their squares, of
# squares of steps, and in place of the parameter.
ITERATES = ("z", "ax")
POWERS = {
    **dict.fromkeys(("momentum_buffer", "exp_avg", "grad_avg", "exp_inf", "prev"), -1),
    **dict.fromkeys(("exp_avg_sq", "max_exp_avg_sq", "square_avg", "sum"), -2),
    **dict.fromkeys(("acc_delta",), 2),
    **dict.fromkeys(ITERATES, 1),
}


class Successor(NamedTuple):
    """What takes the place of a parameter of the dense model, and the biases that come after it."""

    name: str
    parameter: nn.Parameter
    biases: tuple[nn.Parameter, ...]


def shrink_optimizer_(optimizer: Optimizer, plan: ShrinkPlan, dense: nn.Module, small: nn.Module) -> None:
    """Let an optimizer of the dense model's parameters continue with those of the smaller model.

    Parameters are swapped by name, in the groups where they are. Momenta, second moments and whatever else has the
    shape of its parameter are cut as that was, and so are the row and column factors of Adafactor; counts and numbers
    stay. A bias that is new comes after its layer's weight, in the same group, and starts without a state.

    Args:
        optimizer: of parameters of `dense`; learning rate schedulers that hold it go on with it.
        plan: by which `small` was made.
        dense: the model before, with the very parameters that `optimizer` holds.
        small: what `apply_plan` or `shrink` made of it.

    Where all that goes is zero, gradients included, the steps that follow are those of the dense model. That does not
    hold for optimizers that look at a tensor as a whole: `Adafactor` and `Muon` scale by its size. Nor does it hold for
    a parameter that is multiplied, the scale of an RMS norm with fewer channels, or the lengths of a weight norm whose
    directions lose entries other than 0: its gradient is divided by the factor, and so are averages of it. Steps of
    these directions are others, too: their gradient is orthogonal to what is left of them.

    Regularizers hold the dense model: detach them before, and attach new ones, made for `small`, after. These go on
    with the update counts, averaged gradients and references of the parameters that the smaller ones replace. Layers
    that were declared with `regularize` are penalized on.

    Raises:
        TypeError: `optimizer` is no torch optimizer.
        PlanError: the optimizer holds no parameter of `dense`, or the models are not those of the plan; it is `LBFGS`,
            whose history is of all parameters at once, or keeps other optimizers with groups of their own. Nothing is
            changed then.

    Warns:
        UserWarning: what the optimizer keeps of a parameter that is cut has a shape that tells nothing of how to cut
            it. All that is kept of that parameter is dropped, and its state starts anew.

    >>> import torch
    >>> from shrinkage import apply_plan
    >>> dense = nn.Linear(4, 3)
    >>> optimizer = torch.optim.SGD(dense.parameters(), lr=0.1, momentum=0.9)
    >>> dense(torch.ones(4)).sum().backward()
    >>> optimizer.step()
    >>> plan = ShrinkPlan.of(dense, {"weight": {0: (0, 2)}, "bias": {0: (0, 2)}})
    >>> small = apply_plan(dense, plan)
    >>> shrink_optimizer_(optimizer, plan, dense, small)
    >>> [tuple(state["momentum_buffer"].shape) for state in optimizer.state.values()]
    [(2, 4), (2,)]
    """
    check_can_go_on(optimizer)
    successors = successors_of(plan, dense, small)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    already = {id(p) for p in small.parameters()}
    if any(id(p) in already for p in held):
        raise PlanError("the optimizer holds parameters of the smaller model already")
    if not any(id(p) in successors for p in held):
        raise PlanError(
            "the optimizer holds none of the dense model's parameters: pass the model that it was made for, no copy"
        )
    beside = states_beside(optimizer)
    check_nothing_aside(beside)
    groups = [swapped(group, successors) for group in optimizer.param_groups]
    bare = plain(dense)
    factors = factors_of_lengths(bare, tensors_of(bare), plan.keep)
    states: dict[Tensor, Any] = {}
    for parameter, state in optimizer.state.items():
        successor = successors.get(id(parameter))
        if successor is None:
            states[parameter] = state
        else:
            shape, factor = tuple(parameter.shape), factors.get(successor.name)
            states[successor.parameter] = smaller_state(plan, successor.name, shape, state, factor)
    for group, lists in zip(optimizer.param_groups, groups, strict=True):
        states |= first_states(optimizer, group, lists["params"], states)
    optimizer.state.clear()
    optimizer.state.update({parameter: state for parameter, state in states.items() if state})
    for group, lists in zip(optimizer.param_groups, groups, strict=True):
        for key, values in lists.items():
            group[key][:] = values  # the very list, which some optimizers hold too
    now = {id(p): index for index, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    known = [(index, successors[id(p)]) for index, p in enumerate(held) if id(p) in successors]
    cuts = {index: Cut.of(plan, successor.name) for index, successor in known}
    lengths = {index: factors[successor.name] for index, successor in known if successor.name in factors}
    cuts |= {index: cuts[index]._replace(factor=factor) for index, factor in lengths.items()}
    put_smaller(optimizer, beside, cuts, {index: now[id(successor.parameter)] for index, successor in known})


def check_can_go_on(optimizer: Optimizer) -> None:
    """Raise an error if the parameters of `optimizer` cannot be swapped."""
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"expected a torch.optim.Optimizer, got {type(optimizer).__name__}; pass the one that it wraps")
    if isinstance(optimizer, LBFGS):
        raise PlanError("LBFGS keeps a history of all parameters in one vector: make a new one for the smaller model")
    inner = (each for each in vars(optimizer).values() if isinstance(each, Optimizer))
    if any(each.param_groups is not optimizer.param_groups for each in inner):
        raise PlanError(
            f"{type(optimizer).__name__} keeps another optimizer that has groups of its own: make a new one for the "
            "smaller model"
        )


def successors_of(plan: ShrinkPlan, dense: nn.Module, small: nn.Module) -> dict[int, Successor]:
    """Return what takes the place of each parameter of `dense`, by id."""
    before, after = parameters_by_name(dense), parameters_by_name(small)
    biases: dict[int, dict[int, nn.Parameter]] = {}
    for path in plan.biases:
        weight, bias = before.get(joined(path, "weight")), after.get(joined(path, "bias"))
        if weight is None or bias is None:
            raise PlanError(
                f"the plan gives {path!r} a bias: the smaller model has none there, or the dense one no weight"
            )
        biases.setdefault(id(weight), {})[id(bias)] = bias
    successors: dict[int, Successor] = {}
    for name, parameter in before.items():
        successor = after.get(name)
        shapes = tuple(parameter.shape), None if successor is None else tuple(successor.shape)
        expected = (plan.shapes[name], plan.shape_after(name)) if name in plan.shapes else (None, None)
        if successor is None or shapes != expected:
            raise PlanError(
                f"{name!r} has shape {shapes[0]} in the dense model and {shapes[1]} in the smaller one, the plan says "
                f"{expected[0]} and {expected[1]}: pass the plan and the two models that belong together"
            )
        added = tuple(biases.get(id(parameter), {}).values())
        successors.setdefault(id(parameter), Successor(name, successor, added))
    return successors


def parameters_by_name(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of `model` under all of their names, without what wrappers add to these."""
    found = ((each.name, each.parameter) for each in named_parameters(model))
    return {name: parameter for name, parameter in found if parameter is not None}


def smaller_state(
    plan: ShrinkPlan, name: str, shape: Shape, state: Mapping[str, Any], lengthened: Tensor | None = None
) -> dict[str, Any]:
    """Return what an optimizer keeps of the parameter called `name`, cut as that is; nothing if that is unknown.

    The lengths of a weight norm are multiplied by what they are `lengthened` by.
    """
    result, dims, (scale, offset) = {}, plan.keep.get(name, {}), plan.scales.get(name, AS_IT_IS)
    factor = scale if lengthened is None else lengthened
    for key, value in state.items():
        cuts = cuts_of(key, value, shape, dims)
        if cuts is None:
            found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            warn_user(
                f"what the optimizer keeps of {name!r} starts anew: its {key!r} ({found}) does not have the shape "
                f"{shape} of the parameter, and how to cut it is not known"
            )
            return {}
        result[key] = cut(value, cuts) if cuts else value
        power = 0 if key == "momentum_buffer" and "square_avg" in state else POWERS.get(key, 0)  # RMSprop's is of steps
        if power and is_scaled(factor):
            result[key] = scaled(result[key], (raised(factor, power), offset if key in ITERATES else 0.0))
    return result


def cuts_of(
    key: str, value: object, shape: Shape, dims: Mapping[int, Sequence[int]]
) -> Mapping[int, Sequence[int]] | None:
    """Return how to cut an entry of the state of a parameter of `shape` that is cut by `dims`; None if that is unknown.

    >>> cuts_of("row_var", nn.Parameter(Tensor(8, 1)), (8, 6), {0: (1, 2), 1: (3, 4)})
    {0: (1, 2)}
    >>> cuts_of("exp_avg_sq_col", nn.Parameter(Tensor(6)), (8, 6), {0: (1, 2), 1: (3, 4)})
    {0: (3, 4)}
    """
    if not dims or all(not isinstance(leaf, Tensor) or leaf.numel() == 1 for leaf in tree_leaves(value)):
        return {}
    if not isinstance(value, Tensor):
        return None
    places = list(range(len(shape)))
    lacking = LACKS.get(key.rpartition("_")[2])
    if lacking is not None and value.dim() == len(shape) - 1:
        places.pop(lacking)
    sizes = [shape[place] for place in places]
    if value.dim() != len(places) or any(n not in (1, size) for n, size in zip(value.shape, sizes, strict=True)):
        return None
    return {dim: dims[place] for dim, place in enumerate(places) if place in dims and value.shape[dim] == shape[place]}


def swapped(group: Mapping[str, Any], successors: Mapping[int, Successor]) -> dict[str, list[Any]]:
    """Return the lists of a parameter group, and of their names if it has them, with what takes the place of each."""
    parameters: list[nn.Parameter] = []
    names: list[str] = []
    for parameter, name in zip(group["params"], group.get("param_names", [""] * len(group["params"])), strict=True):
        successor = successors.get(id(parameter))
        added = () if successor is None else successor.biases
        parameters += [parameter if successor is None else successor.parameter, *added]
        names += [name, *(name.removesuffix("weight") + "bias" for _ in added)]
    return {"params": parameters, "param_names": names} if "param_names" in group else {"params": parameters}


def first_states(
    optimizer: Optimizer, group: Mapping[str, Any], parameters: Sequence[nn.Parameter], states: Mapping[Tensor, Any]
) -> dict[Tensor, Any]:
    """Return states for parameters that are new to an optimizer that does not make them when it first steps these."""
    new = [parameter for parameter in parameters if parameter not in states]
    if isinstance(optimizer, Adagrad) and new:  # it makes them when it is made
        value, fused = group["initial_accumulator_value"], group["fused"]
        return dict(Adagrad(new, initial_accumulator_value=value, fused=fused).state)
    if isinstance(optimizer, SGD) and group["fused"] and len(new) < len(parameters):  # for all of a group or for none
        return {p: {"momentum_buffer": torch.zeros_like(p)} for p in new if group["momentum"]}
    return {}
