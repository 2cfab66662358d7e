"""The examples of docs/trainers.md run, and end with zeros and with the counts that the page promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState

PAGE = (Path(__file__).parents[2] / "docs/trainers.md").read_text()
FIRST, *SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)


def code_of(section):
    """The blocks of Python in a section."""
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


(SHARED,) = code_of(FIRST)
EXAMPLES = [(section.splitlines()[0], code) for section in SECTIONS for code in code_of(section)]

pytestmark = [  # what Lightning itself warns of
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches .* is smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:Starting from v1.9.0, `tensorboardX` has been removed"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed from"),
]


@pytest.mark.parametrize(("title", "code"), EXAMPLES)
def test_the_examples_run(title, code, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "guide"}
    exec(SHARED + code, names)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    if "regularizer" in names:
        steps = 2 if title == "Accelerate" else 4
        assert names["regularizer"].state_dict()["updates"] == [steps]
    elif title == "Lightning":
        (state,) = (
            state
            for key, state in torch.load("half.ckpt", weights_only=True)["callbacks"].items()
            if key.startswith("RegularizerCallback")
        )
        assert state["updates"] == [4]
    else:
        saved = torch.load("runs/checkpoint-8/optimizer.pt", weights_only=True)
        assert saved["param_groups"][0]["shrinkage"][0]["updates"] == [8]


MISSING = """
import sys
for name in ("lightning", "transformers"):
    sys.modules[name] = None
    try:
        __import__(f"shrinkage.integrations.{name}")
    except ImportError as error:
        print(error)
"""


def test_a_missing_package_is_named():
    output = subprocess.run([sys.executable, "-c", MISSING], capture_output=True, text=True, check=True).stdout
    assert re.findall(r"pip install (.*)", output) == ["lightning", "accelerate transformers"]
