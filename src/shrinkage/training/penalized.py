"""The penalized parameters of one optimizer: found by their names, and with the strengths of one update."""

from collections.abc import Container, Iterable, Mapping, Sequence
from typing import NamedTuple
from weakref import ref

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy
from torch.optim import Optimizer

from shrinkage.distributed.dtensor import put_shards_back
from shrinkage.distributed.flat_parameters import check_flat_shard, check_stepped, is_flat_shard
from shrinkage.distributed.group_sharding import GroupSharding
from shrinkage.errors import AttachmentError
from shrinkage.optimizers.introspection import group_indices, stepped
from shrinkage.penalties.base import Penalty
from shrinkage.selection.how import How
from shrinkage.selection.named_parameters import NamedParameter, named_parameters
from shrinkage.selection.plan import Entry, Plan, check_shape
from shrinkage.selection.planned_budgets import RankedEntry
from shrinkage.selection.rules import check_same_rule
from shrinkage.selection.supported_parameters import check_not_computed


class Place(NamedTuple):
    """Where a model holds a parameter: a module, by weak reference, and the parameter's name in it."""

    module: ref[nn.Module]
    attribute: str

    def holds(self, parameter: nn.Parameter) -> bool:
        """Return whether `parameter` is still there, as far as the module is."""
        module = self.module()
        return module is None or module._parameters.get(self.attribute) is parameter

    def holds_any(self, identities: Container[int]) -> bool:
        """Return whether one of the parameters that have these ids is there now."""
        module = self.module()
        return module is not None and id(module._parameters.get(self.attribute)) in identities


NO_GROUP = -1  # of a parameter that is not in the optimizer


class RankedParameter(NamedTuple):
    """One parameter of an optimizer that a budget ranks: its name, its parameter group, and where it was found."""

    name: str
    parameter: nn.Parameter
    group: int
    places: tuple[Place, ...] = ()
    lazy: bool = False

    @property
    def stale(self) -> bool:
        """Whether the model holds something else in the parameter's place by now, or the parameter came into being."""
        moved = any(not place.holds(self.parameter) for place in self.places)
        return moved or (self.lazy and not is_lazy(self.parameter))


class PenalizedParameter(NamedTuple):
    """One parameter of an optimizer that is penalized.

    Args:
        name: of the parameter.
        penalty: at every update; its strengths may be schedules.
        how: the penalty enters the step.
        parameter: what is penalized.
        group: the index of its parameter group.
        places: where it was found.
        lazy: whether it had no shape yet then.
        group_sharding: how its groups cross processes; None if each process can penalize its own shard.
        every: its proximal operator acts at every so many steps.
        until: the update from which the penalty is over and its zeros stay; None if there is none.
        second: the same parameter with what is penalized from then on; None if nothing is.
    """

    name: str
    penalty: Penalty
    how: How
    parameter: nn.Parameter
    group: int
    places: tuple[Place, ...] = ()
    lazy: bool = False
    group_sharding: GroupSharding | None = None
    every: int = 1
    until: int | None = None
    second: "PenalizedParameter | None" = None

    @property
    def after(self) -> Penalty | None:
        """What is penalized from `until` on."""
        return None if self.second is None else self.second.penalty

    @property
    def changes(self) -> bool:
        """Whether the update count decides what is penalized."""
        return any(target.penalty.scheduled for target in self.stages) or bool(self.until)

    @property
    def stages(self) -> "list[PenalizedParameter]":
        """What is penalized: at first, and from `until` on."""
        first = [] if self.until == 0 else [self]
        return first if self.second is None else [*first, self.second]

    @property
    def stale(self) -> bool:
        """Whether the model holds something else in the parameter's place by now, or the parameter came into being."""
        for place in self.places:  # plain loops: this is asked before every step
            if not place.holds(self.parameter):
                return True
        return self.lazy and not is_lazy(self.parameter)

    @property
    def block(self) -> object:
        """What it has in common with the parameters that share groups with it, and with no others."""
        return self.name if self.group_sharding is None else self.group_sharding.block

    @property
    def before(self) -> bool:
        """Whether the penalty acts before the step, through its derivative, and not after it."""
        return self.how == "gradient" or (self.how == "decoupled" and self.penalty.smooth)

    def also_at(self, places: Sequence[Place]) -> "PenalizedParameter":
        """Return the same, which has to stay at these places too."""
        return self._replace(places=tuple(dict.fromkeys((*self.places, *places))))


class Found(NamedTuple):
    """What is penalized in one optimizer, and the places that rules penalize too but that hold nothing it steps.

    `ranked` is what each budget of the plan ranks.
    """

    targets: list[PenalizedParameter]
    elsewhere: list[Place]
    ranked: Sequence[Sequence[RankedParameter]] = ()


def places_of(names: Sequence[NamedParameter], parameter: Tensor) -> tuple[Place, ...]:
    """Return where `parameter` has to stay, of the `names` that it was found under.

    A distributed one may come and go: during an evaluation, and after it, FSDP's modules hold gathered ones.
    """
    sharded = is_sharded_parameter(parameter)
    return () if sharded else tuple(Place(ref(name.module), name.attribute) for name in names)


def is_sharded_parameter(parameter: Tensor) -> bool:
    """Return whether a process holds a shard of `parameter`; a module may hold something else in its place."""
    return type(parameter) not in (nn.Parameter, UninitializedParameter) or is_flat_shard(parameter)


