"""A report as one HTML file that needs nothing else: pictures are inside, and all text is escaped."""

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass

from jinja2 import Environment, PackageLoader, StrictUndefined


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture, PNG or SVG by the name of its own file, with its caption.

    `alt` says what it shows to those who cannot see it; without it the caption does.
    """

    file_name: str
    caption: str
    image: bytes
    alt: str = ""

    @property
    def kind(self) -> str:
        """The type of its data, for a data URL."""
        return "image/svg+xml" if self.file_name.endswith(".svg") else "image/png"

    @property
    def base64(self) -> str:
        """The picture as text, for a data URL."""
        return b64encode(self.image).decode("ascii")


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of text under a header; the first column names the row."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True)
class Page:
    """A report: what it is about, its findings, tables, what their rows are, pictures, and how it was made.

    Args:
        title: the heading.
        paragraphs: the introduction.
        findings: what the numbers say, one sentence each.
        tables: the numbers.
        terms: names in the tables, each with its explanation.
        pictures: shown one below the other.
        choice: what was tried before, and `choice_rule` how one was chosen; None if nothing was.
        command: how to make the report again; the page says nothing of that if it is empty.
        versions: what it was made with.
    """

    title: str
    paragraphs: Sequence[str] = ()
    findings: Sequence[str] = ()
    tables: Sequence[Table] = ()
    terms: Sequence[tuple[str, str]] = ()
    pictures: Sequence[Picture] = ()
    choice: Table | None = None
    choice_rule: str = ""
    command: str = ""
    versions: str = ""


def render(page: Page) -> str:
    """Return `page` as a self-contained HTML document."""
    environment = Environment(
        loader=PackageLoader("shrinkage.pictures"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2").render(page=page)
