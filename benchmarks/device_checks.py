"""What has to hold on a device: the same numbers as on a CPU, no waiting, recorded graphs, and sparse layers."""

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from benchmarks.skipping import SkippedError
from shrinkage import L1, GroupLasso, NofM, Penalty, Regularizer, Rows, Rule, SparseLinear, to_semi_structured
from shrinkage.errors import first_line
from shrinkage.selection.how import How

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from catalog import CONSTRAINTS, PENALTIES, PenaltyCase

WAITING = ("Nuclear", "SpectralBall", "FusedLasso", "Orthogonal")  # iterate to convergence, or run on the host
HOWS: tuple[How, ...] = ("proximal", "decoupled", "gradient")
OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "SGD with momentum": partial(SGD, lr=0.05, momentum=0.9),
    "AdamW": partial(AdamW, lr=0.02),
}
STEPS = 4


@dataclass(frozen=True)
class Check:
    """What came of one check; `passed` is None where it cannot run here, for the reason in `detail`."""

    name: str
    passed: bool | None
    detail: str
    seconds: float

    def __str__(self) -> str:
        word = {True: "passed", False: "FAILED", None: "skipped"}[self.passed]
        return f"{word}  {self.name}: {self.detail} ({self.seconds:.1f} s)"


def run_checks(device: torch.device) -> Iterator[Check]:
    """Run all checks; one that fails does not end the others."""
    for check in (same_numbers, no_waiting, recorded_graph, two_of_four, sparse_linear):
        start, passed = perf_counter(), None
        try:
            detail, passed = check(device), True
        except SkippedError as error:
            detail = str(error)
        except Exception as error:
            detail, passed = f"{type(error).__name__}: {first_line(error)}", False
        yield Check(check.__name__.replace("_", " "), passed, detail, perf_counter() - start)


def penalties_of(how: How) -> Iterator[tuple[str, Penalty, tuple[int, ...]]]:
    """Yield every penalty and constraint of the tests' catalogue that acts in this way, and a shape for it."""
    for case in PENALTIES + CONSTRAINTS:
        penalty = case.make(0.1) if isinstance(case, PenaltyCase) else case.make()
        if how != "gradient" or penalty.explicit:
            yield case.name, penalty, case.shape


def trained(penalty: Penalty, shape: tuple[int, ...], how: How, make: Callable[..., Optimizer], place: Any) -> Tensor:
    """Return a weight after some steps along given gradients, on `place`: a device, or a type, or both."""
    generator = torch.Generator().manual_seed(0)
    weight, *grads = torch.randn(STEPS + 1, *shape, generator=generator).to(**place)
    holder = nn.ParameterDict({"weight": nn.Parameter(weight.clone())})
    optimizer = make(holder.parameters())
    Regularizer(holder, Rule(penalty, "weight", how)).attach(optimizer)
    for grad in grads:
        holder["weight"].grad = grad
        optimizer.step()
    return holder["weight"].detach()


def same_numbers(device: torch.device) -> str:
    """Compare each penalty, in each way, under two optimizers and in two types with the CPU."""
    count, differing, failed = 0, 0, []
    for how in HOWS:
        for name, penalty, shape in penalties_of(how):
            for optimizer, make in OPTIMIZERS.items():
                for dtype, tolerance in ((torch.float32, 2e-5), (torch.bfloat16, 2e-2)):
                    count += 1
                    with warnings.catch_warnings():
                        warnings.simplefilter("ignore")  # of bfloat16, in which small penalties are rounded away
                        expected = trained(penalty, shape, how, make, {"dtype": dtype})
                        found = trained(penalty, shape, how, make, {"dtype": dtype, "device": device}).cpu()
                    zeros = int(((found == 0) != (expected == 0)).sum())
                    differing += zeros
                    limit = tolerance * float(expected.abs().max().clamp_min(1e-3))
                    close = torch.allclose(found.float(), expected.float(), rtol=tolerance, atol=limit)
                    if not close or (zeros and dtype == torch.float32):
                        failed.append(f"{name}, {how}, {optimizer}, {str(dtype).removeprefix('torch.')}")
    if failed:
        raise AssertionError(f"{len(failed)} of {count} differ: {'; '.join(failed[:6])}")
    bfloat16 = f"; {differing} weights of bfloat16 are zero on one side only" if differing else ""
    return f"{count} cases{bfloat16}"


