"""The page on parameters: its code does what it says."""

import re
from pathlib import Path

import pytest

PRINTED = [r"[1-9]\d* of 640 weights are zero\n", r"([1-9]|1[0-5]) of 16 rows are zero\n", r"0\.90[345]\d*\n", ""]
DOCUMENT = (Path(__file__).parents[2] / "docs/parameters.md").read_text()


@pytest.mark.parametrize(
    ("code", "output"),
    list(zip(re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL), PRINTED, strict=True)),
    ids=["stacked", "weight_norm", "half precision", "complex"],
)
def test_the_documents_code_does_what_it_says(code, output, capsys):
    exec(code, {"__name__": "document"})
    assert re.fullmatch(output, capsys.readouterr().out)
