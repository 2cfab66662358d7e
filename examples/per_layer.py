"""L1 on one layer and L2 on another, of a network for handwritten digits: in the loss, and as proximal steps.

    pip install . matplotlib scikit-learn
    python examples/per_layer.py

trains the same network twice, on the same batches. The first layer has L1, the last one L2. Once both are terms of the
loss, once `regularize` declares them on the layers. The picture has the sizes of the first layer's weights: L1 in the
loss makes them small, and the proximal step makes them exactly zero.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD

from digits.data import CLASSES, PIXELS, Digits, load
from digits.train import accuracy
from shrinkage import L1, L2, regularize
from shrinkage.pictures.weights import png, weight_histograms

OUTPUT = Path("runs/examples")
FIRST, LAST = 1e-3, 1e-2  # strengths
TERM, PROXIMAL = "L1 as a term of the loss", "L1 by shrinkage"
BATCH = 64
SMALL = 1e-3


def train(digits: Digits, epochs: int, *, declared: bool) -> nn.Sequential:
    """Return the trained network, with penalties that its layers declare, or with terms in the loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(PIXELS, 100), nn.ReLU(), nn.Linear(100, CLASSES))
    first, _, last = model
    if declared:
        regularize(first, L1(FIRST))
        regularize(last, L2(LAST))
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for pixels, labels in digits.train.batches(BATCH, order):
            loss = cross_entropy(model(pixels), labels)
            if not declared:
                loss = loss + FIRST * first.weight.abs().sum() + LAST / 2 * last.weight.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def main(arguments: Sequence[str] | None = None) -> dict[str, nn.Sequential]:
    """Run the example and return the networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=OUTPUT, help="folder for the picture")
    parser.add_argument("--epochs", type=int, default=100, help="passes over the training images")
    options = parser.parse_args(arguments)
    digits = load()
    networks = {name: train(digits, options.epochs, declared=name == PROXIMAL) for name in (TERM, PROXIMAL)}
    weights = {name: model[0].weight.detach() for name, model in networks.items()}
    for name, model in networks.items():
        zeros = (weights[name] == 0).float().mean()
        print(f"{name}: {100 * accuracy(model, digits.test):.1f}% of the test images, {100 * zeros:.1f}% zeros")
    options.output.mkdir(parents=True, exist_ok=True)
    file = options.output / "per_layer.png"
    file.write_bytes(png(weight_histograms(weights, below=SMALL)))
    print(f"Wrote {file}")
    return networks


if __name__ == "__main__":
    main()
