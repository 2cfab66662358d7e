"""Imports point down only; the public surface is complete, documented and shown by examples."""

import ast
import doctest
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import shrinkage
from shrinkage.compat import torchlayers

SOURCE = Path(shrinkage.__file__).parent
FLOORS = [
    {
        "errors",
        "private",
        "prox",
        "groups",
        "schedules",
        "tables",
        "duality",
        "radial",
        "radial_search",
        "coupled",
        "projections",
        "total_variation",
        "proximal_gradient",
        "sums",
        "rounding",
        "beside",
        "passengers",
        "random_states",
        "saved",
    },
    {"penalties"},
    {
        "dead",
        "parametrized",
        "unregistered",
        "flattened",
        "matrices",
        "select",
        "eligible",
        "how",
        "families",
        "sharding",
        "plan",
        "declaration",
    },
    {
        "metric",
        "metrics",
        "apply",
        "across",
        "coupling",
        "batches",
        "compiled",
        "compiled_slabs",
        "folding",
        "slabs",
        "inplace",
        "kernels",
        "intervals",
        "optimizers",
        "averages",
        "gradients",
        "hooks",
        "left_behind",
        "charge",
        "narrow",
        "update",
        "attachment",
        "declarations",
        "declare",
        "progress",
        "advice",
        "residuals",
        "stationarity",
        "restoring",
        "riding",
        "steps",
        "regularizer",
    },
    {"checkpoints", "threshold", "report", "shrink"},
    {"compat", "curves", "sets", "plots", "html", "formats", "cli", "demo", "integrations"},
]
EXTRAS = {"jinja2", "lightning", "matplotlib", "numpy", "rich", "safetensors", "sklearn", "transformers", "typer"}
FILES = sorted(SOURCE.rglob("*.py"))


def concept(path: Path) -> str:
    """The first component of a module's name below the package."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def floor(name: str) -> int:
    (found,) = [index for index, names in enumerate(FLOORS) if name in names]
    return found


def imported(path: Path) -> set[str]:
    """The dotted names of all modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            if node.module == "shrinkage":
                found |= {f"shrinkage.{alias.name}" for alias in node.names}
    return found


def test_every_file_stands_on_a_floor():
    assert {concept(path) for path in FILES} - {"__init__", "__main__"} == set().union(*FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down_only(path):
    own = concept(path)
    if own in ("__init__", "__main__"):
        return
    concepts = {name.split(".")[1] for name in imported(path) if name.startswith("shrinkage.")}
    inside = {name for name in concepts if (SOURCE / name).exists() or (SOURCE / f"{name}.py").exists()}
    above = {name for name in inside if floor(name) > floor(own)}
    assert not above, f"{own} (floor {floor(own)}) imports {above}"
    if floor(own) == 4:
        assert not inside & FLOORS[3], "what comes after training knows nothing of how it was trained"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_only_the_top_floor_imports_optional_packages(path):
    packages = {name.split(".")[0] for name in imported(path)}
    others = packages - {"shrinkage", "torch"} - set(sys.stdlib_module_names)
    assert others <= (EXTRAS if concept(path) in FLOORS[5] else set())


def test_importing_the_package_needs_torch_alone():
    code = f"import sys, shrinkage; print(sorted({EXTRAS!r} & set(sys.modules) - {{'numpy'}}))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"


HEAVY = ("torch._dynamo", "torch._inductor", "torch.export", "torch.onnx", "torch.utils.flop_counter", "triton")


def test_importing_the_package_imports_no_compiler_exporter_or_counter():
    code = "import sys, torch; before = set(sys.modules); import shrinkage; print(sorted(set(sys.modules) - before))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "shrinkage" in output.stdout
    assert not [name for name in eval(output.stdout) if name.startswith(HEAVY)]


@pytest.mark.parametrize("collects", [True, False])
def test_importing_the_package_waits_for_no_collections_and_leaves_the_collector_as_it_was(collects):
    code = (
        "import gc, torch; collections = []\n"
        f"{'gc.enable()' if collects else 'gc.disable()'}\n"
        "gc.callbacks.append(lambda phase, information: collections.append(phase))\n"
        "import shrinkage; print(collections.count('stop'), gc.isenabled())"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    number, enabled = output.stdout.split()
    assert int(number) <= 2
    assert enabled == str(collects)


def test_names_are_exported_in_order():
    namespace = {}
    exec("from shrinkage import *", namespace)
    assert set(shrinkage.__all__) <= set(namespace)
    public = {
        name for name, value in vars(shrinkage).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public == set(shrinkage.__all__)


PUBLIC = [(name, getattr(shrinkage, name)) for name in shrinkage.__all__]
PUBLIC += [("torchlayers.L1", torchlayers.L1), ("torchlayers.L2", torchlayers.L2)]
RESULTS = {
    "ShrinkReport",
    "Shrunk",
    "Report",
    "SparseReport",
    "Sparsified",
    "Residuals",
    "Plan",
    "Penalty",
    "Groups",
}  # what functions return, and what users derive from


@pytest.mark.parametrize(("name", "thing"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_public_names_are_documented_with_an_example(name, thing):
    first = inspect.getdoc(thing).splitlines()[0]
    assert first.endswith((".", ":"))
    if not (inspect.isclass(thing) and issubclass(thing, Exception)) and name not in RESULTS:
        assert doctest.DocTestFinder(recurse=False).find(thing, name)[0].examples


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_everything_public_has_a_docstring(path):
    module = ast.parse(path.read_text())
    assert ast.get_docstring(module)
    for owner in (module, *(node for node in module.body if isinstance(node, ast.ClassDef))):
        for node in owner.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_are_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            body = node.end_lineno - node.lineno - len((ast.get_docstring(node) or "").splitlines())
            assert body <= 40, f"{path.name}: {node.name}"
