"""What a model costs: parameters, bytes, multiply-adds and time, in total and by layer."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import nn

from shrinkage.compression.calls.inputs import Call, cloned
from shrinkage.compression.calls.latency import SECONDS, idle, median, medians_in_turns
from shrinkage.compression.calls.modes import evaluated, seeing
from shrinkage.compression.calls.outputs import outputs_of_copy
from shrinkage.compression.calls.running import running
from shrinkage.compression.copying.copies import with_own_state
from shrinkage.compression.plans.tensors import tensors_of
from shrinkage.private import private

WHOLE = "Global"  # what torch's counter calls all of a model
FUSED_ATTENTION = "_scaled_dot_product_flash_attention_for_cpu"
ROUNDS = 5  # of calls in which layers are timed


class Cost(NamedTuple):
    """What a model or layer costs.

    `parameters` are entries, tied ones counted once; `size` is the bytes of parameters and buffers; `multiply_adds` are
    those of one call, half of the floating-point operations that torch counts; `latency` is the median time of one call
    in seconds, None of a layer that is not called as a module.
    """

    parameters: int
    size: int
    multiply_adds: int
    latency: float | None


def costs(models: Sequence[nn.Module], call: Call, layers: Sequence[str]) -> tuple[list[Cost], list[dict[str, Cost]]]:
    """Return what each of `models` costs, and what its `layers` do; copies of them are called in turns."""
    totals, parts = [], []
    probes = [evaluated(with_own_state(model)) for model in models]
    counts = [_multiply_adds(probe, call) for probe in probes]  # first calls, which the times leave out
    times = _latencies(probes, call, layers, warm=True)
    for model, operations, seconds, layer_seconds in zip(models, counts, *times, strict=True):
        totals.append(_cost(model, operations[""], seconds))
        parts.append(
            {name: _cost(model.get_submodule(name), operations.get(name, 0), layer_seconds[name]) for name in layers}
        )
    return totals, parts


def _cost(module: nn.Module, operations: int, seconds: float | None) -> Cost:
    return Cost(parameter_count(module), byte_count(module), operations, seconds)


def parameter_count(model: nn.Module) -> int:
    """Return the number of entries of the parameters, tied ones counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def byte_count(model: nn.Module) -> int:
    """Return the bytes of the parameters and buffers, tied ones counted once."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])


def multiply_adds(model: nn.Module, call: Call) -> dict[str, int]:
    """Return the multiply-adds of one call of `model`, under the empty name, and of its modules that have any.

    None are counted of models that fail only while their operators are watched.
    """
    return _multiply_adds(evaluated(with_own_state(model)), call)


def _multiply_adds(probe: nn.Module, call: Call) -> dict[str, int]:
    """Return what `multiply_adds` does of a copy that is in evaluation mode."""
    counter = operation_counter()
    try:
        with running(probe) as paths:
            counter.mod_tracker = Modules(paths)
            with seeing(counter):
                outputs_of_copy(probe, call)
    except Exception:  # Whatever a model raises there.
        outputs_of_copy(probe, call)  # which raises what is wrong with the model itself
        return {"": 0}
    counts = {path: sum(by_operator.values()) // 2 for path, by_operator in counter.get_flop_counts().items()}
    return {path: count for path, count in counts.items() if path != WHOLE} | {"": counts.get(WHOLE, 0)}


def operation_counter() -> Any:
    """Return torch's counter of floating-point operations, which counts those of attention on CPUs too."""
    from torch.utils.flop_counter import FlopCounterMode  # not imported before it is needed: it brings triton along

    attention = private(torch.ops.aten, FUSED_ATTENTION, "count its multiply-adds")  # torch counts 0
    return FlopCounterMode(display=False, custom_mapping={attention: attention_operations})


class Modules:
    """Tells torch's counter which modules run, which its own tracker finds by hooks into gradients."""

    def __init__(self, paths: Sequence[str] = ()) -> None:
        self.paths = paths

    @property
    def parents(self) -> set[str]:
        """For which names operations are counted."""
        return {WHOLE, *self.paths}

    def __enter__(self) -> "Modules":
        return self

    def __exit__(self, *_: object) -> None:
        """Leave nothing behind."""


def attention_operations(queries: torch.Size, keys: torch.Size, values: torch.Size, *args: Any, **kwargs: Any) -> int:
    """Return the floating-point operations of attention by the shapes of its inputs; masked ones count too, as on GPUs.

    >>> attention_operations(torch.Size([1, 2, 5, 4]), torch.Size([1, 2, 7, 4]), torch.Size([1, 2, 7, 4]))
    1120
    """
    batch, heads, length, size = queries
    return 2 * batch * heads * length * keys[-2] * (size + values[-1])


def latencies(
    models: Sequence[nn.Module], call: Call, layers: Sequence[str] = ()
) -> tuple[list[float], list[dict[str, float | None]]]:
    """Return the median seconds of a call of each of `models` in evaluation mode, and of what it takes in each layer.

    Copies of the models are called in turns.
    """
    return _latencies([evaluated(with_own_state(model)) for model in models], call, layers)


def _latencies(
    probes: Sequence[nn.Module], call: Call, layers: Sequence[str], *, warm: bool = False
) -> tuple[list[float], list[dict[str, float | None]]]:
    """Return what `latencies` does of copies that are in evaluation mode, and `warm` if they were called before.

    Layers are timed in calls of their own, so that the time of the model is without hooks.
    """
    device = next((tensor.device for tensor in tensors_of(probes[0]).values()), torch.device("cpu"))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        calls = [partial(_called, probe, call) for probe in probes]
        whole = medians_in_turns(calls, device, seconds=SECONDS / 2, least=1, warm=warm)
        rounds = ROUNDS if sum(whole) * ROUNDS < SECONDS else 1
        timed = [_seconds_in(probe, layers, call, device, rounds) for probe in probes]
    return whole, timed


def _seconds_in(
    model: nn.Module, layers: Sequence[str], call: Call, device: torch.device, rounds: int
) -> dict[str, float | None]:
    """Return the median seconds that a call of `model` spends in each of `layers`; None if it does not call it."""
    seconds: dict[str, list[float]] = {name: [] for name in layers}
    for _ in range(rounds if layers else 0):
        with _clocks({name: model.get_submodule(name) for name in layers}, device) as measured:
            _called(model, call)
        for name, passed in measured.items():
            seconds[name].append(passed)
    return {name: median(several) if several else None for name, several in seconds.items()}


def _called(model: nn.Module, call: Call) -> None:
    args, kwargs = cloned(call)
    model(*args, **kwargs)


@contextmanager
def _clocks(layers: Mapping[str, nn.Module], device: torch.device) -> Iterator[dict[str, float]]:
    """Yield the seconds that calls take until the context ends, of each of `layers` that is called."""
    seconds: dict[str, float] = {}
    begun: list[float] = []

    def begin(*_: object) -> None:
        idle(device)
        begun.append(perf_counter())

    def end(name: str, *_: object) -> None:
        idle(device)
        seconds[name] = seconds.get(name, 0.0) + perf_counter() - begun.pop()

    with ExitStack() as hooks:
        for name, layer in layers.items():
            hooks.callback(layer.register_forward_pre_hook(begin).remove)
            hooks.callback(layer.register_forward_hook(partial(end, name)).remove)
        yield seconds
