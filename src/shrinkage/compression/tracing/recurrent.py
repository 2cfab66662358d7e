"""Recurrent layers in a graph, taken apart into what each gate reads and one step that stands for all."""

from collections.abc import Iterator, Sequence
from operator import getitem
from typing import Any, NamedTuple

from torch import fx

from shrinkage.compression.tracing.operators import aten
from shrinkage.compression.tracing.recurrent_calls import LAYERS
from shrinkage.compression.tracing.recurrent_cells import CELLS, Cell

ZEROS = {aten.zeros.default: 0, aten.new_zeros.default: 1}  # at which place of the arguments the sizes are
EMPTY = {aten.empty.memory_format: 0, aten.new_empty.default: 1}
SAME = (
    aten.index_select,
    aten.to,
    aten._to_copy,
    aten.clone,
    aten.detach,
    aten.alias,
    aten.lift_fresh_copy,
    aten.contiguous,
)


class Direction(NamedTuple):
    """The weights of one direction of a layer, or of a cell: of what enters, of what is fed back, of what is put out.

    Of the `gates` blocks of rows of the first two, and of the biases, that of the number `candidate` makes what is new.
    """

    gates: int
    candidate: int
    entering: fx.Node
    fed_back: fx.Node
    entering_bias: fx.Node | None = None
    fed_back_bias: fx.Node | None = None
    projection: fx.Node | None = None

    @property
    def of_gates(self) -> list[fx.Node]:
        """All that has rows for each gate."""
        given = (self.entering, self.fed_back, self.entering_bias, self.fed_back_bias)
        return [node for node in given if node is not None]


def recurrent_taken_apart(graph: fx.Graph) -> tuple[tuple[Direction, ...], ...]:
    """Take the recurrent layers and cells of `graph` apart, in place; return the directions of each, all layers'.

    The graph does not compute the same then, but what its outputs depend on is the same, and which units are silent.
    """
    found = []
    for node in list(graph.nodes):
        if node.target in LAYERS or node.target in CELLS:
            writer = Writer(graph, node, LAYERS.get(node.target) or CELLS[node.target])
            with graph.inserting_before(node):
                directions, results = _layers(writer) if node.target in LAYERS else _cell(writer)
            _replaced(writer, results)
            found.append(directions)
    for node in reversed(list(graph.nodes)):
        if not node.users and ("recurrent" in node.meta or node.target in EMPTY or _sizes_of_zeros(node)):
            graph.erase_node(node)
    return tuple(found)


class Writer(NamedTuple):
    """Writes nodes into `graph` that stand for `replaced`, a layer or a cell of a kind."""

    graph: fx.Graph
    replaced: fx.Node
    kind: Cell

    def write(self, target: Any, *args: Any, source: fx.Node | None = None) -> fx.Node:
        """Return a new node that calls `target`, in the name of the module that called `source`."""
        node = self.graph.call_function(target, args)
        value = target(*fx.map_arg(args, lambda each: each.meta["val"]))
        node.meta = {**(source or self.replaced).meta, "val": value, "recurrent": True}
        return node

    def several(self, target: Any, *args: Any) -> Iterator[fx.Node]:
        """Yield the outputs of an operator that has two."""
        node = self.write(target, *args)
        for place in (0, 1):
            yield self.write(getitem, node, place)

    def state(self, given: fx.Node, like: fx.Node, number: int | None) -> fx.Node:
        """Return a first state: of those that are `given` as one tensor the one that has the `number`.

        Where they are zeros, all but the first are made anew, so that other layers need not lose the same units. The
        first tells how many of them the code should ask for.
        """
        source = given
        while getattr(source.target, "overloadpacket", None) in SAME:
            source = source.args[0]  # type: ignore[assignment]
        place = _sizes_of_zeros(source)
        if place is not None and number != 0:
            made, sizes = place
            return self.write(
                aten.new_zeros.default, like, list(sizes[bool(number) :]), source=None if number else made
            )
        if number is None:
            return given
        if given.target is aten.stack.default and given.args[1:] in ((), (0,)):
            parts: Any = given.args[0]
            part: fx.Node = parts[number]
            return part
        return self.write(aten.select.int, given, 0, number)

    def step(self, x: fx.Node, own: Direction, given: Sequence[fx.Node], number: int | None) -> tuple[fx.Node, fx.Node]:
        """Return what one direction puts out, and its state after a step."""
        entering = self.write(aten.linear.default, x, own.entering, own.entering_bias)
        first, state = (self.state(each, entering, number) for each in (given[0], given[-1]))
        weights = own.fed_back, own.fed_back_bias, own.projection
        fed_back, state = self.several(self.kind.before, entering, *weights, first, state)
        gates = self.write(aten.linear.default, fed_back, own.fed_back, own.fed_back_bias)
        put_out, after = self.several(self.kind.step, entering, gates, state)
        if own.projection is not None:
            put_out = self.write(aten.linear.default, put_out, own.projection)
        return put_out, after


