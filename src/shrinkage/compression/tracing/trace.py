"""What is known of the channels of a graph, while they are followed through it and afterwards."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, fx

from shrinkage.compression.tracing.channels import Channels, axes_of, combined, fixed, made, reshaped
from shrinkage.compression.tracing.disjoint_sets import DisjointSets

Rule = Callable[..., Any]


class Contraction(NamedTuple):
    """A sum over channels: the place where the values of channels are used up.

    `labels` are those of the channels that are summed over, one per index along `axis` of the node `data`; they meet
    the indices along `weight_axis` of the node `weight`, which have `weight_labels`. `rows` is the axis of `weight`
    that makes the channels of the output, which lie along the axis `out`. Where zeros at the border are summed, it is
    `padded`.
    """

    node: fx.Node
    data: fx.Node
    axis: int
    weight: fx.Node
    weight_axis: int
    labels: Tensor
    weight_labels: Tensor
    rows: int
    out: int
    bias: fx.Node | None = None
    padded: bool = False


@dataclass(frozen=True, eq=False)
class Sum:
    """A sum over channels that no weight reads by rows: of products, or of what one value has.

    `labels` are those of the channels, one per index along an axis of each of `sides`, pairs of a node and an axis; a
    shorter axis has the same again and again. A channel that is zero on one of them makes no difference, and nothing
    takes up another constant.
    """

    node: fx.Node
    sides: tuple[tuple[fx.Node, int], ...]
    labels: Tensor


class Literal(NamedTuple):
    """A length that a model's code gives as a number, in the module at `path`, for the axis that `factor` labels."""

    path: str
    length: int
    factor: Tensor
    axis: int


class Absorber(NamedTuple):
    """A number that takes up a factor: a parameter, or one of a module that has `value`, of the dotted `name`.

    The latter is an attribute, or `in_code` of the method of that name. It is multiplied by the `power` of the factor,
    and a parameter to which the code adds an `offset` together with that.
    `use` is where it enters the graph: a node and what is given to it, or the placeholder of a parameter and its user.
    """

    name: str
    use: tuple[fx.Node, Any]
    power: float
    value: float | None = None
    offset: float = 0.0
    in_code: bool = False


class Divisor(NamedTuple):
    """A mean over channels that only divides: it takes up that it is one of fewer numbers, by its `absorbers`.

    `labels` are those of the channels, for each axis. Without zero channels it is that of the others, larger by the
    factor of how many there were to how many are left.
    """

    node: fx.Node
    labels: tuple[Tensor, ...]
    absorbers: tuple[Absorber, ...]


