"""Sparse linear layers are the dense ones without the zeros, through everything that is done to a layer."""

import copy
import importlib
import io
import pickle
import re
import time
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrizations, prune

from shrinkage import (
    L1,
    NofM,
    SparseFormatError,
    SparseLinear,
    SparseReport,
    regularize,
    to_dense,
    to_semi_structured,
    to_sparse,
)
from shrinkage.compression.calls import latency
from shrinkage.compression.sparse import conversion, csr, semi_structured
from shrinkage.compression.sparse.semi_structured import is_two_of_four, semi_structured_obstacle
from shrinkage.compression.sparse.sparse_linear import check_storable

ROUNDING = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}
SHAPES = [(7,), (1, 7), (5, 7), (2, 3, 7), (0, 7), (2, 0, 7)]
DTYPES = sorted(ROUNDING, key=str)


def linear(inputs=7, outputs=6, *, zeros=0.7, bias=True, dtype=torch.float32):
    """A layer with about so many zeros, a zero row and a zero column among them."""
    made = nn.Linear(inputs, outputs, bias=bias, dtype=dtype)
    with torch.no_grad():
        made.weight[torch.rand(outputs, inputs) < zeros] = 0.0
        made.weight[1:2] = 0.0
        made.weight[:, 2:3] = 0.0
    return made


def network(zeros=0.9):
    return nn.Sequential(linear(16, 32, zeros=zeros), nn.ReLU(), linear(32, 4, zeros=zeros)).eval()


def saved_and_loaded(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


# The layer.


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_outputs_and_gradients_are_those_of_the_dense_layer(dtype, shape, bias):
    dense = linear(bias=bias, dtype=dtype)
    sparse = SparseLinear.from_linear(dense)
    x = torch.randn(shape, dtype=dtype)
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [layer(each) for layer, each in zip((dense, sparse), inputs, strict=True)]
    weighing = torch.randn_like(outputs[0])
    for output in outputs:
        output.backward(weighing)
    present = dense.weight != 0
    pairs = [outputs, [each.grad for each in inputs], [dense.weight.grad[present], sparse.values.grad]]
    for expected, found in [*pairs, [dense.bias.grad, sparse.bias.grad]] if bias else pairs:
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])
    assert outputs[1].is_contiguous()


