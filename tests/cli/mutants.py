"""Defects that the tests of this folder have to notice; see `tests/mutant.py`."""

from mutant import Mutant as M

MUTANTS = [
    M("torch.load(stream", "torch.load(file", "app", "by_its_name"),
    M("return chosen(content_of(file), key)", "return chosen(content_of(file))", "app", "asks_which"),
    M("        return Format.SAFETENSORS", "        return Format.TORCH", "app", "by_its_name"),
    M("known = name in HARMLESS", "known = True or name in HARMLESS", "app", "runs_nothing"),
    M("if Path(part).name != part or not", "if not", "app", "without_its_shards"),
    M("if (tensor.dim() > 1 or not self.matrices)", "if (tensor.dim() > 1 or True)", "app", "counted"),
    M("            small.model.eval(),", "            small.model,", "app", "in_evaluation"),
    M("last.sparsity < fail_under", "last.sparsity <= fail_under", "app", "fail_under"),
    M("_, weights, last = found[-1]", "_, weights, last = found[0]", "app", "fail_under"),
    M("if head.startswith(LEGACY_TORCH):", "if False:", "app", "python_objects"),
]
