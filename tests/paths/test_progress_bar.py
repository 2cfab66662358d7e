"""The progress bar is there where rich is, and a path goes without."""

import io
import subprocess
import sys

import pytest
import rich
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torch.optim import SGD

from shrinkage import L1, path
from shrinkage.paths import progress_bar


def follow(**options):
    layer = nn.Linear(2, 1)

    def fit(regularizer):
        with Progress() as own:  # bars of the user's own run inside
            own.advance(own.add_task("epochs", total=1))
        regularizer.attach(optimizer := SGD(layer.parameters(), lr=0.1))
        layer(torch.ones(2)).sum().backward()
        optimizer.step()

    return path(layer, L1, fit, strengths=[0.1, 0.2], **options)


@pytest.fixture
def screen(monkeypatch):
    """What is shown on a terminal."""
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    monkeypatch.setattr(rich, "_console", console)
    return console.file


def test_a_bar_shows_the_strengths_on_a_terminal(screen):
    follow()
    assert "2/2" in screen.getvalue()
    assert "strength 0.2: 0% zeros" in screen.getvalue()


def test_no_bar_is_shown_where_none_is_wanted(screen):
    follow(progress=False)
    assert "strength" not in screen.getvalue()


def test_a_path_needs_no_rich(screen, monkeypatch):
    def missing(name):
        raise progress_bar.PackageNotFoundError(name)

    monkeypatch.setattr(progress_bar, "version", missing)
    assert len(follow()) == 2
    assert "strength" not in screen.getvalue()


def test_versions_in_which_bars_cannot_be_nested_show_none(monkeypatch):
    monkeypatch.setattr(progress_bar, "version", lambda name: "14.0.3")
    assert not progress_bar.rich_is_there()
    monkeypatch.setattr(progress_bar, "version", lambda name: "14.1.0")
    assert progress_bar.rich_is_there()


def test_random_numbers_do_not_depend_on_whether_rich_is_imported_already():
    program = """if True:
        import random, sys
        from shrinkage.paths.progress_bar import progress_bar
        random.seed(0)
        before = random.getstate()
        with progress_bar(3, shown=True):
            pass
        assert "rich.progress" in sys.modules
        assert random.getstate() == before
    """
    subprocess.run([sys.executable, "-c", program], check=True)