def test_narrow_types_are_summed_in_float32_on_a_cpu():
    dense = nn.Linear(4096, 1, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(dense.weight)
    x = torch.full((2, 4096), 1 + 2**-7, dtype=torch.bfloat16)
    assert SparseLinear.from_linear(dense)(x).tolist() == [[4128.0]] * 2


def test_gradients_are_the_derivatives():
    sparse = SparseLinear.from_linear(linear(dtype=torch.float64))
    x = torch.randn(3, 7, dtype=torch.float64, requires_grad=True)

    def product(x, values, bias):
        return csr.sparse_linear(x, sparse.crow, sparse.col, values, bias, 7)

    assert torch.autograd.gradcheck(product, (x, sparse.values, sparse.bias))


# From torch 2.14, opcheck itself asks for the gradient of a tensor that is no leaf.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_the_operator_keeps_torchs_rules_for_operators():
    sparse = SparseLinear.from_linear(linear())
    x = torch.randn(2, 3, 7, requires_grad=True)
    torch.library.opcheck(csr.sparse_linear, (x, sparse.crow, sparse.col, sparse.values, sparse.bias, 7))
    sparse.requires_grad_(False)
    grad = torch.randn(3, 6)
    arguments = (grad, sparse.crow, sparse.col, sparse.values, 7)
    torch.library.opcheck(csr.input_gradient, arguments)
    torch.library.opcheck(csr.values_gradient, (grad, torch.randn(3, 7), sparse.crow, sparse.col))


def test_second_derivatives_are_refused():
    sparse, x = SparseLinear.from_linear(linear()), torch.randn(3, 7, requires_grad=True)
    for wanted in (x, sparse.values):
        (first,) = torch.autograd.grad(sparse(x).square().sum(), wanted, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivatives"):
            torch.autograd.grad(first.sum(), x, allow_unused=True)


def test_the_operators_outlive_their_module():
    before = SparseLinear.from_linear(linear())
    importlib.reload(csr)
    torch.testing.assert_close(before(torch.ones(2, 7)), before.to_linear()(torch.ones(2, 7)))


@pytest.mark.parametrize("zeros", [0.0, 1.0], ids=["no zeros", "zeros only"])
def test_extreme_densities(zeros):
    dense = nn.Linear(7, 6)
    if zeros:
        nn.init.zeros_(dense.weight)
    sparse = SparseLinear.from_linear(dense)
    assert sparse.density == 1 - zeros
    for batch in (1, 5):
        x = torch.randn(batch, 7, requires_grad=True)
        torch.testing.assert_close(sparse(x), dense(x), rtol=1e-6, atol=1e-6)
        (grad,) = torch.autograd.grad(sparse(x).sum(), x)
        torch.testing.assert_close(grad, dense.weight.sum(0).expand(batch, 7), rtol=1e-6, atol=1e-6)


def test_weights_come_back_bit_for_bit():
    dense = linear(dtype=torch.bfloat16)
    with torch.no_grad():
        dense.weight[0, 0] = float("nan")
        dense.weight[3, 0] = float("inf")
        dense.weight[4, 0] = -0.0
    back = SparseLinear.from_linear(dense).to_linear()
    assert type(back) is nn.Linear
    expected = torch.where(dense.weight == 0, 0.0, dense.weight)
    assert torch.equal(back.weight.view(torch.int16), expected.view(torch.int16))
    assert torch.equal(back.bias, dense.bias)
    assert back.weight.data_ptr() != dense.weight.data_ptr()


def test_flags_are_kept():
    dense = linear().eval()
    dense.weight.requires_grad_(False)
    for layer in (sparse := SparseLinear.from_linear(dense), sparse.to_linear()):
        assert layer.bias.requires_grad
        assert not layer.training
    assert not sparse.values.requires_grad
    assert not sparse.to_linear().weight.requires_grad


def test_zeros_are_neither_stored_nor_trained():
    dense = linear(100, 50, zeros=0.95)
    sparse = SparseLinear.from_linear(dense)
    assert len(sparse.values) == int((dense.weight != 0).sum())
    assert {buffer.dtype for buffer in sparse.buffers()} == {torch.int32}
    optimizer = torch.optim.SGD(sparse.parameters(), lr=0.1)
    sparse(torch.randn(8, 100)).square().sum().backward()
    optimizer.step()
    assert torch.equal(sparse.weight != 0, dense.weight != 0)
    assert not torch.equal(sparse.weight, dense.weight)


def test_text_tells_the_density():
    sparse = SparseLinear(4, 2, nonzeros=2, bias=False)
    assert repr(sparse) == "SparseLinear(in_features=4, out_features=2, bias=False, density=0.25)"
    assert torch.equal(sparse(torch.ones(3, 4)), torch.zeros(3, 2))


def test_inputs_that_do_not_fit_are_refused():
    sparse = SparseLinear.from_linear(linear())
    for shape in [(5, 6), (5, 8), ()]:
        with pytest.raises(ValueError, match=r"expected an input of shape \(\*, 7\)"):
            sparse(torch.ones(shape))
    with pytest.raises(TypeError, match=r"type torch.float32, that of the layer, got torch.float64"):
        sparse(torch.ones(5, 7, dtype=torch.float64))


def test_weights_that_can_not_be_stored_are_refused():
    with pytest.raises(SparseFormatError, match=r"got torch\.complex64"):
        SparseLinear.from_linear(nn.Linear(2, 2, dtype=torch.complex64))
    with pytest.raises(SparseFormatError, match="at most 4 of 4 weights"):
        SparseLinear(2, 2, nonzeros=5)
    check_storable(2**31 - 1, 2**33, torch.float32)
    with pytest.raises(SparseFormatError, match="indices are 32-bit"):
        check_storable(2**31, 2**33, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_gives_what_it_gives_with_the_dense_layer(dtype):
    dense = linear()
    sparse = SparseLinear.from_linear(dense)
    for x in (torch.randn(5, 7), torch.randn(5, 7, dtype=dtype)):
        with torch.autocast("cpu", dtype=dtype):
            expected, found = dense(x), sparse(x)
            found.float().sum().backward()
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=ROUNDING[dtype], atol=ROUNDING[dtype])
    double = SparseLinear.from_linear(linear(dtype=torch.float64))
    with torch.autocast("cpu", dtype=dtype):
        assert double(torch.ones(7, dtype=torch.float64)).dtype == torch.float64


# Copies and files.


@pytest.mark.parametrize("way", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded])
def test_copies_are_the_same_and_apart(way):
    sparse = SparseLinear.from_linear(linear())
    x = torch.randn(5, 7)
    copied, before = way(sparse), sparse(x)
    assert torch.equal(copied(x), before)
    with torch.no_grad():
        copied.values.zero_()
    assert torch.equal(sparse(x), before)


@pytest.mark.parametrize("assign", [False, True])
def test_state_dicts_are_loaded(assign, tmp_path):
    sparse = nn.Sequential(SparseLinear.from_linear(linear()))
    save_file(sparse.state_dict(), tmp_path / "model.safetensors")
    skeleton = nn.Sequential(SparseLinear(7, 6, nonzeros=len(sparse[0].values)))
    skeleton.load_state_dict(load_file(tmp_path / "model.safetensors"), assign=assign)
    x = torch.randn(5, 7)
    assert torch.equal(skeleton(x), sparse(x))
    assert torch.equal(skeleton[0].weight, sparse[0].weight)


def test_a_state_of_another_sparsity_is_refused_and_nothing_is_loaded():
    saved = nn.Sequential(SparseLinear.from_linear(linear(zeros=0.5)))
    other = nn.Sequential(SparseLinear.from_linear(linear(zeros=0.8)))
    before, count = copy.deepcopy(other.state_dict()), len(saved[0].values)
    with pytest.raises(RuntimeError, match=f"0: {count} non-zero weights were saved.*nonzeros={count}"):
        other.load_state_dict(saved.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


@pytest.mark.parametrize(
    ("name", "place", "value"), [("col", 0, 7), ("col", 0, -1), ("crow", -1, 99), ("crow", 1, 99), ("crow", 0, 1)]
)
def test_a_state_that_points_outside_of_the_matrix_is_refused(name, place, value):
    sparse = SparseLinear.from_linear(linear(zeros=0.0))
    broken = copy.deepcopy(sparse.state_dict())
    broken[name][place] = value
    with pytest.raises(RuntimeError, match="no CSR matrix of 6x7"):
        sparse.load_state_dict(broken)


def test_a_dense_state_is_refused_by_torch():
    with pytest.raises(RuntimeError, match="Missing key"):
        SparseLinear.from_linear(linear()).load_state_dict(linear().state_dict())


def test_the_layer_moves_between_types():
    sparse = SparseLinear.from_linear(linear())
    assert sparse.double()(torch.ones(7, dtype=torch.float64)).dtype == torch.float64
    assert sparse.crow.dtype == torch.int32
    assert sparse.float().to("meta")(torch.ones(5, 7, device="meta")).shape == (5, 6)


# Compilers and exporters.


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_the_layer_is_compiled_in_one_graph(backend):
    model = nn.Sequential(SparseLinear.from_linear(linear()), nn.Tanh())
    compiled = torch.compile(model, backend=backend, fullgraph=True, dynamic=True)
    for batch in (2, 5):
        x = torch.randn(batch, 7, requires_grad=True)
        expected = torch.autograd.grad(model(x).sum(), [x, *model.parameters()])
        found = torch.autograd.grad(compiled(x).sum(), [x, *model.parameters()])
        torch.testing.assert_close(compiled(x), model(x))
        torch.testing.assert_close(found, expected)
        with torch.autocast("cpu"):
            assert compiled(x).dtype == torch.bfloat16


def dynamic_export(model, x):
    return torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # torch 2.11 reads its own file so
@pytest.mark.parametrize("way", [lambda m: to_sparse(m, keep_if_faster=False).model, to_dense, lambda m: m])
def test_models_are_exported_with_a_dynamic_batch(way):
    model = way(network())
    file = io.BytesIO()
    torch.export.save(dynamic_export(model, torch.randn(3, 16)), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (2, 3, 9):
        x = torch.randn(batch, 16)
        torch.testing.assert_close(loaded(x), model(x))


@pytest.mark.filterwarnings("ignore")  # the exporter deprecates parts of itself
def test_dense_models_run_in_onnxruntime(tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    model = to_dense(to_sparse(network(), keep_if_faster=False).model)
    inputs, path = torch.randn(3, 16), str(tmp_path / "model.onnx")
    batch = {0: torch.export.Dim("batch")}
    torch.onnx.export(model, (inputs,), path, dynamo=True, dynamic_shapes=(batch,), verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows in (1, 3, 9):
        x = torch.randn(rows, 16)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(x).detach())


@pytest.mark.filterwarnings("ignore")  # of the exporter
def test_the_guides_code_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("onnxscript")
    guide = (Path(__file__).parents[2] / "docs" / "sparse.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    names = {}
    for block in blocks:
        exec(block, names)
    assert "512x512" in capsys.readouterr().out
    assert (tmp_path / "model.onnx").exists()
    assert 0.9 < float((names["model"][0].weight == 0).float().mean()) < 1


# Models.


def by_class(*fast):
    """A clock for `to_sparse`: sparse layers of these numbers of output features are fast, dense ones take 1 second."""

    def seconds(call, device):
        layer = call.func
        return 1.0 if isinstance(layer, nn.Linear) else 0.25 if layer.out_features in fast else 2.0

    return seconds


def test_layers_are_converted_where_that_is_faster(monkeypatch):
    monkeypatch.setattr(latency, "seconds_of", by_class(32))
    model = network()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(6, 16)
    small, report = to_sparse(model, example_inputs=x)
    assert [type(layer) for layer in small] == [SparseLinear, nn.ReLU, nn.Linear]
    assert report.converted == ("0",)
    assert [(layer.dense, layer.sparse, layer.kept_because) for layer in report.layers] == [
        (1.0, 0.25, ""),
        (1.0, 2.0, "not faster"),
    ]
    torch.testing.assert_close(small(x), model(x))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_pre_hooks for module in [*model, *small])
    lines = str(report).splitlines()
    assert lines[0].split() == "layer weight zeros dense ms sparse ms times as fast now".split()
    assert lines[2].split()[-4:] == ["1e+03", "250", "4.00", "sparse"]
    assert lines[3].endswith("dense: not faster")


def test_a_call_takes_its_time():
    assert latency.seconds_of(lambda: time.sleep(0.01), torch.device("cpu")) >= 0.01
    small, report = to_sparse(network(), example_inputs=torch.randn(5, 16))
    assert all(layer.dense > 0 and layer.sparse > 0 for layer in report.layers)
    assert {name for name, module in small.named_modules() if isinstance(module, SparseLinear)} == set(report.converted)


class Unusual(nn.Module):
    """Calls a layer with several shapes and by keyword, another one never, and counts its calls."""

    modes: ClassVar[list] = []

    def __init__(self):
        super().__init__()
        self.often, self.never = linear(16, 16), linear(16, 16)
        self.dropout = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, *, times=1):
        self.calls += 1
        self.modes.append(self.training)
        for _ in range(times):
            x = self.often(input=x)
        return {"all": self.dropout(x), "first": self.often(x[:1])}


def test_times_are_those_of_the_calls_there_are(monkeypatch):
    seen = []

    def seconds(call, device):
        (x,) = call.args
        seen.append((x.shape[0], torch.is_grad_enabled()))
        return x.shape[0] if isinstance(call.func, nn.Linear) else 0.5

    monkeypatch.setattr(latency, "seconds_of", seconds)
    model = Unusual().train()
    small, report = to_sparse(model, example_inputs=torch.randn(6, 16), example_kwargs={"times": 3}, min_sparsity=0.3)
    often, never = report.layers
    assert (often.dense, often.sparse) == (3 * 6 + 1, 4 * 0.5)
    assert set(seen) == {(6, False), (1, False)}
    assert never.kept_because == "not called with the example inputs"
    assert model.calls == small.calls == 0
    assert not any(Unusual.modes)
    assert model.training
    assert small.dropout.training


def test_layers_are_timed_under_the_autocast_that_they_run_under(monkeypatch):
    seen = []
    monkeypatch.setattr(latency, "seconds_of", lambda call, device: seen.append(call().dtype) or 1.0)

    class Cast(nn.Sequential):
        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return super().forward(x)

    to_sparse(Cast(linear(), nn.ReLU(), linear(6, 3)), example_inputs=torch.randn(5, 7), min_sparsity=0.3)
    assert set(seen) == {torch.bfloat16}


def test_rounds_are_in_turns_and_the_first_does_not_count(monkeypatch):
    seen = []
    monkeypatch.setattr(latency, "seconds_of", lambda call, device: seen.append(call) or float(len(seen)))
    cpu = torch.device("cpu")
    assert latency.medians_in_turns(["a", "b"], cpu) == [23.0, 24.0]
    assert seen[:4] == ["a", "b", "a", "b"]
    seen.clear()
    latency.medians_in_turns(["a", "b"], cpu, seconds=0.0)
    assert len(seen) == 8
    seen.clear()
    assert latency.medians_in_turns(["a", "b"], cpu, seconds=0.0, least=1, warm=True) == [1.0, 2.0]


class Own(nn.Linear):
    """A class of its own, which may do anything."""


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(6, 7), linear()
        self.layer.weight = self.embedding.weight

    def forward(self, x):
        return self.layer(x)


def hooked(layer):
    layer.register_forward_hook(lambda module, args, output: output + 1)
    return layer


def patched(layer):
    layer.forward = lambda x: nn.functional.linear(x, layer.weight) + 1
    return layer


LEFT_ALONE = {
    "WeightNorm computes": lambda: parametrizations.weight_norm(nn.Linear(7, 6)),
    "Own": lambda: Own(7, 6),
    "prune computes": lambda: prune.l1_unstructured(linear(), "weight", 0.5),
    "hooks": lambda: hooked(linear()),
    "forward was replaced": lambda: patched(linear()),
    "shares a parameter": Tied,
    "complex64": lambda: nn.Linear(7, 6, dtype=torch.complex64),
    "no ordinary tensor": lambda: nn.Linear(7, 6, device="meta"),
    "fewer than 100% zeros": lambda: linear(),
}


@pytest.mark.parametrize(("reason", "make"), LEFT_ALONE.items(), ids=LEFT_ALONE)
def test_layers_that_are_more_than_their_weights_are_left_alone(reason, make):
    model = nn.Sequential(make())
    small, report = to_sparse(model, keep_if_faster=False, min_sparsity=1.0 if "fewer" in reason else 0.0)
    assert not any(isinstance(module, SparseLinear) for module in small.modules())
    (layer,) = report.layers
    assert reason in layer.kept_because
    assert reason in str(report)
    if reason not in ("complex64", "no ordinary tensor"):
        x = torch.randn(5, 7)
        assert torch.equal(small(x), model(x))


def test_a_lazy_layer_is_left_alone():
    small, report = to_sparse(nn.Sequential(nn.LazyLinear(3)), keep_if_faster=False)
    assert isinstance(small[0], nn.LazyLinear)
    assert (report.layers[0].shape, report.layers[0].zeros) == (None, None)
    assert "LazyLinear" in str(report)


def test_a_layer_in_several_places_is_one_layer_still():
    shared = linear(16, 16)
    model = nn.ModuleDict({"a": nn.Sequential(shared, nn.ReLU()), "b": shared})
    model.in_a_list = [shared]
    small, report = to_sparse(model, keep_if_faster=False, min_sparsity=0.3)
    assert report.converted == ("a.0",)
    assert isinstance(small["b"], SparseLinear)
    assert small["a"][0] is small["b"] is small.in_a_list[0]
    dense = to_dense(small)
    assert dense["a"][0] is dense["b"] is dense.in_a_list[0]
    assert torch.equal(dense["b"].weight, shared.weight)


def test_a_model_that_is_one_layer():
    dense = linear()
    small, report = to_sparse(dense, keep_if_faster=False, min_sparsity=0.3)
    assert isinstance(small, SparseLinear)
    assert str(report).splitlines()[2].startswith("the model  6x7")
    assert torch.equal(to_dense(small).weight, dense.weight)


def test_pruned_layers_beside_are_copied_too():
    model = nn.Sequential(linear(), prune.l1_unstructured(nn.Linear(6, 3), "weight", 0.5))
    small, report = to_sparse(model, keep_if_faster=False, example_inputs=torch.randn(5, 7), min_sparsity=0.3)
    assert report.converted == ("0",)
    with torch.no_grad():
        small[1].weight_orig.mul_(2)
        x = torch.randn(5, 7)
        torch.testing.assert_close(small(x) - small[1].bias, 2 * (model(x) - model[1].bias))


def test_declared_layers_are_converted():
    small, _ = to_sparse(nn.Sequential(regularize(linear(), L1(0.1))), keep_if_faster=False, min_sparsity=0.3)
    assert isinstance(small[0], SparseLinear)


@pytest.mark.filterwarnings("ignore:.*nested tensor")
def test_code_that_looks_at_the_weight_gets_the_dense_one():
    model = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True).eval()
    with torch.no_grad():
        model.linear1.weight[torch.rand(16, 8) < 0.8] = 0.0
    small, report = to_sparse(model, keep_if_faster=False, min_sparsity=0.6)
    assert report.converted == ("linear1",)
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(small(x), model(x))
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x))


