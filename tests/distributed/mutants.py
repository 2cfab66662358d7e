"""Defects that the tests of this folder have to notice; see `tests/mutant.py`."""

from mutant import Mutant as M

MUTANTS = [
    M("at = at * mesh.size(index) + place[index]", "at = 0", "processes", "ties_go and 2"),
    M("counts = yield mine.to(torch.float32)", "counts = mine", "processes", "fsdp2 and zeros_stay"),
    M("        if part.counts:", "        if True:", "processes", "every_placement and not 4"),
    M("each.group_name in own or ", "", "processes", "every_placement and not 4"),
    M("found_together(tasks, gradients_of), strict=True):\n        if task.target is not None:\n", "found_together(tasks, gradients_of), strict=True):\n        if True:\n", "processes", "fsdp2 and a_process_without_gradients and not 4"),
    M("return parameter.grad is not None or is_dtensor(parameter) or is_flat_shard(parameter)", "return parameter.grad is not None or is_dtensor(parameter)", "processes", "fsdp1 and an_update_counts"),
    M("parameters_of(self._whole() or optimizer)", "parameters_of(optimizer)", "processes", "a_group_that_is_added and 4"),
    M(", *place_of(target.parameter))", ")", "processes", "copies_and_shards and 2"),
    M("or target.group_sharding is not None", "or place_of(target.parameter) != ()", "processes", "too_small and 2"),
    M("squares = yield norms_within(w, layout.within).square()", "squares = norms_within(w, layout.within).square()\n    yield squares", "dtensor", "sums"),
    M("to_rest=not cut and w.device.type == \"cpu\"", "to_rest=w.device.type == \"cpu\"", "dtensor", "sums"),
    M("return not any(dim in layout.split for dim in cut) and not (between and self._differs)", "return True", "dtensor"),
    M("self.penalty.prox_by_sums(w.clamp_min(0), step, shape, cut)", "self.penalty.prox_by_sums(w, step, shape, cut)", "dtensor", "NonNegative"),
    M("if size > 1 and not placement.is_replicate())\n\n", "if size > 1)\n\n", "processes", "rounding_on_meshes"),
    M("if size > 1 and not placement.is_replicate())\n\n", "if not placement.is_replicate())\n\n", "processes", "rounding_on_meshes"),
    M("if mesh.size(index) > 1 and not placement.is_replicate()", "if False", "processes", "sharded and columns_are_cut and not 4"),
    M("for index, dim in cuts.items() if dim not in free)", "for index, dim in cuts.items())", "processes", "check_messages and not 4"),
    M("dist.all_reduce(message, group=group)", "pass", "processes", "sharded and columns_are_cut and not 4"),
    M("if target.group_sharding is None:\n            held[", "if True:\n            held[", "processes", "fsdp2 and zeros_are_held"),
    M("target.how == \"gradient\" and (is_dtensor(target.parameter) or self._takes_part(target))", "target.how == \"gradient\" and self._has_gradient(target)", "processes", "a_closure_without_gradients"),
]
