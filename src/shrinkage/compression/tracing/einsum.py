"""Rules of products that are summed over some of their axes, each axis a letter: `einsum` and what it stands for."""

from collections.abc import Sequence
from string import ascii_letters, ascii_lowercase
from typing import Any

from torch import Tensor, fx

from shrinkage.compression.tracing.channels import Channels
from shrinkage.compression.tracing.operators import along, aten, coupling_rule
from shrinkage.compression.tracing.sums_over_channels import by_lines, left_after_sum
from shrinkage.compression.tracing.trace import FIXED, Contraction, Sum, Trace, flat

SUMMED = "summed over"


@coupling_rule(aten.einsum)
def einsum(trace: Trace, equation: str, operands: Sequence[Channels], **_: Any) -> Channels:
    """Letters are axes: those of the result go together; one that it has not is summed over."""
    nodes: Any = trace.node.args[1]
    terms, out = _terms(equation, [len(x.shape) for x in operands])
    if any(len(set(term)) < len(term) for term in terms):
        trace.pin(operands, "a diagonal in `einsum`")
        return Channels(trace.shape)
    return summed_products(trace, operands, nodes, terms, out)


@coupling_rule(aten.mv, aten.dot, aten.vdot, aten.inner)
def inner(trace: Trace, left: Channels, right: Channels) -> Channels:
    """The last axes of both sides are summed over."""
    one, two = ascii_lowercase[: len(left.shape)], ascii_lowercase[::-1][: len(right.shape)]
    nodes: Any = trace.node.args[:2]
    return summed_products(trace, [left, right], nodes, [one, two[:-1] + one[-1]], one[:-1] + two[:-1])


@coupling_rule(aten.linalg_vecdot)
def vector_products(trace: Trace, left: Channels, right: Channels, *, dim: int = -1) -> Channels:
    """The products along one axis of both sides are summed."""
    rank = max(len(left.shape), len(right.shape))
    letters = ascii_lowercase[:rank]
    nodes: Any = trace.node.args[:2]
    terms = [letters[rank - len(x.shape) :] for x in (left, right)]
    summed = terms[0][dim]
    if terms[1][dim] != summed:
        trace.pin([left, right], "products along unlike axes")
        return Channels(trace.shape)
    return summed_products(trace, [left, right], nodes, terms, letters.replace(summed, ""))


@coupling_rule(aten.outer, aten.ger)
def outer(trace: Trace, left: Channels, right: Channels) -> Channels:
    """Every element of one vector times every one of the other."""
    nodes: Any = trace.node.args[:2]
    return summed_products(trace, [left, right], nodes, ["a", "b"], "ab")


@coupling_rule(aten.tensordot)
def tensordot(
    trace: Trace, left: Channels, right: Channels, ours: Sequence[int], theirs: Sequence[int], *_: Any
) -> Channels:
    """Pairs of axes are summed over."""
    one, two = list(ascii_lowercase[: len(left.shape)]), list(ascii_lowercase[::-1][: len(right.shape)])
    out = [letter for letter in one if one.index(letter) not in {axis % len(one) for axis in ours}]
    out += [letter for letter in two if two.index(letter) not in {axis % len(two) for axis in theirs}]
    for mine, other in zip(ours, theirs, strict=True):
        two[other % len(two)] = one[mine % len(one)]
    nodes: Any = trace.node.args[:2]
    return summed_products(trace, [left, right], nodes, ["".join(one), "".join(two)], "".join(out))


@coupling_rule(aten.bilinear)
def bilinear(trace: Trace, left: Channels, right: Channels, weight: Channels, bias: Channels | None = None) -> Channels:
    """The channels of two inputs are summed over with two axes of the weight; its first makes new ones."""
    first, second, weights, *_ = trace.node.args
    before = ascii_lowercase[: len(left.shape) - 1]
    terms, out = [before + "x", "zxy", before + "y"], before + "z"
    nodes: Any = [first, weights, second]
    products = summed_products(trace, [left, weight, right], nodes, terms, out)
    return trace.combine([products, along(bias, len(out), -1)])


def product_with_a_vector(trace: Trace, left: Channels, right: Channels) -> Channels:
    """Return the channels of a matrix product one side of which has one axis: the last of the left is summed over."""
    one = ascii_lowercase[: len(left.shape)]
    two = ascii_lowercase[::-1][: len(right.shape)]
    place = max(len(two) - 2, 0)
    nodes: Any = trace.node.args[-2:]
    terms = [one, two[:place] + one[-1] + two[place + 1 :]]
    return summed_products(trace, [left, right], nodes, terms, one[:-1] + two[:place] + two[place + 1 :])


