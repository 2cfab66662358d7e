"""The site that `make site` builds: the pages of docs and of the top of the checkout, and one per public name.

The source of the site is the whole checkout, so that links between pages are the same in plain files and on the site.
"""

import re
import warnings
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from sphinx.application import Sphinx
from sphinx_gallery.scrapers import figure_rst

import shrinkage

project = "shrinkage"
author = copyright = "The shrinkage authors"
version = release = shrinkage.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**.md", "docs/api/names/*.rst", "docs/gallery/*.rst"]
exclude_patterns = [".*", "benchmarks", "dist", "examples", "runs", "src", "tests"]
suppress_warnings = [
    "config.cache",  # the scraper below is a function, which no cache of settings can hold
    "myst.xref_missing_download",
]
myst_heading_anchors = 4
templates_path = [str(Path(__file__).parent / "site/templates")]

autosummary_generate = True
autosummary_filename_map = {"shrinkage.path": "shrinkage.path_function"}  # `Path` is the same file on some systems
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types are in the text, where they say what an argument is
python_maximum_signature_line_length = 88
highlight_language = "none"  # a block that names no language is what a command prints
napoleon_numpy_docstring = False
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "pydata_sphinx_theme"
html_title = "shrinkage"
html_static_path = ["site/style.css"]
html_css_files = ["style.css"]
html_additional_pages = {"index": "to_start.html"}
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": ["page-toc"],
    "show_prev_next": False,
}
html_context = {"default_mode": "auto"}

TEXT_OR_CODE = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)
SPECIAL = re.compile(r"\\|\||\*(?=\S)|(?<=\S)\*|(?<=\w)_(?!\w)")
VARIADIC = re.compile(r"^\s+\*{1,2}\w+:", re.MULTILINE)
FORMULA = re.compile(r"(minimizes  |[A-Za-z][\w'()|^, ]{0,24} = )")


def as_rst(text: str) -> str:
    """Return a paragraph of a docstring, in which code stands between backticks and all else means itself."""
    pieces = TEXT_OR_CODE.split(text)
    for index, piece in enumerate(pieces):
        if index % 2:
            pieces[index] = piece if piece.startswith("``") else f"`{piece}`"
        elif not VARIADIC.match(piece):
            pieces[index] = SPECIAL.sub(r"\\\g<0>", piece)
    formula = ".. rst-class:: formula\n\n" if FORMULA.match(text) else ""
    return formula + "".join(pieces)


def docstring_as_rst(app: Sphinx, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Change what autodoc has read of a docstring, except the examples."""
    if what in ("attribute", "property") and lines:
        lines[0] = lines[0].replace(": ", " – ", 1)  # before a colon napoleon expects a type
    paragraphs = re.split(r"\n{2,}", "\n".join(lines).rstrip())
    changed = [text if text.lstrip().startswith(">>>") else as_rst(text) for text in paragraphs]
    lines[:] = [*"\n\n".join(changed).split("\n"), ""]


def pictures(block: object, variables: dict[str, Any], settings: dict[str, Any]) -> str:
    """Save what an example of the gallery has named `figure`, once."""
    figure = variables["example_globals"].pop("figure", None)
    if not isinstance(figure, Figure):
        return ""
    path = next(variables["image_path_iterator"])
    figure.savefig(path, dpi=120)
    return str(figure_rst([path], settings["src_dir"]))


warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated")  # Lightning's own, in the output of its script

sphinx_gallery_conf = {
    "examples_dirs": "examples/gallery",
    "gallery_dirs": "docs/gallery",
    "filename_pattern": r"\.py$",
    "image_scrapers": (pictures,),
    "ignore_repr_types": r"matplotlib|<class 'list'>",  # what pictures are made of
    "within_subsection_order": "FileNameSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "abort_on_example_error": True,
    "remove_config_comments": True,
}


def setup(app: Sphinx) -> None:
    """Docstrings are changed before napoleon reads their sections."""
    app.connect("autodoc-process-docstring", docstring_as_rst, priority=400)
