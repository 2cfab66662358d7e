"""Methods of a class compiled anew from their own text, with some of the calls in it made by other functions."""

import ast
import inspect
from collections.abc import Iterator
from functools import lru_cache
from types import CodeType, FunctionType


class Through(ast.NodeTransformer):
    """Turns `x.view(...)` into `self.resized_view(x, ...)`, for each of the `names` of methods in place of `view`."""

    def __init__(self, own: str, names: frozenset[str]):
        self.own, self.names = own, names

    def visit_Call(self, node: ast.Call) -> ast.Call:
        """Return the call that takes the place of `node`."""
        self.generic_visit(node)
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr in self.names:
            own = ast.Attribute(ast.Name(self.own, ast.Load()), through(called.attr), ast.Load())
            made = ast.Call(own, [called.value, *node.args], node.keywords)
            return ast.fix_missing_locations(ast.copy_location(made, node))
        return node


def through(name: str) -> str:
    """Return the name of the method that makes the calls of those called `name`."""
    return f"resized_{name}"


def rewritten(method: object, names: frozenset[str]) -> FunctionType | None:
    """Return `method` with its calls of methods called `names` made through those of its own object.

    It is compiled from the text that it comes from, at the same lines. None if it is no function, if there is no text
    of it, or if the text gives another function now.
    """
    if not isinstance(method, FunctionType):
        return None
    code = _code(method.__code__, names)
    if code is None:
        return None
    return with_code(method, code)


def with_code(method: FunctionType, code: CodeType) -> FunctionType:
    """Return a function like `method` that runs `code`, which knows the same variables."""
    cells = dict(zip(method.__code__.co_freevars, method.__closure__ or (), strict=True))
    closure = tuple(cells[name] for name in code.co_freevars)
    # A code of its own, since compilers keep what they make of a function, and how often, with its code.
    result = FunctionType(code.replace(), method.__globals__, method.__name__, method.__defaults__, closure)
    result.__kwdefaults__, result.__qualname__ = method.__kwdefaults__, method.__qualname__
    result.__annotations__, result.__doc__ = method.__annotations__, method.__doc__
    result.__module__ = method.__module__
    vars(result).update(vars(method))
    return result


@lru_cache(maxsize=256)
def _code(code: CodeType, names: frozenset[str]) -> CodeType | None:
    try:
        text = "".join(inspect.findsource(code)[0])
        tree = ast.parse(text)
    except (OSError, SyntaxError, ValueError):
        return None
    compiled = _compiled(tree, code)
    if compiled is None or not _same(compiled, code) or not code.co_argcount:
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == code.co_name:
            if min([node.lineno, *(each.lineno for each in node.decorator_list)]) == code.co_firstlineno:
                changing = Through(code.co_varnames[0], names)
                node.body = [changing.visit(each) for each in node.body]
    return _compiled(tree, code)


def _compiled(tree: ast.Module, code: CodeType) -> CodeType | None:
    """Return what the text of a file gives in the place where `code` is."""
    place = code.co_qualname, code.co_firstlineno
    found = _nested(compile(tree, code.co_filename, "exec", dont_inherit=True))
    return next((each for each in found if (each.co_qualname, each.co_firstlineno) == place), None)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _nested(each)


def _same(one: CodeType, other: CodeType) -> bool:
    """Return whether two codes do the same; what was learnt while one of them ran, and where lines are, is left out."""
    fields = "co_code co_names co_varnames co_freevars co_cellvars co_flags co_exceptiontable"
    if any(getattr(one, name) != getattr(other, name) for name in fields.split()):
        return False
    return len(one.co_consts) == len(other.co_consts) and all(
        _same(a, b) if isinstance(a, CodeType) and isinstance(b, CodeType) else repr(a) == repr(b)
        for a, b in zip(one.co_consts, other.co_consts, strict=True)
    )
