"""A sparse autoencoder of handwritten digits: few features for each image, and a picture of what they are.

    pip install '.[cli]' rich scikit-learn
    python examples/sparse_autoencoder.py

trains an encoder with a ReLU and a linear decoder. `Activities` penalizes the features with L1, with no term in the
loss. The columns of the decoder, one image for each feature, keep norm 1 (`UnitNorm`), or features would become small
and columns large instead. Each epoch prints L0, the number of features that are not zero for an image, and the share of
the pixels' variance that the reconstruction explains.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.optim import Adam

from digits.data import PIXELS, SIDE, load
from shrinkage import L1, Activities, Columns, Ramp, Regularizer, UnitNorm
from shrinkage.tables import table

BATCH = 64
LEARNING_RATE = 3e-3
WARM_UP = 200  # updates in which the strength rises
ACROSS = 12  # features in a row of the picture
OUTPUT = Path("runs/examples/sparse_autoencoder.png")


class Autoencoder(nn.Module):
    """Features of an image, and the sum of columns that they stand for."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.center = nn.Parameter(torch.zeros(PIXELS))
        self.encoder = nn.Sequential(nn.Linear(PIXELS, width), nn.ReLU())
        self.decoder = nn.Linear(width, PIXELS, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        features = self.encoder(x - self.center)
        return self.center + self.decoder(features)


@dataclass(frozen=True)
class Epoch:
    """What is measured after an epoch, on images that are not trained on."""

    number: int
    l0: float
    explained: float
    penalty: float

    @property
    def cells(self) -> list[str]:
        """What the table shows."""
        return [str(self.number), f"{self.l0:.1f}", f"{self.explained:.1%}", f"{self.penalty:.3f}"]


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    """Return the squared error of an image, the mean over images."""
    return (model(x) - x).square().sum(1).mean()


def measure(model: Autoencoder, activities: Activities, x: Tensor, number: int, updates: int) -> Epoch:
    """Return the numbers of one epoch."""
    with torch.no_grad():
        active = model.encoder(x - model.center) > 0
        unexplained = loss_of(model, x) / (x - x.mean(0)).square().sum(1).mean()
    penalty = activities.value(lambda: model(x), update=updates)
    return Epoch(number, float(active.sum(1).float().mean()), 1 - float(unexplained), float(penalty))


def train(width: int, strength: float, epochs: int) -> tuple[Autoencoder, list[Epoch]]:
    """Train an autoencoder, and return it with the numbers of every epoch."""
    torch.manual_seed(0)
    digits, order = load(), torch.Generator().manual_seed(0)
    model = Autoencoder(width)
    with torch.no_grad():
        model.center.copy_(digits.train.pixels.mean(0))
    optimizer = Adam(model.parameters(), lr=LEARNING_RATE)
    Regularizer(model, {"decoder.weight": UnitNorm(Columns())}).attach(optimizer)
    activities = Activities(model, {"encoder": L1(Ramp(strength, WARM_UP))})
    history, update = [], 0
    for number in range(1, epochs + 1):
        for x, _ in digits.train.batches(BATCH, order):
            optimizer.zero_grad()
            activities.mark(loss_of(model, x), update=update).backward()
            optimizer.step()
            update += 1
        history.append(measure(model, activities, digits.validation.pixels, number, update))
    return model, history


def draw(model: Autoencoder, history: Sequence[Epoch], images: Tensor) -> Figure:
    """Draw both numbers over the epochs, and the columns of the features that are active most often."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.6))
    upper, lower = left.subplots(2, 1, sharex=True)
    numbers = [epoch.number for epoch in history]
    upper.plot(numbers, [epoch.l0 for epoch in history], color="#0072B2")
    upper.set(ylabel="L0", ylim=(0, None), title="active features of an image")
    lower.plot(numbers, [epoch.explained for epoch in history], color="#D55E00")
    lower.set(xlabel="epoch", ylim=(0, 1), title="explained variance")
    with torch.no_grad():
        often = (model.encoder(images - model.center) > 0).float().mean(0)
    count = min(len(often), 6 * ACROSS)
    chosen = often.topk(count).indices
    panels = right.subplots(-(-count // ACROSS), ACROSS, squeeze=False).flatten()
    for axes, index in zip(panels, chosen.tolist(), strict=False):
        column = model.decoder.weight[:, index].detach().reshape(SIDE, SIDE)
        largest = float(column.abs().max())
        axes.imshow(column.numpy(), cmap="RdBu_r", vmin=-largest, vmax=largest)
        axes.set_title(f"{float(often[index]):.0%}", fontsize=7)
    for axes in panels:
        axes.set_axis_off()
    right.suptitle("columns of the decoder, and how many images have the feature", fontsize=11)
    return figure


def main(arguments: Sequence[str] | None = None) -> list[Epoch]:
    """Run the example, and return the numbers of every epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256, help="features (256)")
    parser.add_argument("--strength", type=float, default=0.3, help="of L1, in units of the loss (0.3)")
    parser.add_argument("--epochs", type=int, default=60, help="(60)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help=f"file for the picture ({OUTPUT})")
    options = parser.parse_args(arguments)
    model, history = train(options.width, options.strength, options.epochs)
    shown = [epoch for epoch in history if epoch.number % max(options.epochs // 10, 1) == 0]
    header = ["epoch", "L0", "explained", "penalty"]
    print(table(header, [epoch.cells for epoch in shown], right=range(len(header))))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    draw(model, history, load().validation.pixels).savefig(options.output, dpi=130)
    print(f"\nWrote {options.output}")
    return history


if __name__ == "__main__":
    main()
