"""Whether an operator has a rule, and what happens to the channels at one that has none: they cannot go."""

from typing import Any

import torch
from torch import Tensor, fx

from shrinkage.compression.tracing.channels import Channels
from shrinkage.compression.tracing.trace import Rule, Trace, labels_in


def rule_of(rules: dict[Any, Rule], target: Any) -> Rule | None:
    """Return the rule of an operator: its own, that of its form out of place, or the pointwise one by its tag."""
    packet = getattr(target, "overloadpacket", None)
    for key in (packet, str(packet)):
        if key in rules:
            return rules[key]
    name = str(packet).removeprefix("aten.")
    if name.endswith("_") and not name.startswith("_"):
        plain = getattr(torch.ops.aten, name.rstrip("_"), None)
        if plain in rules:
            return rules[plain]
    if torch.Tag.pointwise in getattr(target, "tags", ()):
        return rules[torch.Tag.pointwise]
    return None


def apply_rule(trace: Trace, node: fx.Node) -> Any:
    """Return the channels of what `node` puts out, by the rule of its operator.

    Without a rule, all channels that the operator reads stay, and its outputs have none. The same holds for a form of
    the operator that its rule does not know.
    """
    name = str(node.target)
    rule = rule_of(trace.rules, node.target)
    if rule is not None:
        arguments, keywords = fx.map_arg((node.args, node.kwargs), trace.values.get)
        try:
            return rule(trace, *arguments, **keywords)
        except Exception as error:
            name = f"{name} in this form ({type(error).__name__})"
    read = [trace.values.get(argument) for argument in node.all_input_nodes]
    if not all(trace.labels.are_loose(factor) for factor in labels_in(read)):
        trace.unknown[name] = trace.unknown.get(name, 0) + 1
    trace.pin(read, f"used by `{name}`, an operator without a rule")
    return without_channels(node)


def without_channels(node: fx.Node) -> Any:
    """Return the outputs of `node`, all of fixed length."""
    value = node.meta.get("val")
    if isinstance(value, tuple | list):
        return tuple(Channels(tuple(item.shape)) if isinstance(item, Tensor) else None for item in value)
    return Channels(tuple(value.shape)) if isinstance(value, Tensor) else None
