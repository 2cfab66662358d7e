"""Deliberately broken versions of the sources: the tests have to catch every one of them."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import shrinkage

SOURCE = Path(shrinkage.__file__).parent
TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Mutant:
    """One change to one file, and the test file that has to notice it."""

    file: str
    original: str
    broken: str
    test: str

    def __str__(self) -> str:
        return f"{self.file}: {self.broken.strip()[:60]}"


MUTANTS = [
    Mutant("prox.py", "w.clamp(-threshold, threshold)", "w.clamp(-1.01 * threshold, 1.01 * threshold)", "penalties"),
    Mutant(
        "prox.py", "1 - (threshold / norms.clamp_min(tiny)).clamp(max=1)", "(1 - threshold / norms).relu()", "penalties"
    ),
    Mutant("prox.py", "NEWTON_ITERATIONS = 10", "NEWTON_ITERATIONS = 3", "prox"),
    Mutant("prox.py", "sum(within, keepdim=True).clamp_min(tiny)", "sum(within, keepdim=True)", "prox"),
    Mutant("prox.py", "zero = dual_norm <= 1", "zero = dual_norm <= 0.99", "prox"),
    Mutant("prox.py", "size / thresholds.clamp_min(tiny)", "size / thresholds", "prox"),
    Mutant("prox.py", "torch.where(start.isinf(), start, theta)", "theta", "penalties"),
    Mutant("penalties/elementwise.py", "step * fixed(self.strength))", "fixed(self.strength))", "penalties"),
    Mutant(
        "penalties/elementwise.py",
        "0.5 * fixed(self.strength) * w.square()",
        "fixed(self.strength) * w.square()",
        "penalties",
    ),
    Mutant("penalties/elementwise.py", "(1 + step * fixed(self.l2))", "(1 + fixed(self.l2))", "penalties"),
    Mutant("penalties/elementwise.py", "(grad.abs() - strength).clamp_min(0)", "grad.abs()", "penalties"),
    Mutant(
        "penalties/elementwise.py",
        "(grad + strength * w.sign()).abs()",
        "(grad - strength * w.sign()).abs()",
        "penalties",
    ),
    Mutant("penalties/elementwise.py", 'L1", "strength", self.strength', 'L1", "strength", 0.0', "penalties"),
    Mutant(
        "penalties/grouped.py",
        "max(self.groups.layout(w.shape).size, 1)",
        "max(self.groups.layout(w.shape).count, 1)",
        "penalties",
    ),
    Mutant("penalties/grouped.py", "if quadratic:", "if False:", "penalties"),
    Mutant("penalties/grouped.py", "isinstance(step, Tensor) and step.dim()", "False", "penalties"),
    Mutant("groups.py", "return Layout(tuple(shape), (1,))", "return Layout(tuple(shape), (0,))", "groups"),
    Mutant("groups.py", "back = tuple(order.index(dim) for dim in range(len(order)))", "back = order", "groups"),
    Mutant("groups.py", "if size % self.count:", "if False:", "groups"),
    Mutant("select.py", "return isinstance(candidate.module, module_class) and", "return", "select"),
    Mutant("select.py", "id(parameter) not in self.left_alone", "True", "select"),
    Mutant("select.py", "if component not in WRAPPING_NAMES and not wrapped:", "if True:", "select"),
    Mutant("select.py", "if candidate.parameter is None:\n        own", "if False:\n        own", "select"),
    Mutant("plan.py", "if not any(hits[i]):", "if False:", "select"),
    Mutant("plan.py", "if i not in winners:", "if False:", "select"),
    Mutant("plan.py", "if (other_rule.penalty, other_rule.how) != (rule.penalty, rule.how):", "if False:", "select"),
    Mutant("plan.py", "check_parameter(first.name, first.parameter)", "pass", "select"),
    Mutant("metric.py", '(1 - group["dampening"]) / (1 - group["momentum"])', "1.0", "metric"),
    Mutant("metric.py", '(1 - group["dampening"]) /', "1 /", "solutions"),
    Mutant("metric.py", "(moment / correction).sqrt_()", "moment.sqrt()", "metric"),
    Mutant("metric.py", ".clamp_(max=torch.finfo(moment.dtype).max)", "", "attachment"),
    Mutant("metric.py", "denominator.new_ones(()).lerp(denominator, moment.sign())", "denominator", "metric"),
    Mutant(
        "metric.py",
        'state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]',
        'state["exp_avg_sq"]',
        "metric",
    ),
    Mutant("metric.py", 'if not group["centered"]:', "if True:", "metric"),
    Mutant("metric.py", '- 1) * group["lr_decay"]', ') * group["lr_decay"]', "solutions"),
    Mutant("metric.py", "metric is not None and runs_step_of(own, optimizer_class)", "metric is not None", "metric"),
    Mutant(
        "apply.py",
        "grad.add_(w, alpha=factor * fixed(penalty.strength))",
        "grad.add_(penalty.gradient(w) * factor)",
        "apply",
    ),
    Mutant("apply.py", "type(first) is Tensor and", "", "apply"),
    Mutant("apply.py", "w.mul_(1 - step * fixed(penalty.strength))", "w.sub_(penalty.gradient(w) * step)", "apply"),
    Mutant("apply.py", "return tensor.to(at_least_float32(tensor.dtype))", "return tensor", "apply"),
    Mutant("attachment.py", "self._depth += 1\n            return None", "pass", "attachment"),
    Mutant("attachment.py", "if self._depth and runs_inside_own_step(optimizer):", "if self._depth:", "attachment"),
    Mutant("attachment.py", '-1.0 if group.get("maximize") else 1.0', "1.0", "attachment"),
    Mutant("attachment.py", "sign if scale is None else sign * scale", "sign", "attachment"),
    Mutant("attachment.py", "return step if overflow is None else step * (1 - overflow)", "return step", "attachment"),
    Mutant("attachment.py", "decay=not decayed", "decay=True", "attachment"),
    Mutant(
        "attachment.py",
        "loss + self._value(in_gradient)",
        "loss",
        "attachment",
    ),
    Mutant("attachment.py", "charged = self._charged_closure(optimizer, closure)", "charged = closure", "attachment"),
    Mutant("attachment.py", "self.updates.record(overflow)", "self.updates.record(None)", "attachment"),
    Mutant("attachment.py", "all(all(map(is_, a, b)) for a, b in zip(one, other, strict=True))", "True", "attachment"),
    Mutant("attachment.py", "lengths = list(map(len, one)) == list(map(len, other))", "lengths = True", "attachment"),
    Mutant("attachment.py", "        self._set_strengths()\n", "", "attachment"),
    Mutant("attachment.py", "if not callable(closure):", "if closure is None:", "attachment"),
    Mutant("optimizers.py", "return depth == 2", "return False", "attachment"),
    Mutant("attachment.py", "stack.enter_context(torch.autocast(device_type, enabled=False))", "pass", "attachment"),
    Mutant("attachment.py", "            check_gradients(charges)\n", "", "attachment"),
    Mutant("declare.py", "_registry.add(self)", "_registry.additions += 1", "declare"),
    Mutant("declare.py", "or is_container(optimizer)", "", "declare"),
    Mutant("declare.py", "if each.concern(groups.keys())", "", "declare"),
    Mutant("declare.py", 'getattr(layer, "_orig_mod", layer)', "layer", "declare"),
    Mutant("declare.py", "elif seen != state:", "elif False:", "declare"),
    Mutant("declare.py", "if id(charge.parameter) in declared:", "if False:", "declare"),
    Mutant(
        "declare.py",
        "return Declarations(present(memo.get(id(self._layer()))), self.rules)",
        "return self",
        "declare",
    ),
    Mutant("regularizer.py", "handle.remove()", "pass", "regularizer"),
    Mutant("regularizer.py", "if optimizer in self._optimizers():", "if False:", "regularizer"),
    Mutant(
        "regularizer.py", "attachment.updates.steps, attachment.updates.skipped = count, None", "pass", "regularizer"
    ),
    Mutant("attachment.py", "if id(charge.parameter) in taken:", "if False:", "regularizer"),
    Mutant("threshold.py", "& (w != 0)", "", "threshold"),
    Mutant("threshold.py", "std(correction=0)", "std()", "threshold"),
    Mutant("report.py", "if place not in seen:", "if True:", "report"),
    Mutant("curves.py", "return [[], [behind]]", "return [[behind]]", "docs"),
    Mutant("sets.py", "1 + place(torch.tensor(steps, dtype=point.dtype) - 1)", "1.0", "docs"),
    Mutant(
        "compat/torchlayers.py",
        'parameter=containing(name), how="gradient"',
        'parameter=containing(name), how="proximal"',
        "compat",
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_suite_catches(mutant: Mutant, tmp_path: Path):
    broken = tmp_path / "shrinkage"
    shutil.copytree(SOURCE, broken, ignore=shutil.ignore_patterns("__pycache__"))
    text = (broken / mutant.file).read_text()
    assert mutant.original in text, "the source has changed: plant this mutant anew"
    (broken / mutant.file).write_text(text.replace(mutant.original, mutant.broken))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "SHRINKAGE_UNDER_TEST": str(broken)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    options = [f"--rootdir={TESTS.parent}", f"--config-file={TESTS.parent / 'pyproject.toml'}"]
    run = subprocess.run(
        [*command, *options, str(TESTS / f"test_{mutant.test}.py")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, f"survived:\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
