"""A plan applied: the smaller model that it makes of a dense one."""

from typing import cast

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from shrinkage.compression.copying.caches import emptied
from shrinkage.compression.copying.copies import copy_of, plain, warn_of_hooks
from shrinkage.compression.plans.attention import heads_left, prune_heads_
from shrinkage.compression.plans.checks import (
    check_attributes,
    check_biases,
    check_can_be_cut,
    check_is_dense,
    check_tied,
)
from shrinkage.compression.plans.layers import outputs_of
from shrinkage.compression.plans.normed_weights import compute_weights_, keep_weights_
from shrinkage.compression.plans.noting import noted
from shrinkage.compression.plans.shrink_plan import ShrinkPlan
from shrinkage.compression.plans.sized_modules import change_numbers_, check_numbers, check_sizes, correct_sizes_
from shrinkage.compression.plans.tensors import copied, tensors_of
from shrinkage.compression.plans.tied import under_all_names
from shrinkage.compression.removal.adapters import update_ranks


def apply_plan(model: nn.Module, plan: ShrinkPlan) -> nn.Module:
    """Return the smaller model that `plan` makes of a dense model of the plan's class.

    Args:
        model: stays as it is. On the meta device the result is there too, to be filled with
            `load_state_dict(state, assign=True)`. Of a `torch.optim.swa_utils.AveragedModel` the averaged model is cut;
            of a compiled one, or one on several processes, the module inside is, and returned alone.
        plan: what `shrink` returned, or `ShrinkPlan.from_json` read.

    Weights that go are never copied. Under weight norm, lengths are multiplied by what makes the entries of the weight
    that stay what they were. Tied parameters stay tied; classes, modes, types, devices, `requires_grad`, the
    order of memory, hooks of modules and attributes of parameters are kept; gradients are not, nor are hooks on
    gradients of parameters, of which a warning tells. Functions in attributes call the layers of the smaller model. New
    biases are zero.

    Raises:
        PlanError: `model` is not of the class that the plan was made for, is small already, or holds a tensor that can
            not be cut (see `ShrinkPlan.of`).

    >>> plan = ShrinkPlan.of(nn.Linear(4, 3, bias=False), {"weight": {0: (0, 2)}})
    >>> apply_plan(nn.Linear(4, 3, bias=False), plan)
    Linear(in_features=4, out_features=2, bias=False)
    """
    result = applied(model, plan)
    warn_of_hooks(plain(model))
    noted(plain(result), plan)
    return result


def applied(model: nn.Module, plan: ShrinkPlan) -> nn.Module:
    """Return what `apply_plan` does, without a warning."""
    dense = plain(model)
    model = model if isinstance(model, AveragedModel) else dense
    tensors = tensors_of(dense)
    check_is_dense(dense, plan.shapes, {name: plan.shape_after(name) for name in plan.shapes}, plan.keep)
    check_tied(plan.keep, under_all_names(tensors, plan.keep))
    check_can_be_cut(dense, tensors, plan.keep)
    check_biases(dense, plan.biases)
    check_attributes(dense, plan.attributes)
    check_sizes(dense, plan.sizes)
    check_numbers(dense, plan.numbers)
    heads = heads_left(dense, plan.keep)
    cuts: dict[Tensor, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor not in cuts and (name in plan.keep or type(tensor) is nn.Parameter):
            cuts[tensor] = copied(tensor, plan.keep.get(name, {}), plan.scales.get(name))
    keep_weights_(dense, tensors, cuts, plan.keep)
    result = copy_of(model, cuts)
    small = plain(result)
    for name, value in plan.attributes.items():
        path, _, attribute = name.rpartition(".")
        setattr(small.get_submodule(path), attribute, value)
    for path, (attention, kept) in heads.items():
        prune_heads_(cast(nn.MultiheadAttention, small.get_submodule(path)), attention, kept)
    for path in plan.biases:
        layer = small.get_submodule(path)
        weight, outputs = layer.get_parameter("weight"), outputs_of(layer)
        layer.bias = nn.Parameter(weight.new_zeros(outputs or 0), requires_grad=weight.requires_grad)
    correct_sizes_(small, plan.sizes)
    change_numbers_(small, plan.numbers)
    update_ranks(small)
    compute_weights_(small)
    emptied(small)
    return result