def test_models_that_change_with_the_class_of_a_layer_are_refused():
    class Looks(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + (0 if isinstance(self[0], nn.Linear) else 1e-2)

    with pytest.raises(SparseFormatError, match="with 0 sparse, the outputs"):
        to_sparse(Looks(linear()), keep_if_faster=False, example_inputs=torch.randn(5, 7), min_sparsity=0.3)


def test_random_models_are_compared_with_the_same_numbers():
    class Noisy(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + torch.randn(())

    model, x = Noisy(linear()), torch.randn(5, 7)
    state = torch.random.get_rng_state()
    to_sparse(model, keep_if_faster=False, example_inputs=x, min_sparsity=0.3)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("expected", "found", "equal"),
    [
        ([1.0, 1e-6], [1.0, 0.0], True),
        ([1.0, 1e-2], [1.0, 0.0], False),
        ([float("nan"), float("inf")], [float("nan"), float("inf")], True),
        ([1.0, 2.0], [1.0, float("nan")], False),
        ([1.0], [1.0, 1.0], False),
        ([], [], True),
    ],
)
def test_what_is_rounding(expected, found, equal):
    assert conversion._equal_but_for_rounding(torch.tensor(expected), torch.tensor(found)) is equal
    whole = [torch.tensor(values).nan_to_num().int() for values in ([1.0, 2.0], [1.0, 3.0])]
    assert not conversion._equal_but_for_rounding(*whole)


def test_arguments_that_say_nothing_are_refused():
    with pytest.raises(ValueError, match="example_inputs are needed"):
        to_sparse(network())
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="min_sparsity must be a share"):
            to_sparse(network(), keep_if_faster=False, min_sparsity=share)


