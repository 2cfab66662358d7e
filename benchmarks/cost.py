"""What a rule adds to fused AdamW, on tensors of GPT-2 small's shapes.

Every variant takes one step in each round, in an order that changes from round to round; figures are medians over
rounds, and ratios are medians of ratios within a round. Run it with `make bench`.
"""

import argparse
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter

import torch
from torch import nn
from torch.optim import AdamW

from shrinkage import L1, GroupLasso, Penalty, Regularizer, Rows
from shrinkage.plan import How
from shrinkage.tables import table

STRENGTH = 1e-9  # so small that weights stay what they are: the time must not depend on how many are zero
LEARNING_RATE = 1e-6
BLOCK = [(2304, 768), (2304,), (768, 768), (768,), (3072, 768), (3072,), (768, 3072), (768,), *[(768,)] * 4]


@dataclass(frozen=True)
class Cost:
    """Milliseconds per step, and the ratio to the optimizer alone: median, lower and upper quartile."""

    name: str
    milliseconds: float
    ratio: float
    lower: float
    upper: float


def gpt2_small(blocks: int, vocabulary: int) -> nn.ParameterList:
    """Return parameters of GPT-2 small's shapes with gradients; biases and norms included."""
    shapes = [(vocabulary, 768), (1024, 768), *BLOCK * blocks]
    parameters = nn.ParameterList(nn.Parameter(0.02 * torch.randn(shape)) for shape in shapes)
    for parameter in parameters:
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    return parameters


def matrices(parameters: nn.ParameterList) -> list[nn.Parameter]:
    """Return the parameters that rules charge: two dimensions or more."""
    return [parameter for parameter in parameters if parameter.dim() >= 2]


Step = Callable[[], object]


def plain(parameters: nn.ParameterList) -> Step:
    """Return a step of the optimizer alone."""
    return AdamW(parameters, lr=LEARNING_RATE, fused=True).step


def charged(penalty: Penalty, how: How) -> Callable[[nn.ParameterList], Step]:
    """Return a step with a rule on every matrix."""

    def make(parameters: nn.ParameterList) -> Step:
        optimizer = AdamW(parameters, lr=LEARNING_RATE, fused=True)
        rules = {lambda name, module, parameter: parameter.dim() >= 2: penalty}
        Regularizer(parameters, rules, how=how).attach(optimizer)
        return optimizer.step

    return make


def softshrink_by_hand(parameters: nn.ParameterList) -> Step:
    """Return a step followed by torch's own soft threshold, in place: the least that zeros can cost in plain torch."""
    optimizer = AdamW(parameters, lr=LEARNING_RATE, fused=True)

    @torch.no_grad()
    def step() -> None:
        optimizer.step()
        for parameter in matrices(parameters):
            torch._C._nn.softshrink(parameter, LEARNING_RATE * STRENGTH, out=parameter.detach())

    return step


def l1_in_loss(parameters: nn.ParameterList) -> Step:
    """Return a step after a forward and backward pass through strength * sum |w|."""
    optimizer = AdamW(parameters, lr=LEARNING_RATE, fused=True)

    def step() -> None:
        (STRENGTH * sum(parameter.abs().sum() for parameter in matrices(parameters))).backward()
        optimizer.step()

    return step


VARIANTS: dict[str, Callable[[nn.ParameterList], Step]] = {
    "AdamW alone": plain,
    "softshrink by hand": softshrink_by_hand,
    "L1, decoupled": charged(L1(STRENGTH), "decoupled"),
    "L1, proximal": charged(L1(STRENGTH), "proximal"),
    "L1, gradient": charged(L1(STRENGTH), "gradient"),
    "rows, decoupled": charged(GroupLasso(STRENGTH, Rows()), "decoupled"),
    "rows, proximal": charged(GroupLasso(STRENGTH, Rows()), "proximal"),
    "L1 in the loss": l1_in_loss,
}


def measure(rounds: int, blocks: int, vocabulary: int) -> tuple[list[Cost], int, int]:
    """Return the cost of every variant, the number of tensors and the number of weights.

    All variants share the parameters and gradients; each has an optimizer of its own.
    """
    parameters = gpt2_small(blocks, vocabulary)
    steps = {name: timed_step(make, parameters) for name, make in VARIANTS.items()}
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for turn in range(rounds):
        for position in range(len(names)):
            name = names[(position + turn) % len(names)]
            times[name].append(steps[name]())
    reference = times["AdamW alone"]
    costs = []
    for name, measured in times.items():
        ratios = [time / alone for time, alone in zip(measured, reference, strict=True)]
        lower, _, upper = quantiles(ratios, n=4, method="inclusive")
        costs.append(Cost(name, 1000 * median(measured), median(ratios), lower, upper))
    return costs, len(parameters), sum(parameter.numel() for parameter in parameters)


def timed_step(make: Callable[[nn.ParameterList], Step], parameters: nn.ParameterList) -> Callable[[], float]:
    """Return a function that takes one step of a variant and returns its seconds."""
    step = make(parameters)

    def timed() -> float:
        start = perf_counter()
        step()
        return perf_counter() - start

    return timed


def main() -> None:
    """Print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--blocks", type=int, default=12)
    parser.add_argument("--vocabulary", type=int, default=12_000)
    parser.add_argument("--output", type=Path, default=Path("runs/cost.json"))
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    costs, tensors, weights = measure(options.rounds, options.blocks, options.vocabulary)
    print(f"{tensors} tensors, {weights / 1e6:.1f} million weights, {options.threads} threads, {options.rounds} rounds")
    rows = [[c.name, f"{c.milliseconds:.1f}", f"{c.ratio:.2f}", f"{c.lower:.2f} to {c.upper:.2f}"] for c in costs]
    print(table(["variant", "ms per step", "ratio", "quartiles"], rows, right=range(1, 4)))
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    settings = {**vars(options), "output": str(options.output)}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    numbers = {"settings": settings, "versions": versions, "costs": [asdict(cost) for cost in costs]}
    options.output.write_text(json.dumps(numbers, indent=2) + "\n")


if __name__ == "__main__":
    main()
