"""Imports point down only; the public surface is complete, documented and shown by examples."""

import ast
import doctest
import importlib
import inspect
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import shrinkage
from shrinkage.integrations import torchlayers

SOURCE = Path(shrinkage.__file__).parent
# From the ground up: a package imports from those before it alone.
PACKAGES = [
    *("errors", "private", "tables", "proximal", "penalties", "distributed", "selection", "optimizers", "execution"),
    *("diagnostics", "training", "compression", "paths", "pictures", "integrations", "cli"),
]
WITH_EXTRAS = {"pictures", "integrations", "cli"}
EXTRAS = {
    *("jinja2", "lightning", "matplotlib", "numpy", "onnxscript", "rich", "safetensors", "sklearn", "transformers"),
    "typer",
}
IMPORTED_WHERE_USED = {
    "progress_bar.py": {"rich"},  # where it is installed, a path shows a bar; nothing else depends on it
    "smaller_files.py": {"safetensors"},  # it says what to install
}
FILES = sorted(SOURCE.rglob("*.py"))


def package(path: Path) -> str:
    """The package that a file belongs to: the first component of its name below the sources."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


def imported(path: Path) -> set[str]:
    """The dotted names of all modules that a file imports."""
    found = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def own_files(names: set[str]) -> set[str]:
    """Those of the dotted names that are modules of this package, below the top one."""
    parts = {name: SOURCE.joinpath(*name.split(".")[1:]) for name in names if name.startswith("shrinkage.")}
    return {name for name, path in parts.items() if path.is_dir() or path.with_suffix(".py").exists()}


def test_every_file_is_in_a_package():
    assert {package(path) for path in FILES} - {"__init__", "__main__"} == set(PACKAGES)


def test_imports_point_down_only():
    for path in FILES:
        own = package(path)
        others = {name.split(".")[1] for name in own_files(imported(path))}
        if own not in ("__init__", "__main__"):
            above = {name for name in others if PACKAGES.index(name) > PACKAGES.index(own)}
            assert not above, f"{path} imports {above}"
        if own == "compression":
            assert "training" not in others, "what comes after training knows nothing of how it was trained"


def test_what_writes_into_weights_sees_shards_only():
    """Distributed tensors are taken apart before, in `training/step_sizes.py`."""
    written = [path for path in FILES if package(path) == "execution"]
    assert written
    assert not [path.name for path in written if "shrinkage.distributed.dtensor" in imported(path)]


def test_files_import_each_other_in_no_circle():
    arrows = {}
    for path in FILES:
        name = ".".join(["shrinkage", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")
        arrows[name] = own_files(imported(path)) - {name}
    while arrows:
        ground = {name for name, others in arrows.items() if not others & arrows.keys()}
        assert ground, f"a circle among {sorted(arrows)}"
        arrows = {name: others for name, others in arrows.items() if name not in ground}


def test_names_of_files_are_unique_and_hide_nothing():
    names = [path.stem for path in FILES if path.stem != "__init__"]
    assert sorted(set(names)) == sorted(names)
    assert not {path.stem for path in SOURCE.glob("*.py")} & set(sys.stdlib_module_names)
    assert not {path.name for path in SOURCE.iterdir()} & set(shrinkage.__all__)


def test_packages_hand_nothing_on():
    for path in FILES:
        if path.name == "__init__.py" and package(path) != "__init__":
            assert len(parsed(path).body) == 1, path


IMPORTS = """
import importlib, os, sys, shrinkage

def is_attribute(name):
    module = importlib.import_module(name)
    parent, _, last = name.rpartition(".")
    return getattr(sys.modules[parent], last) is module

def is_attribute_in_a_fork(name):
    child = os.fork()
    if not child:
        os._exit(not is_attribute(name))
    return os.waitpid(child, 0)[1] == 0

for name in sys.argv[1:]:
    check = is_attribute if name in sys.modules else is_attribute_in_a_fork
    if not check(name):
        print(name)
