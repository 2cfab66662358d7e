"""Smaller models have the outputs of the dense ones, over the zoo and over random models."""

import pytest
from hypothesis import given, settings

from channels import free_channels
from shrinkage import shrink
from zoo import graphs
from zoo.harness import run
from zoo.own import CASES

RANDOM = [graphs.at_random(seed, 6 + seed % 20) for seed in range(24)]
LSTM = "ignore:The tensor attributes .*_flat_weights:UserWarning"


def shrunk(model, arguments, keywords):
    return shrink(model, arguments, example_kwargs=keywords).model


@pytest.mark.filterwarnings(LSTM)
@pytest.mark.parametrize("mode", ["all", "weights"])
@pytest.mark.parametrize("case", CASES + RANDOM, ids=str)
def test_outputs_are_those_of_the_dense_model(case, mode):
    result = run(case, free_channels, shrunk, mode)
    assert result.error < 1e-5


@given(graphs.cases())
@settings(max_examples=25, deadline=None)
def test_outputs_of_any_model_are_those_of_the_dense_one(case):
    assert run(case, free_channels, shrunk, "all").error < 1e-5
