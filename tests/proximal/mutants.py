"""Defects that the tests of this folder have to notice; see `tests/mutant.py`."""

from mutant import Mutant as M

MUTANTS = [
    M("torch.maximum(at_least, least[:, None])", "at_least", "ranking", "stable_sort", quick=True),
    M("equal.cumsum(0) + seen > ties", "equal.cumsum(0) + seen >= ties", "ranking", "stable_sort"),
    M("everyones.cumsum(1) - everyones", "0 * everyones", "ranking", "stable_sort"),
    M("torch.where(bound, own, common)", "common.expand_as(own)", "ranking", "stable_sort"),
    M("before = open_ties.cumsum(0) - open_ties", "before = 0 * open_ties", "ranking", "stable_sort"),
    M("max(1, rounded(share))", "rounded(share)", "ranking", "floors"),
    M("torch.where(resting, theta, moved)", "moved", "secular", "company", file="proximal/secular.py"),
    M("near = torch.where((spread > 0) & (spread < 0.1)", "near = torch.where((spread < 0)", "secular", "few_iterations"),
    M("w.abs() <= threshold, 0.0, w)", "w.abs() <= 1.01 * threshold, 0.0, w)", "thresholds", "line"),
    M("hard = step < a - 1, step > a + 1", "hard = step < a - 1, step > a + 3", "thresholds", "line"),
    M("zero=size <= 1.5 * u ** (2 / 3)", "zero=size <= 1.4 * u ** (2 / 3)", "thresholds", "line"),
    M("zero=size <= 2 * (2 / 3 * u) ** 0.75", "zero=size <= 2 * (2 / 3 * u) ** 0.7", "thresholds", "line"),
    M("safe = 1 / metric.amax()", "safe = 1 / metric.mean()", "fista"),
    M("ITERATIONS = 2000", "ITERATIONS = 100", "fista"),
    M("NEWTON_ITERATIONS = 12", "NEWTON_ITERATIONS = 3", "secular", "wide_metrics"),
    M("bound), dual_square <= 1", "bound), dual_square <= 0.98", "secular", "dual_norm", quick=True),
    M("thresholds.clamp_min(1 / largest(w.dtype)).reciprocal()", "thresholds.reciprocal()", "secular"),
    M("BASINS = 2", "BASINS = 1", "secular_search", "basins"),
    M("~rising[:-1] & rising[1:]", "rising[:-1]", "secular_search", "no_multiplier"),
    M("best = torch.where((slope == 0) | still, function.cost(norms), torch.inf)", "best = function.cost(norms)", "secular_search", "tiniest"),
    M("(dual_square.sqrt() <= function.slope_at_zero) & (", "(", "secular_search", "can_not_tell", quick=True),
    M("0.5 * (multiplier * ratio", "1.0 * (multiplier * ratio", "secular_search", "no_multiplier"),
    M(".masked_fill(self.steps == 0, 1.0)", "", "secular_search", "zero_steps"),
    M("by_norm = norm - weighted / ", "by_norm = norm - 0.5 * weighted / ", "secular"),
    M("torch.where(nearest.isfinite(), rounded, nearest)", "rounded", "precision", "overflows"),
    M("self.first < self.last", "self.first <= self.last", "total_variation"),
    M("incoming = strengths[:, i]", "incoming = strengths[:, 0]", "total_variation", "strengths_of_their_own"),
]
