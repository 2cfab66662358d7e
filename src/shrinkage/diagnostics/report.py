"""How much of a model is zero: numbers as plain records that print as a table."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from operator import attrgetter
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from shrinkage.diagnostics.checkpoint_files import described, entries_instead, tensors_of
from shrinkage.diagnostics.zero_layers import dead_layers, told_first, undefined_first
from shrinkage.distributed.dtensor import local, whole
from shrinkage.errors import ParameterError, listed
from shrinkage.penalties.groups import Columns, Groups, Rows
from shrinkage.penalties.value_objects import ByFields, value_class
from shrinkage.proximal.precision import at_least_float32
from shrinkage.selection.declaration import unreached
from shrinkage.selection.first_match import nearest
from shrinkage.selection.named_parameters import named_parameters
from shrinkage.selection.unregistered import told, unregistered
from shrinkage.tables import Table, in_html, shape_text

STATISTICS = {"running_mean", "running_var"}

Model = nn.Module | Mapping[str, Tensor]


class TensorReport(NamedTuple):
    """The zeros of one tensor.

    `zeros` counts exact zeros, `small` the elements of size below the report's limit, exact zeros included;
    `zero_rows` and `zero_columns` count groups that are zero as a whole, of all rows and columns (0 of 0 for a tensor
    with fewer than two dimensions).
    """

    name: str
    shape: tuple[int, ...]
    size: int
    zeros: int
    small: int
    rows: int
    zero_rows: int
    columns: int
    zero_columns: int
    norm: float


@value_class
class Report(ByFields):
    """The zeros of a model, tensor by tensor and in all. Prints as a table.

    `unreached` names parameters that their layers declare with `regularize`, and that no step has reached;
    `unregistered` counts, by attribute, the parameters in plain lists and dictionaries, which torch does not find;
    `undefined` names parameters whose zeros make the weight that is computed from them 0/0, NaN.
    """

    below: float
    tensors: tuple[TensorReport, ...]
    unreached: tuple[str, ...] = ()
    unregistered: Mapping[str, int] = field(default_factory=dict)
    undefined: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Number of elements."""
        return sum(tensor.size for tensor in self.tensors)

    @property
    def zeros(self) -> int:
        """Number of elements that are exactly zero."""
        return sum(tensor.zeros for tensor in self.tensors)

    @property
    def small(self) -> int:
        """Number of elements of size below `below`, exact zeros included."""
        return sum(tensor.small for tensor in self.tensors)

    @property
    def sparsity(self) -> float:
        """Share of elements that are exactly zero."""
        return self.zeros / self.size if self.size else 0.0

    def __iter__(self) -> Iterator[TensorReport]:
        return iter(self.tensors)

    def __getitem__(self, name: str) -> TensorReport:
        """Return the report of the tensor called `name`."""
        for tensor in self.tensors:
            if tensor.name == name:
                return tensor
        known = [tensor.name for tensor in self.tensors]
        raise KeyError(f"no tensor is called {name!r}; nearest names: {nearest(name, known)}")

    @property
    def dead(self) -> tuple[str, ...]:
        """Names of the layers' weights that are zero as a whole, so that these layers ignore their inputs."""
        zeros = ((each.name, each.shape, each.zeros == each.size) for each in self.tensors)
        return tuple(name for name in dead_layers(zeros) if name not in self.undefined)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as numbers, lists and dictionaries, ready for JSON."""
        totals = {"size": self.size, "zeros": self.zeros, "small": self.small, "sparsity": self.sparsity}
        tensors = [tensor._asdict() for tensor in self.tensors]
        more = {"dead": list(self.dead), "unreached": list(self.unreached), "unregistered": dict(self.unregistered)}
        more["undefined"] = list(self.undefined)
        return {"below": self.below, **totals, "tensors": tensors, **more}

    def _table(self) -> Table:
        header = [
            "parameter",
            "shape",
            "zeros",
            "",
            f"below {self.below:g}",
            "",
            "zero rows",
            "zero columns",
            "norm",
        ]
        rows = [tensor_cells(tensor) for tensor in self.tensors]
        total = ["all", str(self.size), str(self.zeros), share(self.zeros, self.size)]
        rows.append([*total, str(self.small), share(self.small, self.size), "", "", ""])
        return Table(header, rows, range(2, 9))

    def __str__(self) -> str:
        lines = "\n".join([str(self._table()), *self._notes()])
        return "\n\n".join([*undefined_first(self.undefined), *told_first(self.dead), lines])

    def _repr_html_(self) -> str:
        return in_html([*undefined_first(self.undefined), *told_first(self.dead), self._table(), *self._notes()])

    def _notes(self) -> list[str]:
        """Return the lines on parameters that are not found, or declared and not penalized, if there are any."""
        notes = []
        if self.unreached:
            notes.append(
                f"declared, but no optimizer step has reached it: {', '.join(self.unreached)}; what penalizes is a "
                "step of a torch.optim optimizer that holds this very parameter, see regularize()"
            )
        if self.unregistered:
            notes.append(("" if self.tensors else "no parameters: ") + told(self.unregistered))
        return notes


def report(model: Model, *, below: float = 1e-3) -> Report:
    """Count the zeros of a model: exact zeros, small weights, and zero rows and columns.

    Args:
        model: a module (its floating-point parameters, tied ones once) or a state_dict (its floating-point tensors,
            shared ones once, without the running statistics of norms, which are no weights).
        below: a weight counts as small if |w| < `below`, in units of the weights.

    Raises:
        TypeError: `model` is neither a module nor a mapping.

    The first line names the layers whose weights are zero as a whole; what starts at zero in adapters is left out.
    If the model is sharded over processes, all of them have to call this.

    Once optimizers made ten steps since a layer of the model declared a penalty, was copied or loaded, the report names
    what no step reached. Before that, and where no optimizer makes a step, it cannot tell.

    >>> layer = torch.nn.Linear(3, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 1e-4]]))
    >>> print(report(layer))
    parameter  shape  zeros         below 0.001         zero rows  zero columns  norm
    ---------  -----  -----  -----  -----------  -----  ---------  ------------  ----
    weight     2x3        4  66.7%            5  83.3%     1 of 2        1 of 3     2
    all        6          4  66.7%            5  83.3%
    """
    tensors = distinct(named_tensors(model))
    counted = tuple(tensor_report(name, readable(name, whole(tensor)), below) for name, tensor in tensors)
    if not isinstance(model, nn.Module):
        return Report(below, counted)
    return Report(below, counted, tuple(unreached(model)), unregistered(model), tuple(undefined(model)))


def undefined(model: nn.Module) -> Iterator[str]:
    """Yield the parameters with a norm of 0 by which `model` divides to compute a weight."""
    for candidate in named_parameters(model):
        divisor = None if candidate.computed is None else candidate.computed.divisor
        if divisor is not None:
            tensor = whole(attrgetter(divisor.source)(candidate.module).detach())
            if not nn.parameter.is_lazy(tensor) and divisor.vanishes(tensor):
                yield candidate.name.removesuffix(candidate.attribute) + divisor.source


def named_tensors(model: Model) -> Iterator[tuple[str, Tensor]]:
    """Yield the floating-point parameters of a module or tensors of a state_dict under all of their names."""
    if isinstance(model, nn.Module):
        named: list[tuple[str, Any]] = [(candidate.name, candidate.parameter) for candidate in named_parameters(model)]
    else:
        check_state_dict(model)
        named = [(name, value) for name, value in model.items() if name.rpartition(".")[2] not in STATISTICS]
    for name, tensor in named:
        if isinstance(tensor, Tensor) and not nn.parameter.is_lazy(tensor) and tensor.is_floating_point():
            yield name, tensor.detach()


def check_state_dict(given: object) -> None:
    """Raise `TypeError` unless `given` is a mapping from names to tensors, no checkpoint that holds such ones."""
    expected = "expected a module or a state_dict"
    if isinstance(given, str | PathLike):
        raise TypeError(f"{expected}, got a path: load it, or write in a shell: shrinkage report {given}")
    if not isinstance(given, Mapping):
        raise TypeError(f"{expected}, got {type(given).__name__}")
    if inside := entries_instead(given):
        parts = "".join(f"[{part!r}]" for part in inside[0].split("."))
        raise TypeError(f"{expected}, got a checkpoint with some under {listed(inside)}: give checkpoint{parts}")
    if given and not tensors_of(given):
        raise TypeError(f"{expected}, got a mapping without tensors: {described(given)}")


def distinct(named: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of `named` that are not one that came before under another name."""
    seen: set[object] = set()
    for name, tensor in named:
        plain = tensor.numel() and tensor.layout is torch.strided
        place = (memory_of(tensor), tuple(tensor.shape), tensor.stride()) if plain else name
        if place not in seen:
            seen.add(place)
            yield name, tensor