def _sizes_of_zeros(node: Any) -> tuple[fx.Node, Any] | None:
    """Return the node that makes a tensor of zeros, and its sizes; None for any other tensor.

    An empty one that is filled with zeros is one, as in `weight.new(layers, samples, units).zero_()`.
    """
    if node.target in ZEROS:
        return node, node.args[ZEROS[node.target]]
    made = node.args[0] if node.target is aten.zero_.default else None
    if made is not None and made.target in EMPTY:
        return made, made.args[EMPTY[made.target]]
    return None


def _cell(writer: Writer) -> tuple[tuple[Direction, ...], list[fx.Node]]:
    """Write one step of a cell; return its weights, and what it gives."""
    x: Any
    given: Any
    weights: Any
    x, given, *weights = writer.replaced.args
    own = Direction(writer.kind.gates, writer.kind.candidate, *weights)
    states = given if isinstance(given, list | tuple) else [given]
    return (own,), list(writer.step(x, own, states, None)[: len(states)])


def _layers(writer: Writer) -> tuple[tuple[Direction, ...], list[Any]]:
    """Write one step of all layers; return their weights, what is put out, and the last states, each a list."""
    given: Any = writer.replaced.args
    x, states, weights, biased, count, both, batch_first = given
    directions = _directions(writer.kind, weights, biased, count * (1 + both))
    last: list[tuple[fx.Node, ...]] = []
    x = writer.write(aten.transpose.int, x, 0, 1) if batch_first else x
    for layer in range(count):
        put_out = []
        for number in range(layer * (1 + both), (layer + 1) * (1 + both)):
            one, state = writer.step(x, directions[number], states, number)
            put_out.append(one)
            last.append(tuple(writer.write(aten.select.int, each, 0, -1) for each in (one, state)[: len(states)]))
        x = writer.write(aten.cat.default, put_out, -1) if both else put_out[0]
    if batch_first:  # and in memory as torch gives it: the exporter leaves out a `contiguous` before a view
        x = writer.write(aten.contiguous.default, writer.write(aten.transpose.int, x, 0, 1))
    return directions, [x, *(list(each) for each in zip(*last, strict=True))]


def _directions(kind: Cell, weights: Any, biased: bool, count: int) -> tuple[Direction, ...]:
    """Return the weights of layers by direction: torch lists them in a row."""
    size = len(weights) // count
    projected = size == (5 if biased else 3)
    found = []
    for start in range(0, len(weights), size):
        own: list[Any] = list(weights[start : start + size])
        projection = own.pop() if projected else None
        entering, fed_back, *biases = own
        one, other = biases or (None, None)
        found.append(Direction(kind.gates, kind.candidate, entering, fed_back, one, other, projection))
    return tuple(found)


def _replaced(writer: Writer, results: list[Any]) -> None:
    """Let all that reads the node that is replaced read `results`."""
    node, graph = writer.replaced, writer.graph
    if not isinstance(node.meta["val"], tuple | list):
        node.replace_all_uses_with(results[0])
        graph.erase_node(node)
        return
    for user in list(node.users):
        place: Any = user.args[1]
        _read_instead(writer, user, results[place])
        graph.erase_node(user)
    graph.erase_node(node)


def _read_instead(writer: Writer, node: fx.Node, result: Any) -> None:
    """Let all that reads `node` read `result`; of the states of several directions those that it selects."""
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
        return
    for user in list(node.users):
        given: Any = user.args
        if user.target is aten.select.int and given[1] == 0:
            _read_instead(writer, user, result[given[2]])
        elif user.target is aten.unbind.int and given[1:] in ((), (0,)):
            for one in list(user.users):
                place: Any = one.args[1]
                _read_instead(writer, one, result[place])
                writer.graph.erase_node(one)
        elif user.target is aten.index_select.default and given[1] > 0:  # of samples that were sorted by length
            with writer.graph.inserting_before(user):
                parts = [writer.write(user.target, each, given[1] - 1, given[2], source=user) for each in result]
            _read_instead(writer, user, parts)
        elif user.target is aten.view.default and len(given[1]) == 4 and isinstance(result[0], fx.Node):
            _by_layer(writer, user, result)
        else:
            continue
        if not user.users:  # and nothing else: what puts out states, or writes them into a buffer, has no users either
            writer.graph.erase_node(user)
    if node.users:
        with writer.graph.inserting_before(node):
            node.replace_all_uses_with(writer.write(aten.stack.default, result))


def _by_layer(writer: Writer, node: fx.Node, result: list[fx.Node]) -> None:
    """Let all that selects a layer of the states, as `node` has them by layer and direction, read these directions."""
    layers, both = node.meta["val"].shape[:2]
    for user in list(node.users):
        given: Any = user.args
        if layers * both == len(result) and user.target is aten.select.int and given[1] == 0:
            first = given[2] % layers * both
            _read_instead(writer, user, result[first : first + both])
            writer.graph.erase_node(user)
