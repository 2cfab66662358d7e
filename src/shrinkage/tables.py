"""Tables: plain text, and HTML for notebooks."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> str:
    """Return `rows` under `header` in aligned columns; the columns whose indices are in `right` end flush.

    >>> print(table(["name", "zeros"], [["0.weight", "12"], ["2.weight", "7"]], right=[1]))
    name      zeros
    --------  -----
    0.weight     12
    2.weight      7
    """
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])

    def aligned(line: Sequence[str]) -> str:
        cells = zip(line, widths, strict=True)
        padded = (cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in enumerate(cells))
        return "  ".join(padded).rstrip()

    return "\n".join(map(aligned, lines))


class Table(NamedTuple):
    """Rows of text under a header, whose columns in `right` end flush. Prints as plain text."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    right: Sequence[int] = ()

    def __str__(self) -> str:
        return table(self.header, self.rows, right=self.right)

    def html(self) -> str:
        """Return the table as HTML; all text in it is escaped."""
        head = self._row(self.header, "th")
        return (
            f"<table><thead>{head}</thead><tbody>{''.join(self._row(row, 'td') for row in self.rows)}</tbody></table>"
        )

    def _row(self, cells: Sequence[str], tag: str) -> str:
        texts = []
        for column, cell in enumerate(cells):
            side = "right" if column in self.right else "left"
            texts.append(f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>')
        return f"<tr>{''.join(texts)}</tr>"


def in_html(parts: Iterable[str | Table]) -> str:
    """Return tables and text, one below the other, as HTML for a notebook.

    >>> in_html(["a < b"])
    '<p>a &lt; b</p>'
    """
    return "".join(part.html() if isinstance(part, Table) else f"<p>{escape(part)}</p>" for part in parts if part)


def shape_text(shape: Sequence[int]) -> str:
    """Return `shape` as text.

    >>> shape_text((8, 3))
    '8x3'
    """
    return "x".join(map(str, shape)) or "0-dim"


def names_note(reason: str, names: Sequence[str]) -> str:
    """Return a line of a printed plan about parameters, shortened where they are many; nothing if there are none.

    >>> names_note("frozen, so not penalized", ["a", "b", "c", "d", "e"])
    "\\nfrozen, so not penalized: 'a', 'b', 'c' and 2 others"
    """
    others = f" and {len(names) - 3} others" if len(names) > 4 else ""
    shown = ", ".join(map(repr, names[:3] if others else names))
    return f"\n{reason}: {shown}{others}" if names else ""
