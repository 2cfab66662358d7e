"""Defects that the tests of this folder have to notice; see `tests/mutant.py`."""

from mutant import Mutant as M

MUTANTS = [
    M("gc.disable()", "pass", "architecture", "collections", file="__init__.py"),
    M("if _collects:", "if True:", "architecture", "collections"),
    M("any(isinstance(each, Optimizer) for each in held)", "False", "refusals", "no_optimizer"),
    M("c.parameter.dim() > 1", "True", "refusals", "bare"),
    M("    if packed and not list(", "    if False and not list(", "refusals", "quantized"),
    M("if not self.layers:", "if False:", "refusals", "without_linear"),
    M("or None to leave alone, got {shown(penalty)}", "got {penalty!r}", "messages", "glob", quick=True),
    M("{shown(self.count)}", "{self.count!r}", "messages", "argument"),
    M("return [[], [behind]]", "return [[behind]]", "docs_pages"),
    M("    if found is None:\n        raise missing(f\"{getattr", "    if False:\n        raise missing(f\"{getattr", "private"),
    M("    if found is None:\n        raise missing(f\"{function", "    if False:\n        raise missing(f\"{function", "private"),
    M("use) != FLATTENED", "use) == None", "private", "marks"),
    M("if name not in gone", "", "private", "options"),
    M("check_marks(module)", "pass", "private", "wrapper"),
    M("1 + place(torch.tensor(steps, dtype=point.dtype) - 1)", "1.0", "docs_pages"),
]
