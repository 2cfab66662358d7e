"""The code in the README runs, its links lead somewhere, and the map of the house names the files there are."""

import io
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import shrinkage

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.body(x))


def namespace():
    model = Network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    regularizer = shrinkage.Regularizer(model, shrinkage.L1(0.1))
    names = {"torch": torch, "nn": nn, "path": io.BytesIO()}
    names |= {"inputs": torch.randn(8, 1, 4, 4), "labels": torch.randint(2, (8,))}
    return {**names, "model": model, "optimizer": optimizer, "regularizer": regularizer}


@pytest.mark.parametrize("code", BLOCKS, ids=lambda code: code.splitlines()[-1][:40])
def test_the_readmes_code_runs(code, capsys):
    exec(code, namespace())


def test_the_readmes_first_lines_give_exact_zeros():
    names = namespace()
    exec(BLOCKS[0], names)
    model = names["model"]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x, y = torch.randn(256, 64), torch.randint(10, (256,))
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert (model[0].weight == 0).sum() > 1000
    assert (model[2].weight == 0).sum() == 0


def test_the_two_commands_stand_at_the_top():
    assert README.index("make demo") < README.index("## ")
    assert README.index("make test") < README.index("## ")


def test_nothing_is_left_to_be_filled_in():
    assert "<!--" not in README


@pytest.mark.parametrize(
    "document", ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
)
def test_links_and_named_tests_exist(document):
    text = (ROOT / document).read_text()
    links = re.findall(r"\]\((?!http)([^)#]+)", text)
    files = re.findall(r"`((?:tests|benchmarks|docs)/[\w/.]+)`", text)
    for target in links + files:
        assert ((ROOT / document).parent / target).exists() or (ROOT / target).exists(), target


def test_the_map_of_the_house_names_every_file():
    text = (ROOT / "docs/architecture.md").read_text()
    source = Path(shrinkage.__file__).parent
    for path in source.glob("*.py"):
        assert path.name in text or path.name.startswith("__"), path.name
    for named in re.findall(r"^  (?:[\w/]+\.py  )*([\w/]+\.py)", text, re.MULTILINE):
        assert (source / named).exists(), named
