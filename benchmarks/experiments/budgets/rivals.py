"""Pruning of other packages. Where one is missing, or refuses a model, its run is skipped with the reason."""

import logging
import warnings
from collections.abc import Callable
from typing import Any

from torch import nn

from benchmarks.experiments.budgets.models import Attention
from benchmarks.experiments.budgets.training import Run
from benchmarks.experiments.budgets.units import Channels, Weights
from benchmarks.skipping import SkippedError, needs
from shrinkage.compression.calls.cost import parameter_count

LARGEST = 0.97  # part of a layer that goes: no layer loses all of its channels
STEPS = 200  # in which torch-pruning takes channels away, until few enough parameters are left
BATCHES = 10  # whose gradients are added up for its Taylor criterion


def pat(run: Run, unit: Weights, begin: float, end: float) -> None:
    """torchao's pruning-aware training with a target: dense weights aside along a cubic ramp, then final."""
    with needs("torchao"):
        from torchao.prototype.pat.optim import PruneOptimizer
    logging.getLogger("torchao").setLevel(logging.ERROR)
    ranked = list(unit.matrices.values())
    known = {id(each) for each in ranked}
    group: dict[str, Any] = {
        "params": ranked,
        "prox_type": "GlobalMinSparsityConstraint",
        "group_type": "KElementGrouper",
        "group_kwargs": {"k": 1},
        "k": 1,
        "reg_lambda": 0.0,
        "min_sparsity": unit.zeros() / unit.count,
        "min_sparsity_schedule": True,
    }
    others = [each for each in run.model.parameters() if id(each) not in known]
    inner = run.task.optimizer([group, {"params": others}])
    run.optimizer = PruneOptimizer(inner, warmup_steps=run.at(begin), healing_start_step=run.at(end))
    run.until(1.0)


def torch_pruning(run: Run, unit: Channels, once: float, taylor: bool) -> None:
    """Torch-Pruning's importance of coupled channels, in one shot; the optimizer starts anew, as it advises."""
    with needs("torch_pruning"):
        import torch_pruning as tp
    run.until(once)
    importance = tp.importance.GroupTaylorImportance() if taylor else tp.importance.GroupMagnitudeImportance()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prune(run, unit, tp.pruner.BasePruner, importance, batches=BATCHES if taylor else 0)
        run.model(run.data.inputs)
    except Exception as error:  # each model that it does not understand fails in another way
        raise SkippedError(f"torch-pruning fails on this model: {error}") from error
    left = parameter_count(run.model)
    if left > unit.parameters():
        raise SkippedError(f"torch-pruning stops at {left:,} parameters")
    run.use(run.model)
    run.until(1.0)


def prune(run: Run, unit: Channels, pruner: Callable[..., Any], importance: object, batches: int) -> None:
    """Take channels away in small steps, with the gradients of the last batches, until few enough are left."""
    steps = pruner(
        run.model,
        run.data.inputs,
        importance,
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=LARGEST,
        iterative_steps=STEPS,
        ignored_layers=[each for each in run.model.modules() if isinstance(each, nn.Linear)][-1:],
        num_heads=heads_of(run.model),
        prune_head_dims=False,  # and heads stay: it fails at a step in which less than one head would go
    )
    run.model.zero_grad()
    for batch in range(batches):  # gradients are cut as their weights are
        run.loss(run.update - 1 - batch).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    for _ in range(STEPS):
        if parameter_count(run.model) <= unit.parameters():
            return
        steps.step()


def heads_of(model: nn.Module) -> dict[nn.Module, int]:
    """Return how many heads the layers have that make queries, keys and values."""
    found = (each for each in model.modules() if isinstance(each, Attention))
    return {
        layer: layer.out_features // each.head_size
        for each in found
        for layer in (each.queries, each.keys, each.values)
    }
