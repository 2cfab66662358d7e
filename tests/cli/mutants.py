"""Defects that the tests of this folder have to notice; see `tests/mutant.py`."""

from mutant import Mutant as M

MUTANTS = [
    M("torch.load(stream", "torch.load(file", "app", "by_its_name"),
    M("return chosen(content_of(file), key)", "return chosen(content_of(file))", "app", "asks_which"),
    M("        return Format.SAFETENSORS", "        return Format.TORCH", "app", "by_its_name"),
    M("if head.startswith(LEGACY_TORCH):", "if False:", "app", "python_objects"),
]
