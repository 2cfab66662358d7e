"""Which channels of a model can go, as groups: those that make them and nothing pins."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from shrinkage.compression.calls.inputs import Call
from shrinkage.compression.plans.tensors import tensors_of, zero_slices
from shrinkage.compression.removal.attributes import alike, changed_attributes, equal_by_chance
from shrinkage.compression.removal.bisection import culprits
from shrinkage.compression.removal.channel_kinds import by_label, kinds_of
from shrinkage.compression.removal.free_axes import free_axes, spared
from shrinkage.compression.removal.reading_groups import ReadingGroups, reading_groups
from shrinkage.compression.removal.summary import KeptZeros
from shrinkage.compression.removal.trial import Trial
from shrinkage.compression.tracing.coupling import Coupling, couple
from shrinkage.compression.tracing.disjoint_sets import DisjointSets, distinct
from shrinkage.compression.tracing.parameter_axes import Axis
from shrinkage.diagnostics.zero_layers import NAMED, in_backticks
from shrinkage.errors import GroupError, warn_user
from shrinkage.penalties.coupled_groups import NONE, Coupled, Member


def channel_groups(
    model: nn.Module, call: Call, pin: Sequence[str], *, uniform: bool = False, residual: bool = False
) -> Coupled:
    """Return the groups of all that makes a channel that can go; raises and warns as `CoupledChannels` says."""
    args, kwargs = call
    coupling = couple(model, args, example_kwargs=kwargs, pin=pin)
    if not residual:
        coupling = coupling._replace(pinned={**coupling.averaged, **coupling.pinned})
    for path, error in coupling.unexported.items():
        warn_user(
            f"{f'`{path}`' if path else 'the model'} cannot be exported as a whole, so that its children are, and "
            f"channels that pass between them are in no group: {error}"
        )
    free = free_axes(coupling, model)
    roots = {root for channels in free.values() for root in distinct(channels).tolist()} - set(coupling.pinned)
    held = dict.fromkeys(_frozen(coupling, model), FROZEN)
    held |= dict.fromkeys(_summed_alone(coupling, model, free), ALONE)
    roots -= held.keys()
    stuck, sized = _stuck(coupling, model, call, free, roots)
    held |= dict.fromkeys(stuck, FAILS)
    roots -= stuck
    reading = reading_groups(coupling, model, free, roots)
    held |= dict.fromkeys(reading.held.nonzero().flatten().tolist(), LOUD)
    roots -= held.keys()
    numbers = partial(_numbers, coupling, reading, number=by_label(coupling, [[root] for root in roots]))
    held |= dict.fromkeys(spared(coupling, model, free | reading.axes, numbers), SPARED)
    roots -= held.keys()
    if not roots:
        raise GroupError(
            "expected a model of which some channel can go and is trained, found none. What holds the most parameters: "
            + "; ".join(most_held(coupling, model, held))
        )
    groups = _across_layers(coupling, roots) if uniform else [[root] for root in sorted(roots)]
    if not groups:
        raise GroupError(
            "expected layers of which all of a kind can lose channels with the same numbers, found none: "
            "leave out uniform"
        )
    number = by_label(coupling, groups)
    members = [Member(name, dim, _numbers(coupling, reading, (name, dim), number)) for name, dim in free | reading.axes]
    kinds = kinds_of(coupling, model, call, [pin] if isinstance(pin, str) else pin, groups, sized=sized)
    return Coupled([member for member in members if max(member.groups) >= 0], kinds=kinds)


def _numbers(coupling: Coupling, reading: ReadingGroups, axis: Axis, number: Tensor) -> list[int]:
    """Return the number of the group of each index along `axis`, by label in `number`; -1 for those of none."""
    channels, telling = coupling.axes[axis], coupling.telling(*axis)
    rows = slice(telling.start, telling.stop)
    numbers = torch.full_like(channels, NONE)
    numbers[rows] = torch.where(reading.includes(axis, channels[rows]), number[channels[rows]], NONE)
    found: list[int] = numbers.tolist()
    return found


def most_held(coupling: Coupling, model: nn.Module, held: Mapping[int, str]) -> list[str]:
    """Return in words the reasons for which the most parameters have no channel that can go, the largest first.

    Those of channels that nothing pins are in `held`.
    """
    sizes: dict[str, dict[str, float]] = {}
    places: dict[str, dict[str, None]] = {}  # in the order of the model
    tensors, seen = tensors_of(model), set[int]()
    for (name, dim), channels in coupling.axes.items():
        tensor = tensors[name]
        if not isinstance(tensor, nn.Parameter) or id(tensor) in seen or dim != coupling.making_axis(name):
            continue
        seen.add(id(tensor))
        for root in channels.tolist():
            reason = coupling.pinned.get(root, held.get(root, ""))
            reason, _, place = reason.partition(", in ")
            places.setdefault(reason or FROZEN, {})[place] = None
            names = sizes.setdefault(reason or FROZEN, {})
            names[name] = names.get(name, 0) + tensor.numel() / len(channels)
    order = sorted(sizes, key=lambda reason: -sum(sizes[reason].values()))
    texts = []
    for reason in order[:NAMED]:
        largest = sorted(sizes[reason], key=lambda name: -sizes[reason][name])
        advice = KeptZeros("", 0, reason).advice
        where = [place.strip("`") for place in places[reason] if place]
        wherein = f", in {in_backticks(where)}" if where else ""
        count = f"{round(sum(sizes[reason].values())):,} parameters of {in_backticks(largest)}"
        texts.append(f"{reason}{wherein} ({count}){f': {advice}' if advice else ''}")
    return texts


def _across_layers(coupling: Coupling, roots: set[int]) -> list[list[int]]:
    """Return the channels that can go as groups: those with the same place in all layers of a kind, if all can."""
    sets = DisjointSets()
    sets.new(coupling.labels.count)
    for axes in coupling.of_a_kind():
        first, *others = (coupling.axes[axis] for axis in axes)
        for other in others:
            sets.unite(first, other)
    found: dict[int, list[int]] = {}
    involved = distinct(torch.cat(list(coupling.axes.values())))
    for root, one in zip(involved.tolist(), sets.find(involved).tolist(), strict=True):
        found.setdefault(one, []).append(root)
    return [group for group in found.values() if roots.issuperset(group)]


FAILS = "the model fails, or puts out other numbers, without some of them: its code has a length as a number"
FROZEN = "not trained, since requires_grad is False"
SPARED = "the last channel of a weight over its norm, which without it could be 0 / 0"
ALONE = "a weight that is summed by itself can be in no group with them"
LOUD = "a constant other than zero where a weight reads them that has no bias to take it up, and can be in no group"


def _frozen(coupling: Coupling, model: nn.Module) -> set[int]:
    """Return the channels of rows that are not trained, and not zero: they are taken for such as never become zero."""
    found: set[int] = set()
    tensors = tensors_of(model)
    for (name, dim), channels in coupling.axes.items():
        tensor = tensors[name]
        reads = (name, dim) in coupling.consumed or (name, dim) in coupling.measured
        makes = tensor.dim() > 1 and not reads and isinstance(tensor, nn.Parameter)
        if makes and not tensor.requires_grad and not tensor.is_meta:
            found.update(distinct(channels[~zero_slices(tensor, dim).cpu()]).tolist())
    return found


def _summed_alone(coupling: Coupling, model: nn.Module, free: Iterable[Axis]) -> set[int]:
    """Return the channels along which a weight is summed that is in no group with them, and not zero."""
    tensors, found = tensors_of(model), set[int]()
    grouped = {(id(tensors[name]), dim) for name, dim in free}  # a tied one has another name there
    elsewhere = {own for own, _ in grouped}
    for name, dim in coupling.summed:
        tensor, channels = tensors[name], coupling.axes[name, dim]
        if (id(tensor), dim) in grouped:
            continue
        if not tensor.is_meta:
            found.update(distinct(channels[~zero_slices(tensor, dim).cpu()]).tolist())
        elif id(tensor) in elsewhere:  # numbers that are not known yet are taken for others than zero
            found.update(distinct(channels).tolist())
    return found


def _stuck(
    coupling: Coupling, model: nn.Module, call: Call, free: Mapping[Axis, Tensor], roots: set[int]
) -> tuple[set[int], bool]:
    """Return the channels that lie beside one without which the model fails, or gives other outputs than with zeros.

    The second result tells whether sizes in the code of copies without channels have to be corrected.
    """
    gone = torch.zeros(coupling.labels.count, dtype=torch.bool)
    multiples = {root: count for axis, count in coupling.multiples.items() for root in coupling.axes[axis].tolist()}
    for channels in free.values():
        own = [root for root in distinct(channels).tolist() if root in roots]
        count = max((multiples.get(root, 1) for root in own), default=1)
        if len(own) > count and not gone[own].any():
            gone[own[-count:]] = True
    trial = Trial(coupling, model, call, gone)
    if not trial.possible() or trial.fits():
        return set(), False
    trial.unchanged = equal_by_chance(coupling, model, gone, lambda held, names: trial.fits(held, names))
    if trial.fits():
        return set(), False
    every = frozenset[str]().union(*alike(changed_attributes(coupling, model, gone), model))
    for unchanged in dict.fromkeys((frozenset[str](), every, trial.unchanged)):
        if trial.fits(unchanged=unchanged, sized=True):
            return set(), True
    problem = trial.problem
    held, _ = culprits(coupling, gone, lambda held: trial.fits(held, sized=True))
    names = [(name, set(distinct(channels).tolist())) for (name, _), channels in free.items() if held[channels].any()]
    stuck = set().union(*(own for _, own in names)) & roots
    warn_user(
        f"{problem} when channels of {', '.join(name for name, _ in names)} go, so that they are in no group: "
        "where its code has a length as a number, give it as -1 or as an integer attribute of the module, and what it "
        "sums over channels has to be 0 for those that are zero, which an exponential is not"
    )
    return stuck, True
