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
    """One change to one file, and the test file that has to notice it; `select` names the tests of it that run."""

    file: str
    original: str
    broken: str
    test: str
    select: str = ""

    def __str__(self) -> str:
        return f"{self.file}: {self.broken.strip()[:60]}"


MUTANTS = [
    Mutant(
        "prox.py",
        "w.clamp(-threshold, threshold)",
        "w.clamp(-1.01 * threshold, 1.01 * threshold)",
        "penalties",
        "grid and L1",
    ),
    Mutant("prox.py", "return operator(wide(w), *args", "return operator(w, *args", "penalties", "narrow and MCP"),
    Mutant("prox.py", "w.abs() <= threshold, 0.0, w)", "w.abs() <= 1.01 * threshold, 0.0, w)", "prox", "line"),
    Mutant("prox.py", "convex = step < gamma", "convex = step < 1e9", "penalties", "grid and MCP"),
    Mutant(
        "prox.py",
        "(gamma * strength - size) / torch.where(convex, gamma - step, 1.0)",
        "(gamma * strength - size) / torch.where(convex, gamma, 1.0)",
        "penalties",
        "grid and MCP",
    ),
    Mutant("prox.py", "(step * gamma).sqrt())", "step)", "penalties", "grid and MCP"),
    Mutant("prox.py", "hard = step < a - 1, step > a + 1", "hard = step < a - 1, step > a + 3", "prox", "line"),
    Mutant(
        "prox.py",
        "torch.where(convex, 1 + step, (a + 1 + step) / 2)",
        "torch.where(convex, 1 + step, 1 + step)",
        "penalties",
        "grid and SCAD",
    ),
    Mutant("prox.py", "zero=size <= 1.5 * u ** (2 / 3)", "zero=size <= 1.4 * u ** (2 / 3)", "prox", "line"),
    Mutant("prox.py", "zero=size <= 2 * (2 / 3 * u) ** 0.75", "zero=size <= 2 * (2 / 3 * u) ** 0.7", "prox", "line"),
    Mutant("prox.py", "zero=(discriminant < 0) | (gain <= 0)", "zero=discriminant < 0", "penalties", "grid and LogSum"),
    Mutant("prox.py", "unchanged | ~w.isfinite()", "~w.isfinite()", "penalties", "zero_steps and Lp"),
    Mutant(
        "prox.py",
        "u / torch.maximum(w.abs(), u + delta)",
        "u / torch.maximum(w.abs(), u)",
        "penalties",
        "grid and Huber",
    ),
    Mutant("radial.py", "NEWTON_ITERATIONS = 10", "NEWTON_ITERATIONS = 3", "radial"),
    Mutant("radial.py", "sum(within, keepdim=True).clamp_min(tiny)", "sum(within, keepdim=True)", "radial"),
    Mutant("radial.py", "zero = dual_norm <= 1", "zero = dual_norm <= 0.99", "radial"),
    Mutant("radial.py", "size / thresholds.clamp_min(tiny)", "size / thresholds", "radial"),
    Mutant("radial.py", "torch.where(start.isinf(), start, theta)", "theta", "penalties", "bad_weights and GroupLasso"),
    Mutant("radial.py", "BASINS = 2", "BASINS = 1", "radial", "basins"),
    Mutant("radial.py", "~rises[:-1] & rises[1:]", "rises[:-1]", "radial", "no_multiplier"),
    Mutant(
        "radial.py",
        "best = torch.where(flat, charge.cost(norms), torch.inf)",
        "best = charge.cost(norms)",
        "radial",
        "tiniest",
    ),
    Mutant("radial.py", "problem.zero_is_stationary() & (", "(", "radial", "exactly"),
    Mutant("radial.py", "0.5 * ((multiplier * ratio", "1.0 * ((multiplier * ratio", "radial", "no_multiplier"),
    Mutant("radial.py", "(steps == 0) | norms.isinf()", "norms.isinf()", "radial", "zero_steps"),
    Mutant("groups.py", "split, (0, 2))", "split, (0, 3))", "groups", "blocks"),
    Mutant(
        "penalties/convex.py",
        "return prox.soft_threshold(w, step * fixed(self.strength))",
        "return prox.soft_threshold(w, fixed(self.strength))",
        "penalties",
        "grid and L1",
    ),
    Mutant(
        "penalties/convex.py",
        "0.5 * fixed(self.strength) * w.square()",
        "fixed(self.strength) * w.square()",
        "penalties",
        "grid and L2",
    ),
    Mutant(
        "penalties/convex.py",
        "prox.scale_down(shrunk, step * fixed(self.l2))",
        "prox.scale_down(shrunk, fixed(self.l2))",
        "penalties",
        "grid and ElasticNet",
    ),
    Mutant("penalties/convex.py", 'L1", "strength", self.strength', 'L1", "strength", 0.0', "penalties", "strengths"),
    Mutant(
        "penalties/elementwise.py",
        "(grad.abs() - self.slope_at_zero).clamp_min(0)",
        "grad.abs()",
        "penalties",
        "residual",
    ),
    Mutant(
        "penalties/elementwise.py",
        "(grad + self.gradient(w)).abs()",
        "(grad - self.gradient(w)).abs()",
        "penalties",
        "stationary",
    ),
    Mutant(
        "penalties/nonconvex.py",
        "- size.square() / (2 * self.gamma)",
        "- size.square() / self.gamma",
        "penalties",
        "gradient_is and MCP",
    ),
    Mutant("penalties/nonconvex.py", "clamp(min=0, max=strength)", "clamp(min=0)", "penalties", "gradient_is and SCAD"),
    Mutant(
        "penalties/counting.py",
        "(2 * step * fixed(self.strength)) ** 0.5",
        "(step * fixed(self.strength)) ** 0.5",
        "penalties",
        "grid and L0",
    ),
    Mutant(
        "penalties/per_group.py",
        "max(self.groups.layout(shape).size, 1)",
        "max(self.groups.layout(shape).count, 1)",
        "penalties",
        "root_of_their_size",
    ),
    Mutant("penalties/per_group.py", "(self.groups.norms(w) == 0) & (", "(", "penalties", "zeros_stay"),
    Mutant(
        "penalties/grouped.py",
        "if isinstance(quadratic, Tensor) or quadratic:",
        "if False:",
        "penalties",
        "grid and ElasticNet",
    ),
    Mutant(
        "penalties/grouped.py", "isinstance(step, Tensor) and step.dim()", "False", "penalties", "grid and GroupLasso"
    ),
    Mutant(
        "penalties/grouped.py",
        "norms.clamp_min(torch.finfo(norms.dtype).tiny)).masked_fill",
        "norms).masked_fill",
        "penalties",
        "zero_steps and rows",
    ),
    Mutant(
        "penalties/grouped.py",
        "shrunk = self.penalty.prox(norms.reshape(-1), step * self.weight(w.shape))",
        "shrunk = self.penalty.prox(norms.reshape(-1), step)",
        "penalties",
        "grid and rows",
    ),
    Mutant(
        "penalties/grouped.py",
        "return self.of_groups.prox(L1(self.l1).prox(prox.wide(w), step), step)",
        "return L1(self.l1).prox(self.of_groups.prox(prox.wide(w), step), step)",
        "penalties",
        "grid and SparseGroupLasso",
    ),
    Mutant(
        "penalties/grouped.py",
        "if (other.groups, other.weigh_by_size) != (self.groups, self.weigh_by_size):",
        "if False:",
        "sums",
    ),
    Mutant("penalties/group_linf.py", "top / top.sum(1, keepdim=True)", "top", "penalties", "share_the_slope"),
    Mutant("projections.py", "threshold * least)", "threshold)", "penalties", "grid and LInf"),
    Mutant(
        "projections.py",
        "clamp_min(0)\n    return levels",
        "clamp_min(1)\n    return levels",
        "penalties",
        "grid and LInf",
    ),
    Mutant(
        "projections.py", "y = (y * (radius / y.sum(1, keepdim=True))).copysign(w)", "y = y.copysign(w)", "projections"
    ),
    Mutant("projections.py", "scores = w.abs() / positive(steps).sqrt()", "scores = w.abs()", "constraints", "nearer"),
    Mutant("projections.py", ".maximum((1e-6 - 1) / largest)", ".clamp_min(0)", "projections"),
    Mutant("total_variation.py", "self.first < self.last", "self.first <= self.last", "total_variation"),
    Mutant("total_variation.py", "incoming = strengths[:, i]", "incoming = strengths[:, 0]", "total_variation"),
    Mutant("proximal_gradient.py", "safe = 1 / metric.amax()", "safe = 1 / metric.mean()", "proximal_gradient"),
    Mutant("proximal_gradient.py", "ITERATIONS = 2000", "ITERATIONS = 100", "proximal_gradient"),
    Mutant("penalties/matrix.py", "along.square().sum() + beyond.square().sum()", "along.square().sum()", "matrix"),
    Mutant("penalties/matrix.py", "units - along * units)", "units)", "penalties", "gradient_is and Orthogonal"),
    Mutant(
        "penalties/fused.py",
        "(self._rows(w).diff(dim=1) == 0)",
        "(self._rows(w).diff(dim=1) != 7)",
        "penalties",
        "residual and Fused",
    ),
    Mutant(
        "penalties/constraints.py",
        "torch.where(steps > 0, self.project(wide, steps), wide)",
        "self.project(wide, steps)",
        "constraints",
        "steps_of_0",
    ),
    Mutant(
        "penalties/nonnegative.py",
        "torch.where(w == 0, grad.clamp_max(0), grad)",
        "grad",
        "penalties",
        "stationary and NonNegative",
    ),
    Mutant(
        "penalties/nonnegative.py",
        "positive = w.clamp_min(0)",
        "positive = w.abs()",
        "penalties",
        "grid and NonNegative",
    ),
    Mutant(
        "penalties/weighted.py",
        "torch.where(forced & (torch.as_tensor(step) != 0), 0.0, y)",
        "torch.where(forced, 0.0, y)",
        "weighted",
    ),
    Mutant("penalties/weighted.py", ".masked_fill(forced, 0.0)", "", "weighted"),
    Mutant("penalties/toward.py", "self.reference.detach().clone())", "self.reference)", "toward"),
    Mutant(
        "penalties/toward.py",
        "torch.where(moved == difference, wide, reference + moved)",
        "reference + moved",
        "toward",
    ),
    Mutant("progress.py", "if saved != references.keys():", "if False:", "toward"),
    Mutant("progress.py", "replace(entry.penalty, reference=moved.clone())", "entry.penalty", "toward"),
    Mutant("averages.py", "total.lerp(grad, 1 - self.decay)", "total.lerp(grad, self.decay)", "averages"),
    Mutant(
        "averages.py",
        "return next_total / next_weight.clamp_min(torch.finfo(next_weight.dtype).tiny)",
        "return next_total",
        "averages",
    ),
    Mutant("averages.py", "if overflow is not None:", "if False:", "averages"),
    Mutant("averages.py", 'return how == "proximal" and penalty.holds_zeros', "return penalty.holds_zeros", "averages"),
    Mutant("attachment.py", "(sign if scale is None else sign / scale)", "sign", "averages"),
    Mutant(
        "attachment.py",
        'sign = -1.0 if optimizer.param_groups[charge.group].get("maximize") else 1.0\n                grad =',
        "sign = 1.0\n                grad =",
        "averages",
    ),
    Mutant("stationarity.py", "total.add_(wide(grad), alpha=size)", "total.add_(wide(grad))", "stationarity"),
    Mutant("stationarity.py", "unit = min(", "unit = max(", "stationarity", "steep"),
    Mutant("stationarity.py", "-grad if name in maximized else grad", "grad", "stationarity", "climbs"),
    Mutant("stationarity.py", "torch.where(step > 0, step, 1.0)", "step", "stationarity", "ended_at_0"),
    Mutant("penalties/constraints.py", "t = SHORT * size / grad.abs().amax()", "t = 1.0", "stationarity", "convex"),
    Mutant(
        "apply.py",
        "    finally:\n        for value",
        "    except ZeroDivisionError:\n        for value",
        "stationarity",
    ),
    Mutant("stationarity.py", "if penalty.slope(w.shape) < math.inf:", "if True:", "stationarity"),
    Mutant("stationarity.py", "(math.isnan(each.relative), each.relative)", "(False, each.relative)", "stationarity"),
    Mutant("plan.py", "penalty = rule.penalty.bound(first.name, first.parameter)", "penalty = rule.penalty", "toward"),
    Mutant("plan.py", "        check_explicit(self.penalty, self.how)\n", "", "weighted"),
    Mutant("duality.py", "(strength / dual_norms.max()).clamp(max=1)", "strength / dual_norms.max()", "duality"),
    Mutant("duality.py", "0.5 * (1 - scale).square() * energy", "(1 - scale).square() * energy", "duality"),
    Mutant("duality.py", "(charges - inner).clamp_min(0).sum()", "(charges - inner).sum()", "duality"),
    Mutant("duality.py", " + l2 * w.square().sum()", "", "duality"),
    Mutant("duality.py", "correlated(x, residual) - l2 * w", "correlated(x, residual)", "duality"),
    Mutant(
        "duality.py",
        "feasible_scale(groups.norms(correlations), charge)",
        "feasible_scale(groups.norms(correlations), strength)",
        "duality",
    ),
    Mutant("duality.py", "(-scale).log1p() - margins", "(-scale).log1p() + margins", "duality"),
    Mutant("duality.py", "eps ** 0.5 * size", "eps ** 0.25 * size", "duality"),
    Mutant("duality.py", "if not bool((labels.abs() == 1).all()):", "if False:", "duality"),
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
    Mutant("prox.py", "return w.to(at_least_float32(w.dtype))", "return w", "apply"),
    Mutant("attachment.py", "self._depth += 1\n            return None", "pass", "attachment"),
    Mutant("attachment.py", "if self._depth and runs_inside_own_step(optimizer):", "if self._depth:", "attachment"),
    Mutant("attachment.py", '-1.0 if group.get("maximize") else 1.0', "1.0", "attachment"),
    Mutant("attachment.py", "sign if scale is None else sign * scale", "sign", "attachment"),
    Mutant("charge.py", "return step if overflow is None else step * (1 - overflow)", "return step", "attachment"),
    Mutant("attachment.py", "first=first", "first=True", "attachment"),
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
    Mutant("charge.py", "stack.enter_context(torch.autocast(device_type, enabled=False))", "pass", "attachment"),
    Mutant("attachment.py", "            check_gradients(charges)\n", "", "attachment"),
    Mutant("declarations.py", "_registry.add(self)", "_registry.additions += 1", "declare"),
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
        "progress.py",
        "attachment.updates.steps, attachment.updates.skipped = self.updates, None",
        "pass",
        "regularizer",
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


# Those of the mathematics run every time, with the few tests that have to notice them; the others with `make test-all`.
QUICK = ("penalties/", "prox.py", "radial.py", "projections.py", "total_variation.py", "groups.py", "averages.py")
PLANTED = [
    pytest.param(mutant, id=str(mutant), marks=() if mutant.file.startswith(QUICK) else pytest.mark.slow)
    for mutant in MUTANTS
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_what_is_broken_is_there(mutant: Mutant):
    assert mutant.original in (SOURCE / mutant.file).read_text(), "the source has changed: plant this mutant anew"


@pytest.mark.parametrize("mutant", PLANTED)
def test_the_suite_catches(mutant: Mutant, tmp_path: Path):
    broken = tmp_path / "shrinkage"
    shutil.copytree(SOURCE, broken, ignore=shutil.ignore_patterns("__pycache__"))
    text = (broken / mutant.file).read_text()
    (broken / mutant.file).write_text(text.replace(mutant.original, mutant.broken))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "SHRINKAGE_UNDER_TEST": str(broken)}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    options = [f"--rootdir={TESTS.parent}", f"--config-file={TESTS.parent / 'pyproject.toml'}"]
    run = subprocess.run(
        [*command, *options, *(["-k", mutant.select] if mutant.select else []), str(TESTS / f"test_{mutant.test}.py")],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1, f"survived:\n{run.stdout[-2000:]}{run.stderr[-2000:]}"
