"""The files that the demo writes: numbers, pictures and a page that shows them."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import torch

from digits.choose import RULE
from digits.data import CLASSES, PIXELS, SIDE, Digits
from digits.results import (
    BELOW,
    SMALLER_HEADER,
    TABLE_HEADER,
    Results,
    findings,
    percent,
    smaller_rows,
    table_rows,
)
from digits.run import Demo
from digits.smaller import Smaller
from digits.train import NEURONS, Run, weights_of
from shrinkage import Columns
from shrinkage.pictures import page as html
from shrinkage.pictures import weights as plots
from shrinkage.pictures.model_page import picture_of_weights

LAYER_TITLES = {
    "input": f"first layer ({PIXELS} pixels to {NEURONS} neurons)",
    "hidden": f"second layer ({NEURONS} to {NEURONS} neurons)",
    "output": f"third layer ({NEURONS} neurons to {CLASSES} digits)",
}
INTRODUCTION = (
    "A small network learns to read scikit-learn's handwritten digits. It is trained in five ways: without a penalty, "
    "with L1 as a term of the loss, and with three penalties of shrinkage, which do not change the loss.",
    "Accuracies and counts are means over the seeds, ± the standard deviation. Exact zeros and weights "
    f"below {BELOW:g} are shares of the weights of all three layers. A pixel, or a neuron of the second hidden layer, "
    "counts as zero if all of its weights are zero. The time is that of a full training step. The penalty share is "
    "the part of this time that the penalty takes.",
    "At the end, shrink removes the zero neurons from every network. The second table has the neurons that are left "
    "in both hidden layers, and the time of one call with all validation images. It also has the largest difference "
    "of the outputs on the test images, relative to the largest output.",
)


def publish(demo: Demo, digits: Digits, output: Path) -> list[Path]:
    """Write results.json, the pictures and report.html into the folder `output`, and return their paths."""
    pictures = [*draw(demo.runs, digits), draw_networks(demo.runs[-1][0], demo.smaller[-1][0])]
    page = page_of(demo.results, pictures, output)
    numbers = json.dumps(demo.results.to_dict(), indent=2) + "\n"
    files = {"results.json": numbers.encode(), "report.html": html.render(page).encode()}
    files |= {picture.file_name: picture.image for picture in pictures}
    for name, content in files.items():
        (output / name).write_bytes(content)
    return [output / name for name in files]


def draw(runs: Sequence[Sequence[Run]], digits: Digits) -> list[html.Picture]:
    """Return the pictures of the weights after training."""
    return [draw_weights(runs), draw_zeros(runs), draw_pixels(runs, digits)]


def draw_weights(runs: Sequence[Sequence[Run]]) -> html.Picture:
    """Return the histograms of the weights of the first seed."""
    weights = {
        of_variant[0].variant.name: torch.cat([w.detach().flatten() for w in weights_of(of_variant[0].model).values()])
        for of_variant in runs
    }
    return picture_of_weights(weights, below=BELOW, what="Sizes of all weights after training, one seed")


def draw_zeros(runs: Sequence[Sequence[Run]]) -> html.Picture:
    """Return how the zeros of each layer grow in training."""
    zeros = {
        title: {
            of_variant[0].variant.name: [
                mean(epoch.zeros[layer] for epoch in epochs)
                for epochs in zip(*(run.history for run in of_variant), strict=True)
            ]
            for of_variant in runs
        }
        for layer, title in LAYER_TITLES.items()
    }
    caption = (
        "Exact zeros in each layer after each epoch, mean over the seeds. "
        "The group lasso penalizes the first layer and the second, not the third."
    )
    return html.Picture("zeros_per_layer.png", caption, plots.png(plots.zeros_over_epochs(zeros)))


def draw_pixels(runs: Sequence[Sequence[Run]], digits: Digits) -> html.Picture:
    """Return which pixels the networks of the first seed look at."""
    norms = {
        of_variant[0].variant.name: Columns()
        .norms(weights_of(of_variant[0].model)["input"].detach())
        .reshape(SIDE, SIDE)
        for of_variant in (runs[0], runs[-1])
    }
    pixels = digits.train.pixels
    blank = int((pixels == 0).all(0).sum())
    caption = (
        "Which pixels matter: the mean training image, and the norm of each pixel's weights in the first layer, one "
        f"seed. A cross marks pixels whose {NEURONS} weights are all exactly zero: the network does not look at them. "
        f"{blank} pixels are blank in every training image."
    )
    figure = plots.pixel_maps(pixels.mean(0).reshape(SIDE, SIDE), norms)
    return html.Picture("pixels.png", caption, plots.png(figure))


def draw_networks(run: Run, smaller: Smaller) -> html.Picture:
    """Return a network before and after it was made smaller."""
    before, after = (list(weights_of(model).values()) for model in (run.model, smaller.model))
    caption = (
        f"The network of {run.variant.name}, one seed, before and after `shrink`. A line is a weight that is not zero, "
        "and a darker line is a larger weight. A point is orange if all of its weights are zero. The output of such a "
        "neuron is constant, and was added to the biases of the digits. Pixels stay, since images have all of them."
    )
    layers = ("pixels", "first layer", "second layer", "digits")
    figure = plots.networks({"before": before, "after": after}, layers, point="pixel, neuron or digit")
    return html.Picture("networks.png", caption, plots.png(figure))


def page_of(results: Results, pictures: Sequence[html.Picture], output: Path) -> html.Page:
    """Return the report as a page."""
    seeds, epochs = len(results.variants[0].seeds), results.configuration["epochs"]
    options = f"--seeds {seeds} --epochs {epochs} --output {shlex.quote(str(output))}"
    command = f"make demo DEMO={shlex.quote(options)}"
    candidates = [
        (c.variant, f"{c.strength:g}", percent(c.validation_accuracy), "chosen" if c.chosen else "")
        for c in results.candidates
    ]
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    return html.Page(
        title="Regularizing a small network in five ways",
        paragraphs=INTRODUCTION,
        findings=findings(results),
        tables=[
            html.Table(TABLE_HEADER, table_rows(results)),
            html.Table(SMALLER_HEADER, smaller_rows(results)),
        ],
        terms=[(variant.name, variant.about) for variant in results.variants],
        pictures=pictures,
        choice=html.Table(("penalty", "strength", "validation accuracy", ""), candidates),
        choice_rule=f"Both strengths were chosen on validation images: {RULE}. Test images were looked at once, "
        "after that.",
        command=command,
        versions=f"Same numbers at every run with the same versions ({versions}), except for times.",
    )
