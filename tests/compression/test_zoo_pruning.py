"""What torch-pruning makes of the zoo: exact where channels are coupled in plain ways, and known to fail elsewhere."""

import pytest

from channels import free_channels
from zoo.own import CASES

pruning = pytest.importorskip("zoo.pruning")
NAMED = {case.name: case for case in CASES}
EXACT = [
    "mlp", "swiglu", "tied-swiglu", "tied-weights", "low-rank-branch", "dropout", "bag", "resnet", "mobilenet", "unet",
    "unet-upsampled", "squeeze-excite", "flattened", "densenet", "pooled", "conv3d", "tied-embedding",
]  # fmt: skip
WRONG = ["recurrent", "softmax-channels", "activations", "padded", "vgg"]


@pytest.mark.parametrize("name", EXACT)
def test_it_is_exact_on_plain_coupling(name):
    assert pruning.error(NAMED[name]) < 1e-6


@pytest.mark.parametrize("name", WRONG)
def test_it_is_silently_wrong_where_zero_does_not_stay_zero(name):
    assert 1e-5 < pruning.error(NAMED[name]) < 10


def channels(name):
    """The channels of a model, each as a set of slices."""
    found = pruning.channels(NAMED[name].make(), NAMED[name].example()[0])
    return [{(member.parameter, member.dim, tuple(member.indices), member.role) for member in one} for one in found]


SAME = [
    "mlp", "swiglu", "low-rank-branch", "dropout", "resnet", "mobilenet", "unet", "unet-upsampled", "squeeze-excite",
    "flattened", "densenet", "pooled", "conv3d",
]  # fmt: skip


@pytest.mark.parametrize("name", SAME)
def test_what_makes_a_channel_is_what_torch_pruning_finds(name):
    case = NAMED[name]

    def made(found):
        return {
            frozenset((one.parameter, one.dim, tuple(sorted(one.indices))) for one in channel if one.role == "out")
            for channel in found
        }

    model, (arguments, keywords) = case.make(), case.example()
    assert made(free_channels(model, arguments, keywords)) == made(pruning.channels(model, arguments))


def test_channels_are_slices_of_parameters():
    found = channels("mlp")
    assert len(found) == 16 + 20
    made = {(name, 0, (3,), "out") for name in ("0.weight", "0.bias", "1.weight", "1.bias")}
    assert made | {("3.weight", 1, (3,), "in")} in found


def test_a_flattened_channel_is_read_in_several_columns():
    made = {("first.0.weight", 0, (2,), "out"), ("first.0.bias", 0, (2,), "out")}
    assert made | {("hidden.weight", 1, (8, 9, 10, 11), "in")} in channels("flattened")


def test_what_can_not_be_expressed_is_refused():
    with pytest.raises(NotImplementedError, match="grouped"):
        pruning.channels(NAMED["grouped-conv"].make(), NAMED["grouped-conv"].example()[0])
    assert pruning.verdict(NAMED["lstm"]).startswith("NotImplementedError: LSTM")