@contextmanager
def errors_for_waiting() -> Iterator[None]:
    """Raise an error where the host waits for the device."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def need_cuda(device: torch.device) -> None:
    """Skip what torch has for CUDA alone."""
    if device.type != "cuda":
        raise SkippedError(f"is for CUDA, not for {device.type}")


def no_waiting(device: torch.device) -> str:
    """Make steps with each penalty in which the host must not wait for the device."""
    need_cuda(device)
    count, failed = 0, []
    for how in HOWS:
        for name, penalty, shape in penalties_of(how):
            if name.startswith(WAITING):
                continue
            weight = nn.Parameter(torch.randn(shape, device=device))
            optimizer = AdamW([weight], lr=0.02, fused=True)
            Regularizer(nn.ParameterDict({"weight": weight}), Rule(penalty, "weight", how)).attach(optimizer)
            weight.grad = torch.randn_like(weight)
            optimizer.step()
            count += 1
            try:
                with errors_for_waiting():
                    optimizer.step()
            except RuntimeError:
                failed.append(f"{name}, {how}")
    if failed:
        raise AssertionError(f"{len(failed)} of {count} wait: {'; '.join(failed[:6])}")
    return f"{count} cases"


def recorded_graph(device: torch.device) -> str:
    """Compare steps of a CUDA graph with the same steps without one."""
    need_cuda(device)
    weights, updates = [], 8
    for recorded in (False, True):
        torch.manual_seed(0)
        model = nn.ParameterDict({name: nn.Parameter(torch.randn(64, 96, device=device)) for name in "ab"})
        optimizer = AdamW(model.parameters(), lr=0.02, capturable=True)
        Regularizer(model, {"a": L1(0.05), "b": GroupLasso(0.01, Rows())}, compile=False).attach(optimizer)
        for weight in model.values():
            weight.grad = torch.randn_like(weight)
        step = recording(optimizer, updates // 2) if recorded else optimizer.step
        for _ in range(updates // 2 if recorded else updates):
            step()
        weights.append(torch.cat([weight.detach().flatten() for weight in model.values()]))
    zeros = int((weights[0] == 0).sum())
    if not torch.equal(*weights) or not zeros:
        raise AssertionError(
            f"{zeros} zeros; the largest difference is {float((weights[0] - weights[1]).abs().max()):g}"
        )
    return f"bit for bit after {updates} steps, {zeros} zeros"


def recording(optimizer: Optimizer, before: int) -> Callable[[], object]:
    """Make some steps on a stream of their own, record one, and return what repeats it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(before):
            optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    return graph.replay


def two_of_four(device: torch.device) -> str:
    """Train weights into 2:4, store them so, and compare outputs with the dense layer."""
    need_cuda(device)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512, device=device))
    optimizer = SGD(model.parameters(), lr=0.01)
    Regularizer(model, {"0.weight": NofM(2, 4)}).attach(optimizer)
    x = torch.randn(128, 256, device=device)
    model(x).square().mean().backward()
    optimizer.step()
    half, inputs = model.half(), x.half()
    found, expected = to_semi_structured(half).model(inputs), half(inputs)
    error = float((found - expected).abs().max() / expected.abs().max())
    if error > 2e-3:
        raise AssertionError(f"outputs differ by {error:.0e} of the largest")
    return f"outputs differ by {error:.0e} of the largest"


def sparse_linear(device: torch.device) -> str:
    """Compare a sparse layer's output and gradients with those of the dense one."""
    torch.manual_seed(0)
    dense = nn.Linear(192, 128, device=device)
    with torch.no_grad():
        dense.weight[torch.rand_like(dense.weight) < 0.9] = 0
    sparse = SparseLinear.from_linear(dense)
    worst = 0.0
    inputs = [torch.randn(64, 192, device=device).requires_grad_() for _ in range(2)]
    inputs[1].data.copy_(inputs[0].data)
    outputs = [layer(x) for layer, x in zip((dense, sparse), inputs, strict=True)]
    for output in outputs:
        output.square().sum().backward()
    outputs = [output.detach() for output in outputs]
    for found, expected in (
        (outputs[1], outputs[0]),
        (inputs[1].grad, inputs[0].grad),
        (sparse.bias.grad, dense.bias.grad),
    ):
        worst = max(worst, float((found - expected).abs().max() / expected.abs().max()))
    if worst > 1e-5:
        raise AssertionError(f"outputs or gradients differ by {worst:.0e} of the largest")
    return f"outputs and gradients differ by {worst:.0e} of the largest"
