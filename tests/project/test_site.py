"""What the site needs that can be seen without building it: a place for every page and every public name."""

import ast
import re
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import shrinkage

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GALLERY = sorted((ROOT / "examples/gallery").glob("*.py"))


def listed() -> list[str]:
    """The names that have a page of their own."""
    pages = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    return re.findall(r"^   (shrinkage\.[\w.]+)$", pages, re.MULTILINE)


def test_every_public_name_has_one_page():
    top = [name for name in listed() if name.count(".") == 1]
    assert sorted(top) == sorted(f"shrinkage.{name}" for name in shrinkage.__all__)


def names_of(module: str) -> tuple[set[str], set[str]]:
    """The names that a module has, and those that explain arguments, without importing what the module needs."""
    there, explained = set(), set()
    for node in ast.parse((ROOT / f"src/{module.replace('.', '/')}.py").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            there |= {alias.asname or alias.name for alias in node.names}
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            there.add(node.name)
            explained |= {node.name} if "Args:" in (ast.get_docstring(node) or "") else set()
    return there, explained


def test_integrations_and_pictures_that_have_pages_have_one_for_each_name():
    pages: dict[str, set[str]] = {}
    for module, name in (full.rsplit(".", 1) for full in listed() if full.count(".") > 1):
        pages.setdefault(module, set()).add(name)
    assert len(pages) > 8
    for module, names in pages.items():
        there, explained = names_of(module)
        assert explained <= names <= there, module


def test_what_pages_import_has_a_page_of_its_own():
    imported = re.compile(r"^from (shrinkage\.(?:integrations|pictures)\.\w+) import (?!\()([\w, ]+)$", re.MULTILINE)
    texts = [path.read_text() for path in (ROOT / "README.md", *DOCS.rglob("*.md"))]
    used = {
        f"{module}.{name}" for text in texts for module, names in imported.findall(text) for name in names.split(", ")
    }
    assert len(used) > 5
    assert used <= set(listed()), "add it to a page of docs/api"


def test_every_page_is_in_one_table_of_contents():
    entries = []
    for page in DOCS.rglob("*.md"):
        for block in re.findall(r"```\{toctree\}\n(.*?)```", page.read_text(), re.DOTALL):
            names = [line for line in block.splitlines() if line and not line.startswith(":")]
            entries += [(page.parent / f"{name}.md").resolve() for name in names]
    assert len(entries) == len(set(entries))
    entries = {path for path in entries if path != DOCS / "gallery/index.md"}  # which the build writes
    assert entries == {*DOCS.rglob("*.md"), *ROOT.glob("*.md")} - {DOCS / "index.md"}


@pytest.mark.slow
@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")  # trainers give some
def test_a_script_of_the_gallery_ends_in_a_picture(path):
    torch.manual_seed(1)
    names: dict[str, object] = {"__name__": "gallery"}
    exec(path.read_text(), names)
    assert isinstance(names["figure"], Figure)
    assert names["figure"].axes
