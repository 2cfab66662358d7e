"""The operators whose operations are counted in a call of a model, and how many are left when channels go."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map, tree_unflatten

from shrinkage.compression.calls.cost import Modules, operation_counter
from shrinkage.compression.calls.inputs import Call
from shrinkage.compression.calls.modes import evaluated, seeing
from shrinkage.compression.calls.outputs import outputs_of_copy
from shrinkage.errors import GroupError
from shrinkage.penalties.kinds import Amount, Product, amount

Formula = Callable[..., Any]


@dataclass(frozen=True)
class CountedOperator:
    """One call of an operator: its arguments and its result, with shapes in place of tensors.

    Args:
        operator: of torch.
        formula: by which its operations are counted.
        leaves: what the arguments and the result are made of.
        structure: how.
        operations: how many there are.
    """

    operator: Any
    formula: Formula = field(compare=False)
    leaves: Sequence[Any] = field(compare=False)
    structure: TreeSpec
    operations: int = field(compare=False)

    def at(self, leaves: Sequence[Any]) -> Any:
        """Return how many operations there are with other `leaves`."""
        args, keywords, result = tree_unflatten(list(leaves), self.structure)
        return self.formula(*args, **keywords, out_val=result)


def counted_operators(model: nn.Module, call: Call) -> list[CountedOperator]:
    """Return the operators of one call of `model` whose operations are counted, in order.

    It is a copy that nobody needs any more: it is put into evaluation mode, and takes no gradients.

    Raises:
        GroupError: the counter finds operations elsewhere, too.
    """
    found: list[CountedOperator] = []
    counter = operation_counter()
    counter.mod_tracker = Modules()  # it has what the counter asks for

    def noting(operator: Any, formula: Formula, *args: Any, out_val: Any, **keywords: Any) -> int:
        operations: int = formula(*args, **keywords, out_val=out_val)
        leaves, structure = tree_flatten(tree_map(shape_of, (args, keywords, out_val)))
        found.append(CountedOperator(operator, formula, leaves, structure, operations))
        return operations

    counter.flop_registry = {each: partial(noting, each, formula) for each, formula in counter.flop_registry.items()}
    if any(module.training for module in model.modules()):
        evaluated(model)
    model.requires_grad_(False)
    with seeing(counter):
        outputs_of_copy(model, call)
    if sum(each.operations for each in found) != counter.get_total_flops():
        raise GroupError("the model has operators whose operations are counted in another way than by their shapes")
    return found


def shape_of(value: Any) -> Any:
    """Return the shape of a tensor, and anything else as it is."""
    return tuple(value.shape) if isinstance(value, Tensor) else value


def multiply_adds_left(dense: Sequence[CountedOperator], smaller: Mapping[int, Sequence[CountedOperator]]) -> Amount:
    """Return the multiply-adds of a call, half of its operations, by how many groups of each kind are gone.

    Args:
        dense: the operators of the whole model.
        smaller: those of the model with one group less, by the kind of it.

    Raises:
        GroupError: a smaller model calls other operators, a formula does more than to add and multiply lengths, or
            operations are no pairs of a product and a sum.
    """
    for operators in smaller.values():
        if list(operators) != list(dense):
            raise GroupError("the model calls other operators when channels go")
    products: list[Product] = []
    for place, each in enumerate(dense):
        others = {kind: operators[place].leaves for kind, operators in smaller.items()}
        leaves = [varying(leaf, {kind: own[at] for kind, own in others.items()}) for at, leaf in enumerate(each.leaves)]
        try:
            products += Varying.of(each.at(leaves)).products
        except TypeError as error:
            raise GroupError(f"the operations of {each.operator} are no sum of products of lengths: {error}") from error
    operations = amount(products).products
    if any(number % 2 for number, _ in operations):
        raise GroupError("the model takes an odd number of floating-point operations")
    return Amount(tuple((number // 2, lengths) for number, lengths in operations))


def varying(leaf: Any, others: Mapping[int, Any]) -> Any:
    """Return `leaf`; if it is a number that is another one with one group less of some kinds, as `Varying`."""
    if type(leaf) is not int:
        return leaf
    shorter = tuple((kind, leaf - other) for kind, other in others.items() if other != leaf)
    return Varying(leaf, [(1, ((leaf, shorter),))]) if shorter else leaf


class Varying:
    """A whole number that depends on how many groups are gone: its value while none is, and a sum of products.

    Formulas add and multiply it like a number, and compare it by its value.
    """

    def __init__(self, value: int, products: Sequence[Product]) -> None:
        self.value, self.products = value, tuple(products)

    @classmethod
    def of(cls, number: Any) -> "Varying":
        """Return `number` as one that may vary."""
        return number if isinstance(number, Varying) else cls(number, [(number, ())])

    def __add__(self, other: Any) -> "Varying":
        other = Varying.of(other)
        return Varying(self.value + other.value, self.products + other.products)

    def __mul__(self, other: Any) -> "Varying":
        other = Varying.of(other)
        pairs = [(one, two) for one in self.products for two in other.products]
        return Varying(self.value * other.value, [(a * b, (*left, *right)) for (a, left), (b, right) in pairs])

    __radd__, __rmul__ = __add__, __mul__

    def __eq__(self, other: object) -> bool:
        return self.value == Varying.of(other).value

    def __hash__(self) -> int:
        return hash(self.value)

    def __lt__(self, other: Any) -> bool:
        return self.value < int(Varying.of(other).value)

    def __gt__(self, other: Any) -> bool:
        return self.value > int(Varying.of(other).value)

    def __mod__(self, other: Any) -> int:
        return self.value % int(Varying.of(other).value)

    def __rmod__(self, other: int) -> int:
        return other % self.value