def readable(name: str, tensor: Tensor) -> Tensor:
    """Return `tensor` in a layout and a type in which torch can compare; raise `ParameterError` if it has no values."""
    if tensor.is_meta:
        raise ParameterError(f"{name!r} is on the meta device and holds no numbers: load the weights first")
    dense = tensor if tensor.layout is torch.strided else tensor.to_dense()
    return dense.float() if dense.element_size() < 2 else dense


def memory_of(tensor: Tensor) -> tuple[int, int]:
    """Return where a tensor lies: two that share their elements agree, even if the shard of this process is empty."""
    shard = local(tensor)
    return shard.untyped_storage()._cdata, shard.storage_offset()


def tensor_report(name: str, tensor: Tensor, below: float) -> TensorReport:
    """Return the report of one tensor."""
    rows, zero_rows = zero_groups(tensor, Rows())
    columns, zero_columns = zero_groups(tensor, Columns())
    return TensorReport(
        name=name,
        shape=tuple(tensor.shape),
        size=tensor.numel(),
        zeros=int((tensor == 0).sum()),
        small=int((tensor.abs() < below).sum()),
        rows=rows,
        zero_rows=zero_rows,
        columns=columns,
        zero_columns=zero_columns,
        norm=float(torch.linalg.vector_norm(tensor, dtype=at_least_float32(tensor.dtype))),
    )


def zero_groups(tensor: Tensor, groups: Groups) -> tuple[int, int]:
    """Return how many groups a tensor of two dimensions or more has, and how many of them are zero as a whole."""
    if tensor.dim() < 2 or tensor.numel() == 0:
        return 0, 0
    zero = (groups.view(tensor) == 0).all(1)
    return zero.numel(), int(zero.sum())


def tensor_cells(tensor: TensorReport) -> Sequence[str]:
    """Return the row of one tensor in the printed report."""
    rows = f"{tensor.zero_rows} of {tensor.rows}" if tensor.rows else ""
    columns = f"{tensor.zero_columns} of {tensor.columns}" if tensor.columns else ""
    zeros = [str(tensor.zeros), share(tensor.zeros, tensor.size)]
    small = [str(tensor.small), share(tensor.small, tensor.size)]
    return [tensor.name, shape_text(tensor.shape), *zeros, *small, rows, columns, f"{tensor.norm:.4g}"]


def share(part: int, whole: int) -> str:
    """Return `part` of `whole` in per cent, as text.

    >>> share(1, 3)
    '33.3%'
    """
    return f"{part / whole:.1%}" if whole else ""
