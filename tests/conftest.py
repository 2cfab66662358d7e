"""Every test starts from the same seed and with the registry of declared layers empty."""

import pytest
import torch
from hypothesis import settings

from shrinkage.declare import _registry

torch.set_num_threads(1)
settings.register_profile("shrinkage", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("shrinkage")


@pytest.fixture(autouse=True)
def fresh_start():
    torch.manual_seed(0)
    yield
    _registry.declarations.clear()