@dataclass(eq=False)
class Trace:
    """What is known of the channels of a graph, while and after it is followed.

    A rule is called as `rule(trace, *arguments, **keywords)` with the operator's own arguments, in which each tensor is
    its `Channels`; it returns the `Channels` of the output, or a tuple of them. `absorbers` tells of nodes that take
    means what takes up that these are of fewer channels, or in words why nothing does. `lengths` are the weight norms
    whose lengths take up what goes of their directions.
    """

    labels: DisjointSets
    rules: dict[Any, Rule]
    node: fx.Node = field(init=False)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    contractions: list[Contraction] = field(default_factory=list)
    sums: list[Sum] = field(default_factory=list)
    lookups: list[fx.Node] = field(default_factory=list)
    splits: list[tuple[Tensor, tuple[int, ...]]] = field(default_factory=list)
    literals: list[Literal] = field(default_factory=list)
    multiples: list[tuple[fx.Node, int]] = field(default_factory=list)
    unknown: dict[str, int] = field(default_factory=dict)
    from_data: set[fx.Node] = field(default_factory=set)
    absorbers: Mapping[fx.Node, tuple[Absorber, ...] | str] = field(default_factory=dict)
    divisors: list[Divisor] = field(default_factory=list)
    lengths: Collection[fx.Node] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the output; of the first one, where there are several."""
        return shapes_of(self.node)[0]

    @property
    def operator(self) -> Any:
        """The operator that is called, one overload of it."""
        return self.node.target

    @property
    def path(self) -> str:
        """The dotted name of the module whose code calls the operator."""
        return path_of(self.node)

    @property
    def place(self) -> str:
        """The operator and the module whose code calls it, in words."""
        return self.because(f" at `{getattr(self.operator, 'overloadpacket', self.operator)}`")

    def because(self, text: str) -> str:
        """Return `text` with the name of the module."""
        return f"{text}, in `{self.path or 'the model'}`"

    def fix(self, channels: Channels, axes: Iterable[int], text: str) -> Channels:
        """Return `channels` when none of `axes` may change its length, and note `text` as the reason."""
        return fixed(self.labels, channels, axes, self.because(text))

    def pin(self, value: Any, text: str) -> None:
        """Note that nothing that `value`, or a tuple or list of values, holds can go."""
        for factor in labels_in(value):
            self.labels.pin(factor, self.because(text))

    def combine(self, operands: Sequence[Any], shape: Sequence[int] | None = None) -> Channels:
        """Return the channels of a pointwise function of those of the `operands` that are tensors."""
        tensors = [operand for operand in operands if isinstance(operand, Channels)]
        return combined(self.labels, tensors, self.shape if shape is None else shape, self.because(FIXED), self.place)

    def make(self, factors: Iterable[Tensor], shape: Sequence[int] | None = None) -> Channels:
        """Return the channels of the output with `factors`."""
        return made(self.labels, self.shape if shape is None else shape, factors, self.place)

    def reshape(self, channels: Channels, shape: Sequence[int], sizes: Sequence[int]) -> Channels:
        """Return `channels` in `shape`, where the model's code says `sizes`: -1 for a length that follows by itself."""
        result = reshaped(self.labels, channels, shape, self.place)
        for factor in result.factors:
            axes = axes_of(factor)
            if len(axes) > 1:
                follows = tuple(axis for axis in axes if sizes[axis] == -1)
                self.splits.append((factor, follows))
            for axis in axes:
                if sizes[axis] != -1:
                    self.literals.append(Literal(self.path, shape[axis], factor, axis))
        return result

    def contract(
        self, left: Channels, axis: int, right: Channels, other: int, text: str
    ) -> tuple[Tensor, Tensor] | None:
        """Make the channels along `axis` of `left` one with those along `other` of `right`; return both, flat.

        None, and what there is stays, where one of the two has a fixed length.
        """
        mine, theirs = flat(self, left, axis, text), flat(self, right, other, text)
        if mine is None or theirs is None:
            for labels in (mine, theirs):
                if labels is not None:
                    self.labels.pin(labels, self.because(f"{FIXED} where it is summed over"))
            return None
        self.labels.unite(mine, theirs)
        return mine, theirs


FIXED = "meets a tensor of fixed length"
MEAN = "mean over channels"


def flat(trace: Trace, channels: Channels, axis: int, text: str) -> Tensor | None:
    """Return the labels along `axis` alone; where they extend along other axes too, those along `axis` are one."""
    axis %= len(channels.shape)
    factor = channels.along(axis)
    if factor is None:
        return None
    if len(axes_of(factor)) > 1:
        fixed(trace.labels, channels, [axis], trace.because(text))
        return None
    return factor.reshape(-1)


def shapes_of(node: fx.Node) -> list[tuple[int, ...]]:
    """Return the shapes of the tensors that `node` puts out."""
    value = node.meta.get("val")
    tensors = value if isinstance(value, tuple | list) else [value]
    return [tuple(tensor.shape) for tensor in tensors if isinstance(tensor, Tensor)]


def name_of(node: fx.Node) -> str:
    """Return the name of the operator of `node`."""
    return str(getattr(node.target, "overloadpacket", node.target)).removeprefix("aten.").strip("_")


def mutates(node: fx.Node) -> bool:
    """Return whether `node` writes into one of its operands."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def path_of(node: fx.Node) -> str:
    """Return the dotted name of the module whose code calls `node`."""
    stack = node.meta.get("nn_module_stack") or {"": ("", None)}
    return str(list(stack.values())[-1][0])


def labels_in(value: Any) -> list[Tensor]:
    """Return all labels that `value`, or a tuple or list of values, holds."""
    if isinstance(value, tuple | list):
        return [factor for item in value for factor in labels_in(item)]
    return list(value.factors) if isinstance(value, Channels) else []