def summed_products(
    trace: Trace, operands: Sequence[Channels], nodes: Sequence[fx.Node], terms: Sequence[str], out: str
) -> Channels:
    """Return the channels of products of `operands`, given by `nodes`, whose axes have the letters of `terms`.

    What meets under a letter of the result `out` goes together. So does what meets under another letter, which is
    summed over: an index there makes no difference where one of the operands is zero.
    """
    letters = [letter for letter in dict.fromkeys("".join(terms)) if letter not in out]
    operands = [
        by_lines(trace, x, [axis for axis, letter in enumerate(term) if letter not in out], SUMMED)
        for x, term in zip(operands, terms, strict=True)
    ]
    sums: dict[str, Sum] = {}
    for letter in letters:
        sides = [
            (x, node, term.index(letter))
            for x, node, term in zip(operands, nodes, terms, strict=True)
            if letter in term and x.shape[term.index(letter)] > 1  # which broadcasts
        ]
        labels = _united(trace, sides)
        if labels is not None:
            sums[letter] = Sum(trace.node, tuple((node, axis) for _, node, axis in sides), labels)
    contraction = _contraction(trace, nodes, terms, out, letters, sums)
    trace.contractions += [contraction] if contraction else []
    read = contraction and terms[_place_of_weight(trace, nodes)][contraction.weight_axis]
    trace.sums += [each for letter, each in sums.items() if letter != read]
    laid = []
    for x, term in zip(operands, terms, strict=True):
        axes = [axis for axis, letter in enumerate(term) if letter not in out]
        laid.append(_in_order(left_after_sum(trace, x, axes), term, out))
    return trace.combine(laid)


def _united(trace: Trace, sides: Sequence[tuple[Channels, fx.Node, int]]) -> Tensor | None:
    """Make the channels one that meet along an axis of each of `sides`; return them, None if none of them can go."""
    several = [flat(trace, x, axis, SUMMED) for x, _, axis in sides]
    known = [labels for labels in several if labels is not None]
    if len(known) < len(several):
        for labels in known:
            trace.labels.pin(labels, trace.because(f"{FIXED} where it is summed over"))
        return None
    for labels in known[1:]:
        trace.labels.unite(labels, known[0])
    return known[0] if known else None


def _place_of_weight(trace: Trace, nodes: Sequence[fx.Node]) -> int:
    """Return which of two operands is not computed from the data; -1 if that is none or both, or there are more."""
    weights = [place for place, node in enumerate(nodes) if node not in trace.from_data]
    return weights[0] if len(nodes) == 2 and len(weights) == 1 else -1


def _contraction(
    trace: Trace,
    nodes: Sequence[fx.Node],
    terms: Sequence[str],
    out: str,
    letters: Sequence[str],
    sums: dict[str, Sum],
) -> Contraction | None:
    """Return what a weight with rows of one letter reads; None where there is none such."""
    place = _place_of_weight(trace, nodes)
    weight, data = terms[place], terms[1 - place] if place >= 0 else ""
    rows = [letter for letter in weight if letter in out and letter not in data]
    shared = [letter for letter in letters if letter in weight and letter in data]
    if place < 0 or len(rows) != 1 or not shared:
        return None
    letter = next((each for each in shared if each in sums), shared[0])
    labels = sums[letter].labels if letter in sums else trace.labels.new(0)
    axis, other = data.index(letter), weight.index(letter)
    row = weight.index(rows[0])
    return Contraction(
        trace.node, nodes[1 - place], axis, nodes[place], other, labels, labels, row, out.index(rows[0])
    )  # fmt: skip


def _terms(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Return the letters of each operand, and of the result, with others in place of dots.

    A result that is not named has all letters that occur once, in order.
    """
    named, arrow, out = equation.replace(" ", "").partition("->")
    terms = named.split(",")
    counts = [rank - len(term) + 3 if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)]
    unused = "".join(letter for letter in ascii_letters if letter not in equation)[: max(counts)]
    if not arrow:
        once = sorted(letter for letter in set(named) - set(".,") if named.count(letter) == 1)
        out = ("..." if max(counts) else "") + "".join(once)
    dots = [unused[len(unused) - count :] for count in counts]
    terms = [term.replace("...", letters) for term, letters in zip(terms, dots, strict=True)]
    return terms, out.replace("...", unused)


def _in_order(x: Channels, term: str, out: str) -> Channels:
    """Return `x`, whose axes have the letters of `term`, with those of `out`: of length 1 for a letter it has not."""
    order = [term.index(letter) for letter in out if letter in term]
    order += [axis for axis in range(len(term)) if axis not in order]

    def laid(shape: Sequence[int]) -> list[int]:
        sizes = dict(zip(term, shape, strict=True))
        return [sizes.get(letter, 1) for letter in out]

    factors = tuple(factor.permute(order).reshape(laid(factor.shape)) for factor in x.factors)
    return Channels(tuple(laid(x.shape)), factors)