def test_an_empty_report():
    small, report = to_sparse(nn.Sequential(nn.ReLU()), keep_if_faster=False)
    assert report == SparseReport(())
    assert isinstance(small[0], nn.ReLU)


# The 2:4 format.


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, ""),
        ({"capability": (9, 0)}, ""),
        ({"capability": (8, 9), "cusparselt": False}, ""),
        ({"dtype": torch.bfloat16}, ""),
        ({"capability": (7, 5)}, "compute capability 7.5, 8.0 or more"),
        ({"capability": (9, 0), "cusparselt": False}, "no cuSPARSELt, which compute capability 9.0 needs"),
        ({"dtype": torch.float32}, "TF32, use float16 or bfloat16"),
        ({"dtype": torch.float64}, "torch.float64, use float16"),
        ({"shape": (48, 128)}, "48x128, which has to be a multiple of 32x64"),
        ({"shape": (32, 96)}, "32x96, which has"),
        ({"shape": (0, 64)}, "0x64, which has"),
    ],
)
def test_what_the_format_asks_for(change, words):
    weight = {"shape": (64, 128), "dtype": torch.float16, "capability": (8, 0), "cusparselt": True}
    reason = semi_structured_obstacle(**(weight | change))
    assert words in reason
    assert bool(reason) == bool(words)


