"""Outputs that no longer depend on the inputs, and the zeros that cut them off."""

from collections.abc import Sequence

from torch import Tensor, fx

from shrinkage.compression.dataflow.gates import Zeros
from shrinkage.compression.dataflow.liveness import Needs
from shrinkage.compression.tracing.export import Subgraph, reachable, sources
from shrinkage.compression.tracing.trace import Trace
from shrinkage.diagnostics.zero_layers import INPUTS, in_backticks


def collapsed(traces: Sequence[tuple[Subgraph, Trace]], needs: Sequence[Needs]) -> tuple[str, ...]:
    """Return in words which outputs depend on no input any more, or on some no longer, and by which weights."""
    found: list[str] = []
    for (subgraph, trace), each in zip(traces, needs, strict=True):
        if not each.cuts:
            continue
        outputs = [node for node in output_of(subgraph.program.graph).all_input_nodes if node in trace.from_data]
        whole = _lost(subgraph, trace, each, outputs, "what the model puts out")
        parts = [
            _lost(subgraph, trace, each, [node], f"output {number} of the model")
            for number, node in enumerate(outputs, 1)
            if not whole and len(outputs) > 1
        ]
        found += [text for text in (whole, *parts) if text]
    return tuple(found)


def output_of(graph: fx.Graph) -> fx.Node:
    """Return the node that gives the outputs."""
    found: fx.Node
    (found,) = graph.find_nodes(op="output")
    return found


def _lost(subgraph: Subgraph, trace: Trace, needs: Needs, outputs: Sequence[fx.Node], what: str) -> str:
    """Return in words which inputs `outputs` no longer depend on, although the code lets them."""
    graph = subgraph.program.graph
    free = Needs(graph, trace, Zeros(trace, {}), {}, start=outputs)
    now = Needs(graph, trace, needs.zeros, needs.weights, start=outputs)
    inputs = [node for node in subgraph.inputs() if isinstance(node.meta.get("val"), Tensor) and node in free.of]
    lost = [node for node in inputs if node not in now.of]
    first = set(_first(graph, now, lost)) if lost else set()
    cuts = first & reachable(lost, lambda node: () if node in first else node.users)
    names = [name for node in sorted(cuts, key=now.place.__getitem__) for name in _zeros_at(subgraph, now, node)]
    if not names:
        return ""
    which = INPUTS if len(lost) == len(inputs) else in_backticks([str(node.name) for node in lost])
    what = what.replace("the model", f"`{subgraph.path}`") if subgraph.path else what
    zeros = in_backticks(list(dict.fromkeys(names)))
    return f"{what} no longer depends on {which}: all that comes from there meets zeros in {zeros}"


def _first(graph: fx.Graph, needs: Needs, lost: Sequence[fx.Node]) -> list[fx.Node]:
    """Return the operators nearest to the inputs that cut all ways from `lost`."""
    cuts = needs.cuts
    while True:
        fed = [node for cut in cuts for node in cut.all_input_nodes if node in needs.trace.from_data]
        deeper = Needs(graph, needs.trace, needs.zeros, needs.weights, start=fed)
        if not deeper.cuts or any(node in deeper.of for node in lost):
            return cuts
        cuts = deeper.cuts


def _zeros_at(subgraph: Subgraph, needs: Needs, node: fx.Node) -> list[str]:
    """Return the names of the parameters that make `node` put out a constant."""
    owned = subgraph.owned
    if node in needs.contractions:
        beside = [needs.contractions[node].weight]
    else:
        beside = [one for one in node.all_input_nodes if bool(needs.zeros.of(node, one).any())]
    return [owned[source] for one in beside for source in sources(one) if source in owned]
