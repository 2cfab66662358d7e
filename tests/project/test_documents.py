"""The code in the README runs, its links lead somewhere, and the map of the house names the files there are."""

import re
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import shrinkage

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
RELATIVE = re.compile(r"\]\((?!https?://|#)[^)]*\)|^\[[^\]]+\]:\s|<(?:img|a)\s", re.MULTILINE)
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def names() -> dict[str, object]:
    """What the README's code has defined once all of it has run from the top, as a reader would run it."""
    torch.manual_seed(0)
    found: dict[str, object] = {}
    for code in BLOCKS:
        exec(code, found)
    return found


def test_the_readmes_code_runs_from_the_top(names):
    assert isinstance(names["model"], nn.Sequential)
    assert torch.allclose(names["small"].model(names["inputs"]), names["model"](names["inputs"]), atol=1e-5)


def test_the_readmes_first_lines_give_exact_zeros():
    names = {}
    for code in BLOCKS[:2]:
        exec(code.replace("range(50)", "range(300)"), names)
    model = names["model"]
    assert (model[0].weight == 0).sum() > 1000
    assert (model[2].weight == 0).sum() == 0
    assert str(shrinkage.report(model)).splitlines()[2].startswith("0.weight")


def test_the_first_screen_has_the_words_that_people_search_for():
    first = README[: README.index("make demo")].lower()
    for word in ("sparsity", "pruning", "group lasso", "weight decay", "pytorch", "l1", "l2"):
        assert word in first, word


PAGES = [
    "activities",
    "budget",
    "distributed",
    "feature_selection",
    "howto/collapsed",
    "howto/columns",
    "howto/optimizer",
    "howto/pictures",
    "howto/smaller_cnn",
    "howto/smaller_gpt",
    "howto/sparse_autoencoder",
    "migrating",
    "parameters",
    "paths",
    "penalties",
    "plans",
    "rules",
    "shrinking",
    "solutions",
    "start",
    "strengths",
]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_code_of_a_page_runs_from_the_top(page, tmp_path, monkeypatch):
    """Those of the other pages are run by tests of what they are about."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    found: dict[str, object] = {"__name__": "page"}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / f"docs/{page}.md").read_text(), re.DOTALL):
        exec(code, found)
    assert len(found) > 3


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_no_page_installs_from_an_index_on_which_the_package_is_not(path):
    assert not re.findall(r"pip install '?shrinkage", path.read_text())


def test_the_description_of_a_built_package_has_no_links_into_the_checkout():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "readme" in settings["project"]["dynamic"]
    (fragment,) = (made := settings["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"])["fragments"]
    text = (ROOT / fragment["path"]).read_text()
    assert RELATIVE.findall(text)
    for rule in made["substitutions"]:
        text = re.sub(rule["pattern"], rule["replacement"], text)
    assert not RELATIVE.findall(text)
    assert "all penalties (docs/penalties.md)" in text
    assert "[" not in re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)


def test_the_two_commands_stand_at_the_top():
    assert README.index("make demo") < README.index("## ")
    assert README.index("make test") < README.index("## ")


def test_the_readme_is_read_in_minutes():
    assert len(README.split()) <= 800


def test_nothing_is_left_to_be_filled_in():
    assert "<!--" not in README


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_links_and_named_tests_exist(path):
    text = path.read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    files = re.findall(r"`((?:tests|benchmarks|docs)/[\w/.]+)`", text)
    for target in links + files:
        assert (path.parent / target).exists() or (ROOT / target).exists(), target


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_links_to_headings_lead_to_headings(path):
    for page, anchor in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", path.read_text()):
        assert anchor in anchors(path.parent / page if page else path), f"{page}#{anchor}"


def test_the_map_of_the_house_names_every_file():
    text = (ROOT / "docs/architecture.md").read_text()
    there = {path.name for path in Path(shrinkage.__file__).parent.rglob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"^ *(\w+\.py) ", text, re.MULTILINE)) == there
