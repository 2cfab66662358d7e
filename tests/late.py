"""Packages that take seconds to import are imported when a test first uses them: tests are collected without."""

import importlib
from typing import Any


class Late:
    """A module by its name, imported when something of it is first used."""

    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # pytest asks whatever it finds in a file whether it is a test
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)


celer = Late("celer")
datasets, linear_model, model_selection, neural_network = map(
    Late, ("sklearn.datasets", "sklearn.linear_model", "sklearn.model_selection", "sklearn.neural_network")
)
peft = Late("peft")
transformers = Late("transformers")
torchvision_models = Late("zoo.torchvision_models")
