"""The handwritten digits that come with scikit-learn, split into training, validation and test images."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

SIDE = 8  # images are 8 x 8 pixels
PIXELS = SIDE * SIDE
CLASSES = 10
LARGEST_VALUE = 16  # of a pixel
SPLIT_SEED = 0
SHARE_OF_TEST = SHARE_OF_VALIDATION = 0.2


@dataclass(frozen=True, slots=True)
class Images:
    """Images of shape `(images, pixels)`, values 0 to 1, and the digits that they show."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, order: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all images once, in an order drawn from `order`."""
        for chosen in torch.split(torch.randperm(len(self), generator=order), size):
            yield self.pixels[chosen], self.labels[chosen]


@dataclass(frozen=True, slots=True)
class Digits:
    """Three sets of images that have no image in common, each with its share of every digit."""

    train: Images
    validation: Images
    test: Images


def load() -> Digits:
    """Return the digits; the split is the same at every call."""
    bundled = load_digits()
    images, labels = bundled.data / LARGEST_VALUE, bundled.target
    test = round(SHARE_OF_TEST * len(labels))
    validation = round(SHARE_OF_VALIDATION * len(labels))
    rest, test_images, rest_labels, test_labels = train_test_split(
        images, labels, test_size=test, stratify=labels, random_state=SPLIT_SEED
    )
    train_images, validation_images, train_labels, validation_labels = train_test_split(
        rest, rest_labels, test_size=validation, stratify=rest_labels, random_state=SPLIT_SEED
    )

    def as_tensors(pixels: object, digits: object) -> Images:
        return Images(torch.tensor(pixels, dtype=torch.float32), torch.tensor(digits))

    return Digits(
        train=as_tensors(train_images, train_labels),
        validation=as_tensors(validation_images, validation_labels),
        test=as_tensors(test_images, test_labels),
    )
