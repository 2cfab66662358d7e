"""Of several rules the first that matches a parameter applies; a rule that never applies is an error."""

import difflib
from collections.abc import Iterable, Sequence

from torch import nn

from shrinkage.errors import SelectionError
from shrinkage.selection.default_selector import Weights
from shrinkage.selection.named_parameters import NamedParameter
from shrinkage.selection.selectors import AnySelector, Layers, is_of, matches, selector_text


def nearest(name: str, names: Iterable[str]) -> str:
    """Return the three of `names` nearest to `name`, as text for an error message."""
    close = difflib.get_close_matches(name, list(dict.fromkeys(names)), n=3, cutoff=0.0)
    return ", ".join(map(repr, close)) or "none, there are no parameters"


def unmatched(selector: AnySelector, candidates: Sequence[NamedParameter]) -> SelectionError:
    """Return the error for a selector that selects nothing."""
    hint = ""
    if isinstance(selector, str):
        inside = any(each.name.startswith(f"{selector}.") for each in candidates)
        hint = f"; {selector!r} is a module: write '{selector}.*' for its parameters" if inside else ""
        sought = selector
    else:
        layers, own = selector if isinstance(selector, tuple) else (selector, "weight")
        sought = f"{layers.__name__}.{own}" if isinstance(layers, type) else own
        hint = hint_for(selector, candidates) if isinstance(selector, type | nn.Module) else ""
        hint = outside(candidates) if isinstance(selector, Weights) and candidates else hint
    return SelectionError(
        f"the rule {selector_text(selector)} matches no parameter of the model{hint}; "
        f"nearest names: {nearest(sought, (c.name for c in candidates))}"
    )


def hint_for(layers: Layers, candidates: Sequence[NamedParameter]) -> str:
    """Return what a model has of `layers`, of which it has no weight."""
    inside = {id(each) for each in layers.modules()} if isinstance(layers, nn.Module) else set()
    held = [c for c in candidates if id(c.module) in inside or any(is_of(module, layers) for module, _ in c.owners())]
    if not held:
        return ": this layer is no part of it" if isinstance(layers, nn.Module) else ""
    names = f"{', '.join(repr(each.name) for each in held[:3])}{' ...' * (len(held) > 3)}"
    return f": no 'weight' of its own is there, but {names}, which a glob or a pair can name"


def outside(candidates: Sequence[NamedParameter]) -> str:
    """Return why a penalty without a selector finds nothing, and what to write."""
    held = [f"{each.name!r} of {type(each.module).__name__}" for each in candidates]
    others = f" and {len(held) - 3} others" if len(held) > 3 else ""
    first = next((c for c in candidates if c.parameter is not None and c.parameter.dim() > 1), candidates[0])
    return (
        ": a penalty without a selector is for weights with two dimensions or more outside of norms and embeddings, "
        f"and it has {', '.join(held[:3])}{others}; name what is meant, such as {{{first.name!r}: L1(1e-3)}}"
    )


def first_matches(selectors: Sequence[AnySelector], candidates: Sequence[NamedParameter]) -> list[int | None]:
    """Return for each candidate the index of the first selector that matches it; raise for one that never wins."""
    hits = [[matches(selector, candidate) for candidate in candidates] for selector in selectors]
    columns = range(len(candidates))
    winners = [next((i for i, row in enumerate(hits) if row[column]), None) for column in columns]
    for i, selector in enumerate(selectors):
        if not any(hits[i]):
            raise unmatched(selector, candidates)
        if i not in winners:
            taken = next(j for j in range(i) if hits[j][hits[i].index(True)])
            raise SelectionError(
                f"the rule {selector_text(selector)} never applies: every parameter it matches is taken by an earlier "
                f"rule such as {selector_text(selectors[taken])}; the first match wins, so put it before that one"
            )
    return winners
