"""Other ways to the same end, on the same tensors: by hand, as a term of the loss, in hooks, in other packages."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.skipping import SkippedError, needs
from benchmarks.variants import Trial, Variant
from benchmarks.work import Work


def softshrink_by_hand(work: Work, strength: float) -> Trial:
    """Follow the step by torch's own soft threshold in place: the least that zeros can cost in plain torch."""
    optimizer = work.adamw()
    penalized = [parameter.detach() for parameter in work.penalized]

    @torch.no_grad()
    def step() -> None:
        optimizer.step()
        threshold = optimizer.param_groups[0]["lr"] * strength
        for parameter in penalized:
            torch._C._nn.softshrink(parameter, threshold, out=parameter)

    return Trial(step, optimizer)


def l1_in_loss(work: Work, strength: float) -> Trial:
    """Step after a forward and backward pass through strength * sum |w|."""
    optimizer, penalized = work.adamw(), work.penalized

    def step() -> None:
        (strength * sum(parameter.abs().sum() for parameter in penalized)).backward()
        optimizer.step()

    return Trial(step, optimizer)


def l1_in_hooks(work: Work, strength: float) -> Trial:
    """Step after what torchlayers' hooks do, put right so that it reaches all layers: grad += strength * sign(w).

    Hooks run in a backward pass, which all variants have and none is timed with; so the hook is called here as that
    would call it, once per parameter.
    """
    optimizer, penalized = work.adamw(), work.penalized

    @torch.no_grad()
    def hook(parameter: Tensor) -> None:
        parameter.grad += strength * parameter.sign()

    def step() -> None:
        for parameter in penalized:
            hook(parameter)
        optimizer.step()

    return Trial(step, optimizer)


def torchao(prox: str, grouper: str) -> Callable[[Work, float], Trial]:
    """Return how to make torchao's PruneOptimizer around AdamW; its prox is in the plain metric."""

    def make(work: Work, strength: float) -> Trial:
        with needs("torchao"):
            from torchao.prototype.pat.optim import PruneOptimizer
        penalized = {id(parameter) for parameter in work.penalized}
        others = [parameter for parameter in work.parameters if id(parameter) not in penalized]
        pruned = {"params": work.penalized, "prox_type": prox, "group_type": grouper, "reg_lambda": strength}
        # Without a step before the first prox it insists on an optimizer without state.
        optimizer = PruneOptimizer(work.adamw([pruned, {"params": others}]), warmup_steps=1)
        optimizer.step()
        return Trial(optimizer.step, optimizer)

    return make


def torch_pruning(work: Work, strength: float) -> Trial:
    """Step after Torch-Pruning's `regularize`, which adds to the gradients of coupled channels."""
    with needs("torch_pruning"):
        import torch_pruning
    if work.architecture is None or work.architecture.example is None:
        raise SkippedError("traces models of images only here")
    optimizer = work.adamw()
    model = work.architecture.make().to(work.device).eval()
    names = [name for name, _ in model.named_parameters()]
    model.load_state_dict(dict(zip(names, work.parameters, strict=True)), assign=True, strict=False)
    pruner = torch_pruning.pruner.GroupNormPruner(
        model,
        work.architecture.example().to(work.device),
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        output_transform=lambda output: output.logits.sum(),
        reg=strength,
    )
    pruner.update_regularizer()

    def step() -> None:
        pruner.regularize(model)
        optimizer.step()

    return Trial(step, optimizer)


RIVALS = [
    Variant("softshrink by hand", softshrink_by_hand, bytes_per_weight=8),
    Variant("L1 in the loss", l1_in_loss),
    Variant("L1 in hooks", l1_in_hooks),
    Variant("torchao lasso", torchao("ProxLasso", "ElemGrouper"), copies=1, rival=True),
    Variant("torchao rows", torchao("ProxGroupLasso", "Dim0Grouper"), copies=1, rival=True),
    Variant("Torch-Pruning", torch_pruning, rival=True),
]