def test_what_is_two_of_four():
    w = torch.randn(32, 64)
    assert not is_two_of_four(w)
    assert is_two_of_four(NofM(2, 4).prox(w, 1.0))
    assert not is_two_of_four(NofM(3, 4).prox(w, 1.0))
    assert not is_two_of_four(torch.zeros(4, 6))


def test_models_without_a_fitting_layer_are_refused_in_words():
    with pytest.raises(SparseFormatError, match=r"0: its weight is on cpu.*1: of a class of its own, Own"):
        to_semi_structured(nn.Sequential(linear(64, 32), Own(64, 32)))
    with pytest.raises(SparseFormatError, match="the model has none"):
        to_semi_structured(nn.ReLU())


def test_fitting_layers_are_handed_to_torch(monkeypatch):
    """Without a device of that kind, up to the call that would need one."""
    monkeypatch.setattr(semi_structured, "_weight_obstacle", lambda w: "" if is_two_of_four(w) else "pattern")
    monkeypatch.setattr(torch.sparse, "to_sparse_semi_structured", lambda w: -w)
    fitting = nn.Linear(64, 32)
    with torch.no_grad():
        fitting.weight.copy_(NofM(2, 4).prox(fitting.weight, 1.0))
    model = nn.Sequential(fitting, nn.Linear(64, 32))
    result, report = to_semi_structured(model)
    assert report.converted == ("0",)
    assert report.layers[1].kept_because == "pattern"
    assert torch.equal(result[0].weight, -model[0].weight)
    assert torch.equal(result[1].weight, model[1].weight)
    assert not result[0].weight.requires_grad


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device of compute capability 8.0")
def test_semi_structured_layers_compute_the_same_on_cuda():
    model = nn.Sequential(nn.Linear(128, 64)).cuda().half()
    with torch.no_grad():
        model[0].weight.copy_(NofM(2, 4).prox(model[0].weight, 1.0))
    result, report = to_semi_structured(model)
    assert report.converted == ("0",)
    x = torch.randn(64, 128, device="cuda", dtype=torch.float16)
    torch.testing.assert_close(result(x), model(x), rtol=1e-2, atol=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sparse_layers_compute_the_same_on_cuda(dtype):
    dense = linear(64, 32, dtype=dtype).cuda()
    sparse = SparseLinear.from_linear(dense)
    for batch in (1, 9):
        inputs = [torch.ones(batch, 64, device="cuda", dtype=dtype, requires_grad=True) for _ in range(2)]
        outputs = [layer(x) for layer, x in zip((dense, sparse), inputs, strict=True)]
        torch.testing.assert_close(outputs[1], outputs[0], rtol=ROUNDING[dtype], atol=10 * ROUNDING[dtype])
        for output in outputs:
            output.sum().backward()
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad, rtol=ROUNDING[dtype], atol=10 * ROUNDING[dtype])
