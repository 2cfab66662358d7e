"""Modules whose own code has other numbers, or sizes corrected by tables, while forward runs or in the text of it."""

import functools
from collections.abc import Callable, Mapping, Sequence
from operator import index
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from shrinkage.compression.plans.numbers_in_code import (
    CodeNumbers,
    methods_of,
    numbers_in,
    numbers_in_turn,
    with_numbers,
)
from shrinkage.compression.plans.rewriting import rewritten, through
from shrinkage.compression.plans.sizes import (
    CALLS,
    EXPAND,
    RESHAPE,
    SPLIT,
    SPLIT_WITH_SIZES,
    VIEW,
    Asked,
    Table,
    Tables,
    asked_by,
    asking,
    corrected,
    read_by,
    table_of,
)
from shrinkage.errors import PlanError


def resized(
    tables: Sequence[Table], function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Return what a call gives with its sizes corrected by `tables` in turn."""
    asked = asked_by(function, args, kwargs)
    if asked is None:
        return function(*args, **kwargs)
    right = asked
    for table in tables:
        sizes = corrected(table, read_by(asked, args), right)
        if sizes is not None:
            right = Asked(SPLIT_WITH_SIZES if asked.call == SPLIT else asked.call, asked.axis, tuple(sizes))
    return function(*args, **kwargs) if right is asked else asking(function, args, kwargs, right, right.sizes)


class Correcting(TorchFunctionMode):
    """Corrects the sizes of calls by tables. It has no state: threads, and the order of calls, do not matter."""

    def __init__(self, tables: Sequence[Table]):
        super().__init__()
        self.tables = tables

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func not in CALLS:
            return func(*args, **(kwargs or {}))
        return resized(self.tables, func, args, kwargs or {})


def _under_mode(forward: Callable[..., Any], tables: Sequence[Table]) -> Callable[..., Any]:
    """Return `forward` with all calls corrected that are made while it runs."""

    @functools.wraps(forward)
    def corrected_forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        with Correcting(tables):
            return forward(self, *args, **kwargs)

    return corrected_forward


def _through(name: str, tables: Sequence[Table]) -> Callable[..., Any]:
    """Return what makes the calls `owner.name(...)`, corrected."""
    method: Any = getattr(Tensor, name, None)  # functions of torch that fill a tensor are no methods

    def call(owner: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(owner, Tensor):
            return resized(tables, method, (owner, *args), kwargs)
        return resized(tables, getattr(owner, name), args, kwargs)  # of torch, or of a class

    return (
        call
        if len(tables) > 1 or CALLS.get(method) not in (VIEW, RESHAPE, EXPAND)
        else _in_short(name, tables[0], call)
    )


def _in_short(name: str, table: Table, call: Callable[..., Any]) -> Callable[..., Any]:
    """Return what does what `call` does, in less time where sizes are given one by one.

    It is code that has the numbers of the table as its own: comparing them in loops would take as long as a call that
    makes no copy, and a single token is soon computed otherwise.
    """
    lines = [
        "def resized(owner, *sizes, **others):",
        "    count = len(sizes)",
        "    if others or count < 2 or not isinstance(owner, Tensor):",
        "        return call(owner, *sizes, **others)",
    ]
    for (kind, rank, count), several in table.items():
        if kind != CALLS[getattr(Tensor, name)] or count < 2:
            continue
        names = [f"size_{place}" for place in range(count)]
        lines += [f"    if count == {count} and owner.dim() == {index(rank)}:", f"        {', '.join(names)} = sizes"]
        for each in several:
            if each.products or not each.inputs:
                lines += ["        return call(owner, *sizes)"]
                break
            tests = [f"{own} == {index(size)}" for own, size in zip(names, each.asked, strict=True) if size is not None]
            tests += [f"owner.shape[{index(axis)}] == {index(size)}" for axis, size in each.inputs]
            sizes = zip(names, each.asked, each.given, strict=True)
            right = [own if was is None or now is None else str(index(now)) for own, was, now in sizes]
            lines += [f"        if {' and '.join(tests)}:", f"            return owner.{name}({', '.join(right)})"]
    lines += [f"    return owner.{name}(*sizes)"]
    made: dict[str, Any] = {"Tensor": Tensor, "call": call}
    exec(compile("\n".join(lines), __file__, "exec"), made)
    return cast(Callable[..., Any], made["resized"])


CLASSES: dict[tuple[type[nn.Module], Tables, CodeNumbers], type[nn.Module]] = {}


def _changed_class(dense: type[nn.Module], tables: Tables, numbers: CodeNumbers = ()) -> type[nn.Module]:
    """Return the class of modules of class `dense` whose code has other `numbers`, and sizes corrected by `tables`.

    Where all calls that need it are in the text of its `forward`, these alone are looked at. Otherwise all are that are
    made while it runs, which costs time for each.
    """
    known = CLASSES.get((dense, tables, numbers))
    if known is not None:
        return known

    def reduced(self: nn.Module, protocol: Any) -> Any:
        made: Any = super(cls, self).__reduce_ex__(protocol)
        return _empty, (dense, tables, numbers), *made[2:]

    by_method: dict[str, dict[float, float]] = {}
    for method, before, after in numbers:
        by_method.setdefault(method, {})[before] = after
    changed = {name: with_numbers(getattr(dense, name), own) for name, own in by_method.items()}
    members = {
        "__module__": dense.__module__,
        "__qualname__": dense.__qualname__,
        "__reduce_ex__": reduced,
        "dense_class": dense,
        "size_tables": tables,
        "code_numbers": numbers,
        **changed,
        **(_corrected_members(dense, tables, changed, by_method.get("forward", {})) if tables else {}),
    }
    metaclass: Any = type(dense)
    cls: type[nn.Module] = CLASSES.setdefault((dense, tables, numbers), metaclass(dense.__name__, (dense,), members))
    return cls


def _corrected_members(
    dense: type[nn.Module], tables: Tables, changed: Mapping[str, FunctionType], numbers: Mapping[float, float]
) -> dict[str, Any]:
    """Return what corrects sizes: `forward`, as it is `changed` by other `numbers`, and what its calls go through."""
    by_call = [table_of(table) for table in tables]
    kinds = {SPLIT if each.call == SPLIT_WITH_SIZES else each.call for table in tables for each in table}
    names = frozenset(function.__name__ for function, kind in CALLS.items() if kind in kinds)
    in_text = all(each.in_text for table in tables for each in table)
    forward = rewritten(dense.forward, names) if in_text else None
    return {
        "forward": with_numbers(forward, numbers)
        if forward
        else _under_mode(changed.get("forward", dense.forward), by_call),
        "text_changed": forward is not None,
        **{through(name): staticmethod(_through(name, by_call)) for name in (names if forward else ())},
    }


def _empty(dense: type[nn.Module], tables: Tables, numbers: CodeNumbers = ()) -> nn.Module:
    cls = _changed_class(dense, tables, numbers)
    return cls.__new__(cls)


def correct_sizes_(model: nn.Module, sizes: Mapping[str, Tables]) -> None:
    """Let the code of the modules of `model` with the dotted names in `sizes` be corrected."""
    for path, tables in sizes.items():
        _change_class_(model.get_submodule(path), tables, ())


def change_numbers_(model: nn.Module, numbers: Mapping[str, CodeNumbers]) -> None:
    """Let the code of the modules of `model` with the dotted names in `numbers` have others."""
    for path, own in numbers.items():
        _change_class_(model.get_submodule(path), (), own)


def _change_class_(module: nn.Module, tables: Tables, numbers: CodeNumbers) -> None:
    known = vars(type(module))
    dense = known.get("dense_class", type(module))
    own = numbers_in_turn(known.get("code_numbers", ()), numbers)
    module.__class__ = _changed_class(dense, known.get("size_tables", ()) + tables, own)


def with_text_changed(model: nn.Module) -> set[str]:
    """Return the dotted names of the modules of `model` whose `forward` is compiled anew from its text."""
    return {path for path, module in model.named_modules() if vars(type(module)).get("text_changed")}


def check_sizes(model: nn.Module, sizes: Mapping[str, Tables]) -> None:
    """Raise `PlanError` unless all modules in `sizes` exist, and their calls run the `forward` of their class."""
    for path in sizes:
        _checked(model, path, "corrects sizes")


def check_numbers(model: nn.Module, numbers: Mapping[str, CodeNumbers]) -> None:
    """Raise `PlanError` unless all modules in `numbers` have these in the code of their classes, which they run."""
    for path, own in numbers.items():
        methods = methods_of(type(_checked(model, path, "changes numbers")))
        for name, before, _ in own:
            if name not in methods or before not in numbers_in(methods[name].__code__):
                raise PlanError(
                    f"the plan changes the number {before} in `{name}` of {path or 'the model'!r}, whose code has no "
                    "such number: use the code that the plan was made with"
                )


def _checked(model: nn.Module, path: str, does: str) -> nn.Module:
    """Return the module at `path`, if it exists and its calls run the `forward` of its class."""
    try:
        module = model.get_submodule(path)
    except AttributeError:
        raise PlanError(f"the plan {does} in the code of {path!r}, which the model does not have") from None
    if "forward" in vars(module) or isinstance(module, torch.jit.ScriptModule):
        raise PlanError(
            f"the plan {does} in the code of {path or 'the model'!r}, whose forward is none of its class: "
            "apply the plan before hooks or compilers replace it"
        )
    return module