def targets_of(model: nn.Module, plan: Plan, optimizer: Optimizer, given: Optimizer) -> Found:
    """Return what `plan` penalizes in `optimizer`, found by names in the model as it is now.

    Names that were tied when the plan was made may have come apart, and others may have been tied since. The optimizer
    is one of those that do the work of the `given` one: it may step none of them, but together they have to.
    """
    put_shards_back(model)
    held = {candidate.name: candidate for candidate in named_parameters(model)}
    for name, candidate in held.items():
        check_stepped(name, candidate.parameter)
    groups = group_indices(optimizer)
    targets: dict[int, PenalizedParameter] = {}
    elsewhere: list[Place] = []
    ids: set[int] = set()
    for entry in plan:
        for candidate in still_in(held, entry):
            parameter = candidate.parameter
            ids.add(id(parameter))
            if parameter is not None and id(parameter) in groups:
                target = target_of(entry, candidate, parameter, groups[id(parameter)])
                first = targets.setdefault(id(parameter), target)
                check_same_rule(first.name, candidate.name, first, target, " by now")
                targets[id(parameter)] = first.also_at(target.places)
            else:
                elsewhere.append(Place(ref(candidate.module), candidate.attribute))
    ranked = []
    for planned in plan.budgets:
        found = [candidate for entry in planned.entries for candidate in still_in(held, entry)]
        ids.update(id(candidate.parameter) for candidate in found)
        ranked.append(ranked_of(found, groups))
        elsewhere += [Place(ref(each.module), each.attribute) for each in found if id(each.parameter) not in groups]
    if not targets and not any(ranked) and stepped(given).isdisjoint(ids):
        entries: list[Entry | RankedEntry] = [
            *plan.entries,
            *(entry for planned in plan.budgets for entry in planned.entries),
        ]
        names = ", ".join(f"{entry.name!r} {entry.shape}" for entry in entries[:3])
        raise AttachmentError(
            f"this {type(given).__name__} holds none of the {len(entries)} penalized parameters ({names} ...); "
            "make it from the parameters of the same model, after whatever replaced them"
        )
    return Found(list(targets.values()), elsewhere, ranked)


def still_in(held: Mapping[str, NamedParameter], entry: Entry | RankedEntry) -> list[NamedParameter]:
    """Return what a model holds under the names of `entry`, or raise `AttachmentError`."""
    found = [held[name] for name in (entry.name, *entry.aliases) if name in held]
    if not found:
        raise AttachmentError(
            f"{entry.name!r} of shape {entry.shape} is not in the model any more; detach() this regularizer "
            "and make a new one for the model as it is now"
        )
    for candidate in found:
        check_not_computed(candidate)
    return found


def ranked_of(found: Sequence[NamedParameter], groups: Mapping[int, int]) -> list[RankedParameter]:
    """Return what a budget ranks in one optimizer, once each; what takes no gradient is left out."""
    ranked: dict[int, RankedParameter] = {}
    for candidate in found:
        parameter = candidate.parameter
        if parameter is None or id(parameter) not in groups or not parameter.requires_grad:
            continue
        places = places_of([candidate], parameter)
        own = RankedParameter(candidate.name, parameter, groups[id(parameter)], places, is_lazy(parameter))
        first = ranked.setdefault(id(parameter), own)
        ranked[id(parameter)] = first._replace(places=tuple(dict.fromkeys((*first.places, *places))))
    return list(ranked.values())


def names_of(model: nn.Module, targets: Iterable[PenalizedParameter | RankedParameter]) -> set[str]:
    """Return all names in `model` of parameters that are penalized."""
    found = {id(target.parameter): target.name for target in targets}
    tied = {name.name for name in named_parameters(model) if id(name.parameter) in found}
    return tied | set(found.values())


def target_of(entry: Entry, candidate: NamedParameter, parameter: nn.Parameter, group: int) -> PenalizedParameter:
    """Return the penalty of one parameter, found under one name, in one group of an optimizer."""
    check_flat_shard(candidate.name, parameter, entry.penalty)
    lazy = is_lazy(parameter)
    if not lazy:
        check_shape(candidate.name, parameter.shape, entry.penalty)
    penalty = entry.penalty.bound(candidate.name, parameter)  # the model may have moved to another device
    places = places_of([candidate], parameter)
    target = PenalizedParameter(candidate.name, penalty, entry.how, parameter, group, places, lazy, every=entry.every)
    if entry.until is None:
        return target
    second = None if entry.after is None else target._replace(penalty=entry.after.bound(candidate.name, parameter))
    return target._replace(until=entry.until, second=second)


def with_shared_penalties(targets: Iterable[PenalizedParameter]) -> list[PenalizedParameter]:
    """Return `targets` in which equal penalties are one object, by which small parameters are penalized together.

    Those that hold tensors are left alone: comparing sharded tensors needs communication.
    """
    known: dict[Penalty, Penalty] = {}

    def shared(penalty: Penalty) -> Penalty:
        return known.setdefault(penalty, penalty) if penalty.with_tensors(Tensor.detach) is penalty else penalty

    def with_shared(target: PenalizedParameter) -> PenalizedParameter:
        second = None if target.second is None else with_shared(target.second)
        return target._replace(penalty=shared(target.penalty), second=second)

    return list(map(with_shared, targets))
