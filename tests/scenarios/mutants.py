"""Defects that the tests of this folder have to notice; see `tests/mutant.py`."""

from mutant import Mutant as M

MUTANTS = [
    M("FORMS.get(type(penalty), shrink_plainly_)", "next((form for kind, form in FORMS.items() if isinstance(penalty, kind)), shrink_plainly_)", "faults", "penalty_that_raised"),
    M("if found != {\"total\": shape, \"weight\": ()}:", "if False:", "resume", "fit_changes"),
    M("    move(second, last=False)\n", "", "loops", "average_in_a_hook"),
    M("if move(handle, last=True)]", "]", "loops", "clipping_in_a_hook"),
    M("self.moment.to(at_least_float32(self.moment.dtype))", "self.moment", "newer_torch", "bfloat16"),
    M("return any(calls_under_way(code))", "return False", "resume", "checkpoint_makes"),
    M("return any(calls_under_way(code))", "return True", "resume", "warms_up"),
    M("return isinstance(lr, Tensor) or lr == 0", "return lr == 0.0 and not isinstance(lr, Tensor)", "resume", "checkpoint_makes"),
    M("iter([*own, *alike, *open_to_all])", "iter(range(len(kept)))", "resume", "own_count"),
    M("put_states(first, [*states_in(first), state])", "put_states(first, [state])", "resume", "share"),
    M("for state in states if state.get(\"parameters\") == names]", "for state in states]", "resume", "share or told"),
    M("        restore = pop_state(first, optimizer, attachment, checked)\n", "        pop_state(first, optimizer, attachment, checked)()\n", "resume", "refuses"),
    M("        first = dict(first)\n", "", "resume", "twice"),
    M("membership_of(regularizer.plan, names)", "regularizer.plan", "resume", "part_along"),
    M("        regularizer.plan = replaced(regularizer.plan, part)\n", "", "resume", "enough"),
    M("    group.pop(KEY, None)\n", "", "resume", "enough"),
    M("    if waiting is None:\n", "    if True:\n", "resume", "wins"),
    M("            self.updates = self.budgets.updates = other.updates\n", "", "schedules_and_counts", "same_parameters", quick=True),
    M("self.averages.go_on_from(other.averages)", "pass", "schedules_and_counts", "averaged_gradients"),
    M("*own, *alike, *open_to_all", "*own, *open_to_all", "schedules_and_counts", "same_parameters"),
    M("value = value.index_select(dim,", "value.index_select(dim,", "schedules_and_counts", "goes_on_in_the_same"),
    M("    passengers[optimizer] = []\n", "", "schedules_and_counts", "waits_for_its_regularizer"),
    M("not in (None, tuple(tensor.shape))", "== ()", "schedules_and_counts", "from_before_the_shrink"),
    M("return is_matrix(name.rpartition", "return False and is_matrix(name.rpartition", "schedules_and_counts", "earlier"),
]
