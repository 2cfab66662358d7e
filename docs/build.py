"""Builds the generated parts of the documentation: the pictures of docs/penalties, and the marked blocks of the pages.

    make docs

With names of pictures as arguments, it draws only these.
"""

import inspect
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image

import shrinkage
from shrinkage import (
    L0,
    L1,
    L2,
    MCP,
    SCAD,
    Box,
    Counted,
    ElasticNet,
    FusedLasso,
    Grouped,
    GroupLasso,
    GroupLInf,
    Huber,
    L1Ball,
    LogSum,
    Lp,
    MaxNorm,
    MinMaxNorm,
    NofM,
    NonNegative,
    Nuclear,
    Orthogonal,
    Ridged,
    Rows,
    Simplex,
    SparseGroupLasso,
    SpectralBall,
    TopK,
    Toward,
    UnitNorm,
    Weighted,
)
from shrinkage.pictures.curves import Numbers, compare, draw_curves
from shrinkage.pictures.sets import draw, draw_set
from shrinkage.pictures.weights import png

DOCS = Path(__file__).parent
PAGES = ("penalties.md", "add_a_penalty.md")
COLOURS = 64  # of a picture, which makes the files a third as large
BLOCK = re.compile(r"(<!-- generated: (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SINGULAR_VALUES: Numbers = {
    "σ₁": lambda w: torch.linalg.svdvals(w)[0],
    "σ₂": lambda w: torch.linalg.svdvals(w)[1],
}
FIRST: Numbers = {"w₁₁": lambda w: w.flatten()[0]}
NO_PROX: dict[str, Any] = {"after": FIRST, "third": "one explicit step (no prox)"}


def matrix(*others: float) -> dict[str, Any]:
    """Return the arguments that draw along the first element of a 2 x 2 matrix."""
    weight = torch.tensor([0.0, *others]).reshape(2, 2)
    label = "w₁₁ of [[w₁₁, {:g}], [{:g}, {:g}]]".format(*others)
    return {"weight": weight, "label": label}


PICTURES: dict[str, Callable[[], Figure]] = {
    "overview": lambda: compare(
        {"L1": L1(1.0), "L0": L0(1.0), "MCP": MCP(1.0), "SCAD": SCAD(1.0), "LogSum": LogSum(1.0, epsilon=1.0)},
        title="L1(1), L0(1), MCP(1, gamma=3), SCAD(1, a=3.7), LogSum(1, epsilon=1)",
        reach=5.0,
    ),
    "L1": lambda: draw(L1(1.0)),
    "L2": lambda: draw(L2(1.0)),
    "ElasticNet": lambda: draw(ElasticNet(1.0, 0.5)),
    "Huber": lambda: draw(Huber(1.0, delta=1.0)),
    "MCP": lambda: draw_curves(MCP(1.0, gamma=3.0), steps=(1.0, 2.0, 4.0), reach=5.0),
    "SCAD": lambda: draw_curves(SCAD(1.0, a=3.7), steps=(1.0, 3.5, 6.0), reach=7.0),
    "LogSum": lambda: draw_curves(LogSum(1.0, epsilon=0.5), steps=(0.2, 0.5, 1.0), reach=3.0),
    "L0": lambda: draw(L0(1.0)),
    "Counted": lambda: draw(Counted(L2(1.0), 1.0)),
    "Ridged": lambda: draw_curves(Ridged(MCP(1.0, gamma=3.0), 0.5), weight=torch.zeros(1), reach=5.0),
    "Lp": lambda: draw(Lp(1.0, p=1 / 2)),
    "Lp_two_thirds": lambda: draw_curves(Lp(1.0, p=2 / 3), title="Lp(strength=1.0, p=2/3)"),
    "Weighted": lambda: compare(
        {f"weight {weight:g}": Weighted(L1(1.0), torch.tensor([weight])) for weight in (0.0, 0.5, 2.0)},
        title="Weighted(L1(1.0), weights): three elements with different weights",
    ),
    "GroupLasso": lambda: draw_curves(GroupLasso(1.0, Rows()), title="GroupLasso(1.0, Rows())"),
    "Grouped": lambda: draw_curves(Grouped(MCP(1.0, gamma=3.0), Rows()), steps=(0.5, 1.0, 2.5)),
    "SparseGroupLasso": lambda: draw(SparseGroupLasso(0.5, 0.5, Rows())),
    "GroupLInf": lambda: draw(GroupLInf(1.0, Rows())),
    "FusedLasso": lambda: draw_curves(FusedLasso(1.0), steps=(0.5, 1.0, 1.5)),
    "Nuclear": lambda: draw_curves(Nuclear(1.0), **matrix(1, 1, 1), after=SINGULAR_VALUES),
    "Orthogonal": lambda: draw_curves(Orthogonal(1.0), **matrix(1, 1, 0), **NO_PROX, reach=3.0),
    "Orthogonal_spectral": lambda: draw_curves(
        Orthogonal(1.0, form="spectral"), **matrix(0, 0, 1), **NO_PROX, steps=(0.05, 0.1, 0.2), reach=2.0
    ),
    "Toward": lambda: draw_curves(
        Toward(L1(1.0), torch.tensor([1.5])), weight=torch.zeros(1), title="Toward(L1(1.0), reference=1.5)"
    ),
    "NonNegative": lambda: draw(NonNegative()),
    "NonNegative_L1": lambda: draw_curves(NonNegative(L1(1.0)), weight=torch.zeros(1)),
    "Box": lambda: draw(Box(-0.5, 1.0)),
    "MaxNorm": lambda: draw(MaxNorm(1.0)),
    "MinMaxNorm": lambda: draw(MinMaxNorm(0.8, 1.2)),
    "UnitNorm": lambda: draw(UnitNorm()),
    "L1Ball": lambda: draw(L1Ball(1.0, Rows())),
    "Simplex": lambda: draw(Simplex(1.0, Rows())),
    "TopK": lambda: draw(TopK(0.5)),
    "NofM": lambda: draw(NofM(1, 2)),
    "SpectralBall": lambda: draw_set(SpectralBall(1.0), place=torch.diag, read=torch.diagonal, labels=("w₁₁", "w₂₂")),
}


