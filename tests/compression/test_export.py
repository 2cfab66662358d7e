"""Smaller models leave Python: torch.export with any batch, and ONNX."""

import pytest
import torch

from channels import free_channels
from shrinkage import shrink
from zoo.families import FAMILIES
from zoo.harness import choose, difference, size, zero_
from zoo.own import CASES

MECHANISMS = ("attention-reshaped", "multihead-attention", "nanoGPT", "lstm")  # heads in three ways, recurrent units
LSTM = "ignore:The tensor attributes .*_flat_weights:UserWarning"  # of torch, which puts them back
PLAIN = ("mlp", "mobilenet", "unet", "swiglu")
NAMES = ("resnet", *MECHANISMS, *(pytest.param(name, marks=pytest.mark.slow) for name in PLAIN))
OTHERS = (
    "maxout", "graph-convolution", "mixture-dense", "pixel-shuffle", "depth-multiplier", "minGPT", "einsum-attention",
    "rotary", "grouped-queries-native", "vision-transformer",
)  # fmt: skip


@pytest.fixture(params=NAMES)
def small(request):
    """A model of the zoo without a third of its channels, and inputs of two sizes."""
    case = next(case for case in CASES if case.name == request.param)
    model = case.make().eval()
    (example,), keywords = case.example(0, None)
    assert not keywords
    zero_(model, choose(free_channels(model, (example,), {})), "all")
    result = shrink(model, example)
    assert result.report.after.parameters < result.report.before.parameters
    ((other,), _) = case.example(1, len(example) + 3)
    return result.model, example, other


@pytest.fixture
def dynamic():
    return ({0: torch.export.Dim("batch", min=2)},)


@pytest.mark.filterwarnings(LSTM)
def test_smaller_models_export_with_any_batch(small, dynamic):
    model, example, other = small
    program = torch.export.export(model, (example,), dynamic_shapes=dynamic).module()
    for x in (example, other):
        torch.testing.assert_close(program(x), model(x))


@pytest.mark.filterwarnings("ignore")  # the exporter deprecates parts of itself
def test_smaller_models_run_in_onnxruntime(small, dynamic, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    (model, example, other), path = small, str(tmp_path / "model.onnx")
    torch.onnx.export(model, (example,), path, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for x in (example, other):
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the exporter deprecates parts of itself
@pytest.mark.parametrize("name", OTHERS)
def test_smaller_models_of_other_families_leave_python(name):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    case = next(case for case in CASES + FAMILIES if case.name == name)
    model, (example, _) = case.make(), case.example()
    zero_(model, choose(free_channels(model, example, {})), "all")
    small = shrink(model, example).model
    assert size(small) < size(model)
    with torch.no_grad():
        program = torch.export.export(small, example)
        made = torch.onnx.export(program, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(made.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]
    for seed in range(3):
        given, _ = case.example(seed)
        answer = small(*given)
        assert difference(answer, program.module()(*given)) < 1e-5
        (found,) = session.run(None, dict(zip(names, [x.numpy() for x in given], strict=True)))
        assert difference(answer.detach(), torch.from_numpy(found)) < 1e-4
