"""Two reports side by side: where zeros came and went."""

from typing import Any

from shrinkage.diagnostics.report import Report, TensorReport, share
from shrinkage.tables import shape_text, table

HEADER = ("parameter", "shape", "zeros", "", "zeros after", "", "change")


def compared(before: Report, after: Report) -> str:
    """Return a table of the zeros of two models; tensors that one of them lacks have gaps."""
    first, second = ({each.name: each for each in report} for report in (before, after))
    rows = [cells(name, first.get(name), second.get(name)) for name in dict.fromkeys([*first, *second])]
    rows.append(
        [
            "all",
            shapes(str(before.size), str(after.size)),
            *(str(before.zeros), share(before.zeros, before.size)),
            *(str(after.zeros), share(after.zeros, after.size)),
            points(before.sparsity, after.sparsity),
        ]
    )
    return table(HEADER, rows, right=range(2, 7))


def cells(name: str, before: TensorReport | None, after: TensorReport | None) -> list[str]:
    """Return the row of one tensor."""
    texts = [shape_text(each.shape) if each else "" for each in (before, after)]
    counts = [text for each in (before, after) for text in ((str(each.zeros), share_of(each)) if each else ("", ""))]
    sizes = before is not None and after is not None and before.size and after.size
    change = points(before.zeros / before.size, after.zeros / after.size) if sizes and before and after else ""
    return [name, shapes(*texts), *counts, change]


def share_of(tensor: TensorReport) -> str:
    """Return the share of zeros as text."""
    return share(tensor.zeros, tensor.size)


def shapes(before: str, after: str) -> str:
    """Return one shape, or both where they differ.

    >>> shapes("4x3", "4x3"), shapes("4x3", "2x3"), shapes("4x3", "")
    ('4x3', '4x3 to 2x3', '4x3')
    """
    return f"{before} to {after}" if before and after and before != after else before or after


def points(before: float, after: float) -> str:
    """Return a change of shares in percentage points.

    >>> points(0.25, 0.5), points(0.5, 0.5)
    ('+25.0', '+0.0')
    """
    return f"{100 * (after - before):+.1f}"


def to_dict(before: Report, after: Report) -> dict[str, Any]:
    """Return both reports as numbers, lists and dictionaries, ready for JSON."""
    return {"before": before.to_dict(), "after": after.to_dict(), "change": after.sparsity - before.sparsity}