def main() -> None:
    """Write all pictures and pages."""
    torch.set_num_threads(1)
    (DOCS / "penalties").mkdir(exist_ok=True)
    wanted = sys.argv[1:] or PICTURES
    for name, picture in ((name, PICTURES[name]) for name in wanted):
        (DOCS / "penalties" / f"{name}.png").write_bytes(small(png(picture())))
    for page in PAGES:
        path = DOCS / page
        path.write_text(filled(path.read_text()))
    sys.stdout.write(f"Wrote {len(wanted)} pictures and the generated blocks of {', '.join(PAGES)}\n")


def small(picture: bytes) -> bytes:
    """Return a PNG picture with few colours."""
    stream = io.BytesIO()
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(stream, format="png", optimize=True)
    return stream.getvalue()


def filled(page: str) -> str:
    """Return a page with new blocks between `<!-- generated: what name -->` and `<!-- end -->`."""
    return BLOCK.sub(lambda block: block[1] + BLOCKS[block[2]](getattr(shrinkage, block[3])) + block[4], page)


def summary(penalty: Callable[..., object]) -> str:
    """Return the first sentence of a docstring, the call, and the formula."""
    first, formula = re.split(r"\n\s*\n", inspect.getdoc(penalty) or "")[:2]
    return f"{first}\n\n```text\n{call(penalty)}\n\n{formula}\n```\n"


def call(penalty: Callable[..., object]) -> str:
    """Return the call that makes a penalty: its arguments without their types."""
    signature = inspect.signature(penalty)
    arguments = [argument.replace(annotation=inspect.Parameter.empty) for argument in signature.parameters.values()]
    plain = signature.replace(parameters=arguments, return_annotation=inspect.Signature.empty)
    return f"{penalty.__name__}{plain}"


def source(thing: type) -> str:
    """Return the source of a class."""
    return f"```python\n{inspect.getsource(thing)}```\n"


BLOCKS: dict[str, Callable[..., str]] = {"summary": summary, "source": source}

if __name__ == "__main__":
    main()
