"""One whole training step, forward, backward and optimizer, with rules on every weight and without."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.models import DENSE, GPT, dense, resnet
from benchmarks.skipping import SkippedError, needs
from benchmarks.tables import Settings
from benchmarks.timing import Spread, Step, extra, interleaved, ratios, warm_up
from benchmarks.variants import STRENGTH, Variant
from benchmarks.work import LEARNING_RATE, Work
from shrinkage.tables import table

Batch = tuple[Tensor, Tensor]
KERAS, KERAS_L1 = "Keras alone", "Keras kernel_regularizer"


@dataclass(frozen=True)
class Task:
    """A network and a batch of noise to train it with."""

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    keras: tuple[int, ...] = ()  # sizes of the layers, if Keras is to train it too


def images(count: int = 64, side: int = 32) -> Batch:
    """Return images and labels."""
    return torch.randn(count, 3, side, side), torch.randint(10, (count,))


def text(count: int = 8, length: int = 128, tokens: int = 256) -> Batch:
    """Return tokens and the tokens after them."""
    drawn = torch.randint(tokens, (count, length + 1))
    return drawn[:, :-1].contiguous(), drawn[:, 1:].flatten()


def vectors(count: int = 128, size: int = DENSE[0], classes: int = DENSE[-1]) -> Batch:
    """Return vectors and labels."""
    return torch.randn(count, size), torch.randint(classes, (count,))


TASKS = (
    Task("ResNet-20, 64 images of 32x32", resnet, images),
    Task("GPT of 11 million weights, 8 texts of 128 tokens", GPT, text),
    Task("dense network 784-2048-2048-10, 128 vectors", dense, vectors, DENSE),
)


@dataclass(frozen=True)
class TrainingRow:
    """What a whole step takes.

    `ratio` is that to the baseline in the same round. `by_parts` is less noisy: the baseline, plus what the optimizer's
    step alone takes longer, by the baseline.
    """

    name: str
    milliseconds: float
    ratio: Spread
    by_parts: float | None


@dataclass
class Training:
    """Whole steps of one task."""

    name: str
    tensors: int
    weights: int
    rounds: int
    rows: list[TrainingRow]
    skipped: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        header = ["training step", "ms", "ratio", "quartiles", "by parts"]
        rows = [
            [
                row.name,
                f"{row.milliseconds:.1f}",
                f"{row.ratio.median:.3f}",
                f"{row.ratio.lower:.3f} to {row.ratio.upper:.3f}",
                "-" if row.by_parts is None else f"{row.by_parts:.4f}",
            ]
            for row in self.rows
        ]
        title = f"{self.name}: {self.tensors} tensors, {self.weights / 1e6:.1f} million weights, {self.rounds} rounds"
        return "\n".join([title, table(header, rows, right=range(1, len(header))), *self.skipped])


def measure_training(task: Task, variants: Sequence[Variant], settings: Settings) -> Training:
    """Return what a whole step takes with each variant's optimizer, and with Keras where the task says so."""
    model = task.model().to(settings.device)
    inputs, labels = (tensor.to(settings.device) for tensor in task.batch())
    work = Work.around(list(model.parameters()))
    optimizers = {variant.name: variant.make(work, STRENGTH).step for variant in variants}
    steps = {name: training_step(model, inputs, labels, step) for name, step in optimizers.items()}
    baselines = {variant.name: variant.baseline for variant in variants}
    skipped = []
    try:
        keras = keras_steps(task.keras, inputs, labels) if task.keras else {}
        steps, baselines = {**steps, **keras}, {**baselines, **dict.fromkeys(keras, KERAS)}
    except SkippedError as error:
        skipped = [f"{KERAS_L1}: skipped, {error}"]
    warm_up(steps.values())
    times = interleaved(steps, settings.limits, settings.device, settings.clock)
    parts = interleaved(optimizers, settings.limits, settings.device, settings.clock)
    rows = []
    for name, own in times.items():
        baseline = times[baselines[name]]
        by_parts = 1 + extra(parts[name], parts[baselines[name]]) / median(baseline) if name in parts else None
        rows.append(TrainingRow(name, 1e3 * median(own), ratios(own, baseline), by_parts))
    return Training(task.name, len(work.parameters), work.weights, len(own), rows, skipped)


def training_step(model: nn.Module, inputs: Tensor, labels: Tensor, optimizer_step: Step) -> Step:
    """Return a step of training by cross-entropy."""

    def step() -> None:
        model.zero_grad()
        F.cross_entropy(model(inputs), labels).backward()
        optimizer_step()

    return step


def keras_steps(sizes: Sequence[int], inputs: Tensor, labels: Tensor) -> dict[str, Step]:
    """Return Keras' training step on torch, with L1 on every kernel and without."""
    os.environ["KERAS_BACKEND"] = "torch"
    with needs("keras"):
        import keras
    if keras.backend.backend() != "torch":
        raise SkippedError(f"keras was imported with the backend {keras.backend.backend()} before")

    def step(regularizer: object) -> Step:
        layers = [
            keras.layers.Dense(size, "relu" if size != sizes[-1] else None, kernel_regularizer=regularizer)
            for size in sizes[1:]
        ]
        model = keras.Sequential([keras.Input((sizes[0],)), *layers])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.AdamW(LEARNING_RATE), loss, jit_compile=False)
        return lambda: model.train_on_batch(inputs, labels)

    return {KERAS: step(None), KERAS_L1: step(keras.regularizers.L1(STRENGTH))}