"""


def test_every_module_can_be_imported_first():
    """But for the package itself, which Python imports before any module in it."""
    names = [".".join(["shrinkage", *path.relative_to(SOURCE).with_suffix("").parts]) for path in FILES]
    modules = [name for name in names if "__" not in name]
    output = subprocess.run([sys.executable, "-c", IMPORTS, *modules], capture_output=True, text=True, check=True)
    assert output.stdout == "", output.stderr


def test_only_the_upper_packages_import_optional_ones():
    for path in FILES:
        packages = {name.split(".")[0] for name in imported(path)}
        others = packages - {"shrinkage", "torch"} - set(sys.stdlib_module_names)
        assert others <= (EXTRAS if package(path) in WITH_EXTRAS else IMPORTED_WHERE_USED.get(path.name, set())), path


@cache
def modules_imported() -> tuple[set[str], set[str]]:
    """The names of the modules that are there after torch is imported, and those that the package adds."""
    code = (
        "import json, sys, torch; before = set(sys.modules)\n"
        "import shrinkage; print(json.dumps([sorted(before), sorted(set(sys.modules) - before)]))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, added = map(set, json.loads(output.stdout))
    return before, added


def test_importing_the_package_needs_torch_alone():
    before, added = modules_imported()
    assert not EXTRAS & (before | added) - {"numpy"}


HEAVY = ("torch._dynamo", "torch._inductor", "torch.export", "torch.onnx", "torch.utils.flop_counter", "triton")


def test_importing_the_package_imports_no_compiler_exporter_or_counter():
    _, added = modules_imported()
    assert "shrinkage" in added
    assert not [name for name in added if name.startswith(HEAVY)]


LATER = ("shrinkage.execution.compiled", "shrinkage.execution.native", "shrinkage.training.prepared")


def test_importing_the_package_imports_nothing_that_acts_at_steps_alone():
    _, added = modules_imported()
    assert not [name for name in added if name.startswith(LATER)]


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
    "SuggestedStrengths",
    "Plan",
    "Point",
    "Penalty",
    "Groups",
}  # what functions return, and what users derive from


@pytest.mark.parametrize(("name", "thing"), PUBLIC, ids=[name for name, _ in PUBLIC])
def test_public_names_are_documented_with_an_example(name, thing):
    first = inspect.getdoc(thing).splitlines()[0]
    assert first.endswith((".", ":"))
    if not (inspect.isclass(thing) and issubclass(thing, Exception)) and name not in RESULTS:
        assert doctest.DocTestFinder(recurse=False).find(thing, name)[0].examples


def overrides(path: Path, owner: ast.Module | ast.ClassDef, name: str) -> bool:
    """Whether a method of a class has the name of one of a base class of this package, which says what it does."""
    if isinstance(owner, ast.Module) or package(path) in WITH_EXTRAS:
        return False
    module = importlib.import_module(".".join(["shrinkage", *path.relative_to(SOURCE).with_suffix("").parts]))
    bases = getattr(module, owner.name).__mro__[1:]
    return any(name in vars(base) for base in bases if base.__module__.startswith("shrinkage."))


def is_told_apart(owner: ast.FunctionDef | ast.ClassDef) -> bool:
    """Whether a class says what it is by `__doc__`, as those that share a part of it do."""
    return any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__doc__" for node in owner.body)


def test_everything_public_has_a_docstring_where_it_is_defined_first():
    for path in FILES:
        module = parsed(path)
        assert ast.get_docstring(module), path
        for owner in (module, *(node for node in module.body if isinstance(node, ast.ClassDef))):
            for node in owner.body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    told = ast.get_docstring(node) or is_told_apart(node) or overrides(path, owner, node.name)
                    assert told, f"{path}: {node.name}"


def test_files_and_functions_are_short():
    for path in FILES:
        assert len(path.read_text().splitlines()) <= 300, path
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef):
                body = node.end_lineno - node.lineno - len((ast.get_docstring(node) or "").splitlines())
                assert body <= 40, f"{path}: {node.name}"
