"""Defects that the tests of this folder have to notice; see `tests/mutant.py`."""

from mutant import Mutant as M

MUTANTS = [
    M("parameter=containing(name), how=\"gradient\"", "parameter=containing(name), how=\"proximal\"", "torchlayers"),
    M(" or not trainer.global_step", "", "lightning", "anew"),
    M("if not penalized.isdisjoint(stepped(unwrapped(optimizer)))", "if True", "lightning", "only_the_optimizers"),
    M("(rules=penalized)", "()", "lightning", "two_callbacks"),
    M("if self._saved is not None:", "if False:", "lightning", "own_checkpoint"),
    M("        self._detach()  # a run that raised never came to its end\n", "", "transformers", "raised"),
    M("if state.global_step and", "if False and", "transformers", "without_the_state"),
    M("rules_from(rules, how=how)", "rules_from(rules)", "rules_in_files", "hugging_face"),
    M("return 2.0 if loss", "return 1.0 if loss", "coefficients", "squared_errors_of_sklearn and mse"),
    M("(1 - momentum) / (1 - dampening)) if momentum else", "1 - momentum) if momentum else", "coefficients", "after_momentum"),
    M("if best >= wrong:", "if False:", "kept_plans", "pooler"),
    M("{dim: tuple(range(len(kept))) for", "{dim: kept for", "kept_plans", "no_indices"),
    M("        if not _is_of_smaller(plan, earlier):", "        if False:", "kept_plans", "forced"),
    M("    vars(small).pop(DENSE, None)  #", "    pass  #", "kept_plans", "cut_again"),
    M("plan = _as_it_is(earlier, plan.shapes).then(plan)", "plan = earlier.then(plan)", "kept_plans", "more_words"),
    M("        model.is_quantized = False", "        pass", "kept_plans", "ordinary"),
    M("name.removeprefix(prefix), prefix + name", "name", "kept_plans", "body_alone"),
    M("np.where(told, X.mean(0, dtype=np.float64), X[0])", "X.mean(0, dtype=np.float64)", "sklearn", "constant_column"),
    M("regularizer = freeze_zeros(model, {FIRST: Columns()})", "regularizer = Regularizer(model, on_columns(FIRST)(0.0))", "sklearn", "chosen_columns_alone"),
    M("torch.random.fork_rng(devices=[])", "torch.enable_grad()", "sklearn", "random_state", "integrations/sparse_mlp.py"),
    M("by_norm[last[by_norm].argsort(descending=True, stable=True)]", "by_norm", "sklearn", "are_ordered"),
    M("computed_with = any(name in (*HEADS, *STREAM)", "computed_with = any(name in HEADS", "narrow_streams", "multiplies"),
    M("replace(plan, keep=keep).to_json()", "replace(plan, keep=keep, sizes={}, scales={}).to_json()", "narrow_streams", "an_entry"),
    M("found[\"\", name] = next(iter(values))", "pass", "narrow_streams", "a_number"),
    M("numbers.items()}\n    numbers = _with", "_with_eps(small, plan, numbers).items()}\n    numbers = _with", "narrow_streams", "other-norms"),
    M("get_parameter(FIRST).mul_(BEGIN)", "get_parameter(FIRST)", "sklearn", "begin_small"),
    M("compared = Path((whole, *refits))", "compared = Path(tuple(refits))", "sklearn", "needs_all"),
    M("kept = self.support_ if", "kept = ~self.support_ if", "sklearn", "names_those_that_are_kept"),
]
