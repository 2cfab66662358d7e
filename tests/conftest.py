"""Every test starts from one seed, without declared layers, and with what the library itself registers."""

import gc
import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

import shrinkage
from shrinkage.compression.plans.layers import _rules
from shrinkage.execution import native_build
from shrinkage.optimizers.registry import _metrics
from shrinkage.penalties.base import SUMS
from shrinkage.selection.declaration import living

expected = os.environ.get("SHRINKAGE_UNDER_TEST")
if expected and Path(expected) != Path(shrinkage.__file__).parent:
    pytest.exit(f"expected to test {expected}, found {shrinkage.__file__}", returncode=5)

torch.set_num_threads(1)
settings.register_profile("shrinkage", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("shrinkage")


@pytest.fixture(autouse=True)
def fresh_start():
    torch.manual_seed(0)
    sums, metrics, rules = list(SUMS), dict(_metrics), dict(_rules)
    yield
    SUMS[:] = sums
    for table, kept in ((_metrics, metrics), (_rules, rules)):
        table.clear()
        table.update(kept)
    living.clear()


@pytest.fixture
def without_native(monkeypatch):
    """No native kernels, as where there is no compiler for them."""
    state = native_build._State()
    state.asked = True
    monkeypatch.setattr(native_build, "_state", state)


def pytest_collection_finish():
    """What is imported and collected lives to the end: no collection of garbage has to go through it again."""
    gc.collect()
    gc.freeze()
