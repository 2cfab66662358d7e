"""Numbers in the code of a module's own methods, such as the 1e-6 that a norm adds, and others in their place."""

from collections.abc import Mapping
from types import CodeType, FunctionType

from torch import nn

from shrinkage.compression.plans.rewriting import with_code

# By method the number that its code has, and the one that takes its place.
CodeNumbers = tuple[tuple[str, float, float], ...]


def methods_of(cls: type[nn.Module]) -> dict[str, FunctionType]:
    """Return the methods of modules of class `cls` by name, without those that torch has written."""
    found: dict[str, object] = {}
    for each in cls.__mro__:
        own = each.__module__.partition(".")[0] not in ("torch", "builtins")
        for name, value in vars(each).items():
            found.setdefault(name, value if own else None)
    return {name: value for name, value in found.items() if isinstance(value, FunctionType)}


def numbers_in(code: CodeType) -> set[float]:
    """Return the numbers with a point that `code` has as constants, and functions that are written inside of it.

    >>> sorted(numbers_in((lambda x: x * 0.5 + 1e-6).__code__))
    [1e-06, 0.5]
    """
    nested = (numbers_in(each) for each in code.co_consts if isinstance(each, CodeType))
    return {each for each in code.co_consts if type(each) is float}.union(*nested)


def with_numbers(method: FunctionType, numbers: Mapping[float, float]) -> FunctionType:
    """Return `method` with other `numbers` in its code, by those that it has."""
    return with_code(method, _replaced(method.__code__, numbers)) if numbers else method


def _replaced(code: CodeType, numbers: Mapping[float, float]) -> CodeType:
    constants = tuple(
        _replaced(each, numbers)
        if isinstance(each, CodeType)
        else numbers.get(each, each)
        if type(each) is float
        else each
        for each in code.co_consts
    )
    return code.replace(co_consts=constants)


def numbers_in_turn(first: CodeNumbers, second: CodeNumbers) -> CodeNumbers:
    """Return what two changes come to, of which the second is one of the code that the first makes.

    >>> numbers_in_turn((("forward", 1e-6, 2e-6),), (("forward", 2e-6, 3e-6), ("norm", 1e-5, 2e-5)))
    (('forward', 1e-06, 3e-06), ('norm', 1e-05, 2e-05))
    """
    later = {(method, before): after for method, before, after in second}
    both = [(method, before, later.pop((method, after), after)) for method, before, after in first]
    return (*both, *((method, before, after) for (method, before), after in later.items()))
