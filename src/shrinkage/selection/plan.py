"""Rules, and the plan they resolve to: which parameter has which penalty."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn

from shrinkage.distributed.flat_parameters import check_flat_shard, check_stepped, is_flat_shard
from shrinkage.errors import GroupError, ParameterError, warn_user
from shrinkage.penalties.base import Penalty
from shrinkage.penalties.budget import Budget
from shrinkage.penalties.controlled import at_work
from shrinkage.penalties.membership import coupled_of
from shrinkage.penalties.value_objects import ByFields, value_class
from shrinkage.selection.coupled_rules import check_won, family_cells, sized
from shrinkage.selection.first_match import first_matches
from shrinkage.selection.how import How
from shrinkage.selection.named_parameters import NamedParameter, named_parameters
from shrinkage.selection.planned_budgets import PlannedBudget, planned_budget, warn_of_late_ends
from shrinkage.selection.rules import Rule, Rules, as_rules, check_same_rule
from shrinkage.selection.selectors import selector_text
from shrinkage.selection.supported_parameters import check_not_computed, check_parameter, is_frozen
from shrinkage.selection.unregistered import told_with_errors, warn_of_unregistered
from shrinkage.tables import Table, in_html, names_note, shape_text


class Entry(NamedTuple):
    """One penalized parameter: its name, its other names if it is tied, its shape (None while lazy), and its penalty.

    The penalty is bound to the parameter: what it keeps for each element is on the parameter's device. `rule` is what
    logs call the rule that it comes from.
    """

    name: str
    aliases: tuple[str, ...]
    shape: tuple[int, ...] | None
    penalty: Penalty
    how: How
    every: int = 1
    until: int | None = None
    after: Penalty | None = None
    rule: str = ""

    def is_over(self, update: int) -> bool:
        """Return whether the penalty does not act any more at an update, and its zeros stay."""
        return self.until is not None and update >= self.until

    def at(self, update: int) -> "Entry | None":
        """Return what is penalized at an update, None if nothing is."""
        if not self.is_over(update):
            return self
        return None if self.after is None else self._replace(penalty=self.after, until=None, after=None)


@value_class
class Plan(ByFields):
    """The penalized parameters of a model, in the model's order. Prints as a table.

    `unnamed` are the trainable matrices that no rule names, None included, each with its number of elements. `budgets`
    has each `Budget` with the parameters that it ranks together; those are not among the penalized ones.
    """

    entries: tuple[Entry, ...]
    unnamed: tuple[tuple[str, int], ...] = ()
    budgets: tuple[PlannedBudget, ...] = ()

    @property
    def names(self) -> list[str]:
        """All names of the parameters that are penalized, or ranked by a budget."""
        penalized = [name for entry in self.entries for name in (entry.name, *entry.aliases)]
        return [*penalized, *(name for planned in self.budgets for name in planned.names)]

    def __iter__(self) -> Iterator[Entry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __str__(self) -> str:
        return f"{self._table()}{self._notes()}"

    def _repr_html_(self) -> str:
        return in_html([self._table(), *self._notes().splitlines()])

    def _table(self) -> Table:
        header = ["parameter", "shape", "groups", "penalty", "strength", "how"]
        rows = [entry_cells(entries) for entries in self.families()]
        return Table(header, rows + [row for planned in self.budgets for row in planned.rows()])

    def _notes(self) -> str:
        """Return the lines on budgets and on matrices that no rule names, each after a line break."""
        lines = "".join(planned.line() for planned in self.budgets)
        names, sizes = [name for name, _ in self.unnamed], [size for _, size in self.unnamed]
        spanning = any(own.budget.coupled for own in self.budgets) or any(coupled_of(each.penalty) for each in self)
        read = ", though `shrink` cuts what reads the channels" if spanning else ""
        return lines + names_note(f"no rule names these matrices ({sum(sizes):,} weights){read}", names)

    def at(self, update: int) -> "Plan":
        """Return what is penalized at an update: of rules that are over by then, what comes after, if anything."""
        stages = (entry.at(update) for entry in self.entries)
        return replace(self, entries=tuple(entry for entry in stages if entry is not None))

    def penalties(self, update: int = 0) -> dict[str, Penalty]:
        """Return what each parameter is penalized by at an update, by name; with the strengths that controls have now.

        >>> from shrinkage import L1, Bound
        >>> resolve(nn.Linear(2, 2), L1(Bound(6.0))).penalties()["weight"].strength
        0.0
        """
        return {entry.name: entry.penalty.at(update) for entry in self.at(update)}

    def frozen(self, update: int) -> "Plan":
        """Return the entries of rules whose zeros stay at an update."""
        return replace(self, entries=tuple(entry for entry in self.entries if entry.is_over(update)))

    def families(self) -> list[list[Entry]]:
        """Return the entries whose groups are coupled together, and every other one by itself."""
        found: dict[object, list[Entry]] = {}
        for entry in self.entries:
            coupled = coupled_of(entry.penalty)
            family = None if coupled is None else next(each for each in coupled.families() if entry.name in each)
            found.setdefault(entry.name if family is None else (id(coupled), family), []).append(entry)
        return list(found.values())

    def blocks(self, held: Mapping[str, Tensor]) -> list[tuple[list[str], Penalty]]:
        """Return what is penalized together of the parameters in `held`, by name; of coupled ones, what is trained."""
        found = []
        for entries in self.families():
            alone = coupled_of(entries[0].penalty) is None
            names = [e.name for e in entries if e.name in held and (alone or held[e.name].requires_grad)]
            found += [(names, entries[0].penalty)] if names else []
        return found


def entry_cells(entries: Sequence[Entry]) -> list[str]:
    """Return the row of one entry, or of those of one family, in the printed plan."""
    entry, *_ = entries
    coupled = coupled_of(entry.penalty)
    name = " = ".join((entry.name, *entry.aliases))
    penalty, strength, groups = entry.penalty.describe(None if coupled else entry.shape)
    shape = "lazy" if entry.shape is None else shape_text(entry.shape)
    if coupled is not None:
        name, shape, groups = family_cells(coupled, [each.name for each in entries])
    if entry.until == 0:
        penalty, strength = "-", "-"
    return [name, shape, groups, penalty, strength, how_text(entry)]


def how_text(entry: Entry) -> str:
    """Return how the penalty of one entry enters the step, and until when, in words."""
    if entry.until == 0 and entry.after is None:
        return "zeros stay"
    every = "" if entry.every == 1 else f", every {entry.every} steps"
    until = "" if entry.until is None else f", until {entry.until}"
    if entry.after is not None:
        penalty, strength, _ = entry.after.describe(None)
        until += f", then {penalty} {strength}"
    return f"{entry.how}{every}{until}"


def resolve(model: nn.Module, rules: Rules, how: How = "proximal") -> Plan:
    """Return which parameters of `model` the rules penalize; the first rule that matches a name wins.

    Raises:
        SelectionError: a rule matches nothing or is never the first to match; a tied parameter meets two rules.
        GroupError: a parameter does not fall into the groups of its penalty.
        ParameterError: a selected parameter is not floating point, or is computed by a parametrization.
    """
    by_parameter: dict[int, list[tuple[NamedParameter, Rule]]] = {}
    candidates = list(named_parameters(model))
    known = [prepared_rule(rule, candidates) for rule in as_rules(rules, how)]
    with told_with_errors(model):
        winners = selected(model, known)
    for candidate, rule in winners:
        if rule.penalty is not None:
            check_not_computed(candidate)
        if candidate.parameter is not None:
            by_parameter.setdefault(id(candidate.parameter), []).append((candidate, rule))
    entries = (entry_of(names) for names in by_parameter.values())
    found = tuple(entry for entry in entries if entry is not None)
    return Plan(found, tuple(unnamed_matrices(candidates, by_parameter)), budgets_of(list(by_parameter.values())))


def budgets_of(found: Sequence[Sequence[tuple[NamedParameter, Rule]]]) -> tuple[PlannedBudget, ...]:
    """Return the budgets of parameters, each with the rules that its names met; one object is one budget."""
    ranked: dict[int, tuple[Budget, list[list[NamedParameter]]]] = {}
    for names in found:
        budget = names[0][1].penalty
        if isinstance(budget, Budget):
            ranked.setdefault(id(budget), (budget, []))[1].append([candidate for candidate, _ in names])
    return tuple(planned_budget(budget, each) for budget, each in ranked.values())


def prepared_rule(rule: Rule, candidates: Sequence[NamedParameter]) -> Rule:
    """Return `rule` with groups that know their sizes, where they span parameters, and with controls at work."""
    penalty, after = sized(rule.penalty, candidates), sized(rule.after, candidates)
    penalty = at_work(penalty, together=True) if isinstance(penalty, Penalty) else penalty
    return replace(rule, penalty=penalty, after=at_work(after, together=True) if isinstance(after, Penalty) else None)


def unnamed_matrices(candidates: Sequence[NamedParameter], named: Container[int]) -> Iterator[tuple[str, int]]:
    """Yield name and size of each trainable parameter of two dimensions or more whose id is not `named`."""
    seen: set[int] = set()
    for candidate in candidates:
        parameter = candidate.parameter
        if parameter is None or id(parameter) in named or id(parameter) in seen or nn.parameter.is_lazy(parameter):
            continue
        seen.add(id(parameter))
        if parameter.requires_grad and parameter.dim() >= 2:
            yield candidate.name, parameter.numel()


def selected(model: nn.Module, rules: Sequence[Rule]) -> list[tuple[NamedParameter, Rule]]:
    """Return the names of parameters that a rule selects, each with the first that does."""
    candidates = list(named_parameters(model))
    for candidate in candidates:
        check_stepped(candidate.name, candidate.parameter)
    selectors = [rule.selector(model) for rule in rules]
    winners = first_matches(selectors, candidates)
    won = {c.name: selectors[i] for c, i in zip(candidates, winners, strict=True) if i is not None}
    for coupled in filter(None, (coupled_of(rule.penalty) for rule in rules)):
        check_won(coupled, won)
    return [(each, rules[winner]) for each, winner in zip(candidates, winners, strict=True) if winner is not None]


def warn_of_unpenalized(model: nn.Module, rules: Rules, how: How) -> None:
    """Warn of layers that a model hides, and of every rule that selects frozen parameters only, as PEFT leaves them."""
    warn_of_unregistered(model)
    by_rule: dict[int, list[NamedParameter]] = {}
    ordered = as_rules(rules, how)
    warn_of_late_ends(rule.penalty for rule in ordered)
    for candidate, rule in selected(model, ordered):
        by_rule.setdefault(id(rule), []).append(candidate)
    for rule in ordered:
        found = by_rule[id(rule)]
        if rule.penalty is not None and all(is_frozen(candidate.parameter) for candidate in found):
            selector = selector_text(rule.selector(model))
            warn_user(
                f"the rule {selector} matches frozen parameters only ({found[0].name!r} ...): nothing is penalized "
                "until they require a gradient; adapters trained instead, such as 'lora_A', have their own names"
            )


def entry_of(names: Sequence[tuple[NamedParameter, Rule]]) -> Entry | None:
    """Return the entry of one parameter from all its names and the rules they met; None if it is left alone."""
    (first, rule), *others = names
    for other, other_rule in others:
        check_same_rule(first.name, other.name, rule, other_rule)
    if rule.penalty is None or first.parameter is None:
        return None
    check_parameter(first.name, first.parameter)
    if isinstance(rule.penalty, Budget):
        check_ranked(first.name, first.parameter, rule.penalty)
        return None
    lazy = nn.parameter.is_lazy(first.parameter)
    shape = None if lazy else tuple(first.parameter.shape)
    check_flat_shard(first.name, first.parameter, rule.penalty)
    if shape is not None:
        check_shape(first.name, shape, rule.penalty)
    penalty = rule.penalty.bound(first.name, first.parameter)
    check_flat_shard(first.name, first.parameter, penalty)
    if shape is not None and penalty is not rule.penalty:  # it may have found a reference
        check_shape(first.name, shape, penalty)
    aliases = tuple(other.name for other, _ in others)
    after = None if rule.after is None else at_work(rule.after.bound(first.name, first.parameter), together=False)
    if shape is not None and after is not None:
        check_shape(first.name, shape, after)
    own = at_work(penalty, together=False)
    return Entry(first.name, aliases, shape, own, rule.how, rule.every, rule.until, after, rule.label)


def check_ranked(name: str, parameter: Tensor, budget: Budget) -> None:
    """Raise if `budget` cannot rank the elements of a parameter, or the groups that it falls into."""
    if is_flat_shard(parameter):
        raise ParameterError(
            f"{name!r} cannot have a Budget: FullyShardedDataParallel leaves a flat shard of it to this process, which "
            "does not know what the others hold; use fully_shard"
        )
    if budget.groups is None or nn.parameter.is_lazy(parameter):
        return
    coupled = coupled_of(budget)
    try:
        budget.groups.layout(parameter.shape) if coupled is None else coupled.check(name, tuple(parameter.shape))
    except GroupError as error:
        raise GroupError(f"{name!r} of shape {tuple(parameter.shape)} cannot have {budget}: {error}") from None


def check_shape(name: str, shape: Sequence[int], penalty: Penalty) -> None:
    """Raise `GroupError` with the parameter's name if `penalty` cannot penalize a tensor of `shape`."""
    coupled = coupled_of(penalty)
    if coupled is not None:
        coupled.check(name, shape)
        return
    try:
        penalty.check_shape(shape)
    except GroupError as error:
        raise GroupError(f"{name!r} of shape {tuple(shape)} cannot be penalized by {penalty}: {error}") from None
