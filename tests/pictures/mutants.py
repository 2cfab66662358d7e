"""Defects that the tests of this folder have to notice; see `tests/mutant.py`."""

from mutant import Mutant as M

MUTANTS = [
    M("if norms[index] != 0]", "]", "models", "columns"),
    M("shown = read[:most][::-1]", "shown = read[:most]", "models", "columns"),
    M("for name in largest(old, most)][::-1]", "for name in largest(old, most)]", "models", "order"),
    M("key=lambda tensor: tensor.size, reverse=True)[:most]", "key=lambda tensor: tensor.size)[:most]", "models", "order"),
    M("if len(tensor.shape) > 1]", "]", "models", "matrix"),
    M("epoch[name].zeros / epoch[name].size for epoch in history", "history[0][name].zeros / epoch[name].size for epoch in history", "models", "epoch"),
]
