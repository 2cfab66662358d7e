"""Defects that the tests of this folder have to notice; see `tests/mutant.py`."""

from mutant import Mutant as M

MUTANTS = [
    M("(self.loss(point), -point.strength)", "(self.loss(point), point.strength)", "choices", "equal_scores", quick=True),
    M("self.loss(best) + best.error", "self.loss(best)", "choices", "within_the_error"),
    M("return -point.score if self.maximize", "return point.score if self.maximize", "choices", "equal_scores"),
    M("/ (len(points) - 1))", "/ len(points))", "choices", "standard_errors", quick=True),
    M("== max(self.strengths) and point.zeros < point.size", "== max(self.strengths)", "choices", "at_an_end"),
    M("if math.isfinite(point.score)]", "]", "choices", "not_finite"),
    M("module.training = training", "pass", "paths", "modes", file="paths/fits.py", quick=True),
    M("self.model.eval()", "pass", "paths", "evaluation_mode"),
    M("with restored(self.model, self.score), torch.no_grad():", "with torch.no_grad():", "paths", "changes_nothing"),
    M("with restored(self.model, self.refit):", "if True:", "paths", "as_if_there_were_none"),
    M("parameter.copy_(value)", "pass", "paths", "as_if_there_were_none", file="paths/fits.py"),
    M("and min(left) >= left[0]", "", "paths", "only_grow"),
    M("if regularizer.updates is None:", "if False:", "paths", "attaches_nothing"),
    M("        finally:\n            regularizer.detach()", "        except ZeroDivisionError:\n            pass\n        regularizer.detach()", "paths", "leaves_nothing", file="paths/fits.py"),
    M("restore_saved(content[\"random\"])", "pass", "saved_points", "bit_for_bit"),
    M("load_state(fits.model, before[-1].state)", "pass", "saved_points", "bit_for_bit"),
    M("each.set_state(state)", "pass", "saved_points", "bit_for_bit"),
    M("if found.get(name) != wanted:", "if False:", "saved_points", "refused", quick=True),
    M("return replace(rule, every=1, until=0, after=constraint_of(penalty))", "return replace(rule, every=1, until=0, after=None)", "paths", "constraints"),
    M("with random_states_left_out():", "if True:", "progress_bar", "random_numbers", file="paths/progress_bar.py"),
    M("if names != first:", "if False:", "paths", "other_parameters"),
]
