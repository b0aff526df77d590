"""A report as one HTML file that asks nothing of anybody: no server, no font, no remote script.

jinja escapes all text, and a content security policy in the page allows its two scripts only.
"""

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from stackbert.files import write_text, writing
from stackbert.reports.charts import STYLES
from stackbert.tables import cell_text

_HERE = Path(__file__).parent
_MARK = '<meta name="generator" content="StackBERT'
"""Tells our own reports from a user's files."""
_WIDTH = 760
"""Pixels of a figure that is saved as a picture."""


@dataclass(frozen=True)
class Chart:
    """A figure: a Vega-Lite specification, complete with its data."""

    title: str
    spec: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A DataFrame to show; its columns are the headings."""

    title: str
    frame: pd.DataFrame
    note: str = ""
    formats: Mapping[str, str] = field(default_factory=dict)
    """How to write a column's values ("{:.3f}")."""
    folded: bool = False
    """Closed until clicked."""


@dataclass(frozen=True)
class Text:
    """Sentences under a heading of their own."""

    title: str
    sentences: tuple[str, ...]


@dataclass(frozen=True)
class Page:
    """A whole report, in the order in which it is read."""

    title: str
    verdict: tuple[str, ...]
    """The first sentence is set large."""
    parts: tuple[Chart | Table | Text, ...]
    facts: Mapping[str, str] = field(default_factory=dict)
    """The foot: versions, hardware, corpus, command."""


def is_report(path: Path) -> bool:
    """Whether a file is a report that StackBERT wrote, so that it may be replaced."""
    return path.is_file() and _MARK.encode() in path.read_bytes()[:4096]


def render(page: Page) -> str:
    """`page` as HTML with everything in it: style, figures, the library that draws them."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    figures = [part for part in page.parts if isinstance(part, Chart)]
    data = {"styles": STYLES, "figures": [dict(part.spec) for part in figures]}
    # A page without figures needs no library to draw them.
    scripts = (_vega(), (_HERE / "page.js").read_text("utf-8")) if figures else ()
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FileSystemLoader(_HERE),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(
        page=page,
        css=(_HERE / "page.css").read_text("utf-8"),
        # In a script element JSON must not hold a "<": it could end the element.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c") if figures else "",
        scripts=scripts,
        policy=_policy(scripts),
        version=version("stackbert"),
        cells=_cells,
    )


def save_figures(page: Page, folder: Path) -> None:
    """Draw the figures of a page as SVG and PNG, named after their titles.

    Raises:
        UserError: the folder cannot be written.
    """
    import vl_convert

    with writing(f"writing figures to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for part in page.parts:
            if not isinstance(part, Chart):
                continue
            name = re.sub(r"\W+", "-", part.title.lower()).strip("-")
            spec = {**part.spec, "title": part.title}
            if "mark" in spec or "layer" in spec:  # views in a row keep their own widths
                spec["width"] = _WIDTH
            # An empty list of addresses: drawing asks nothing of the network.
            svg = vl_convert.vegalite_to_svg(spec, config=STYLES["light"], allowed_base_urls=[])
            write_text(folder / f"{name}.svg", svg)
            (folder / f"{name}.png").write_bytes(vl_convert.svg_to_png(svg, scale=2.0))


def _cells(table: Table) -> list[list[tuple[str, bool]]]:
    """The rows of a table as text, each cell with whether its column holds numbers."""
    numeric = [pd.api.types.is_numeric_dtype(kind) for kind in table.frame.dtypes]
    return [
        [
            (cell_text(value, table.formats.get(name)), is_number)
            for value, name, is_number in zip(row, table.frame.columns, numeric, strict=True)
        ]
        for row in table.frame.itertuples(index=False, name=None)
    ]


def _vega() -> str:
    """Vega, Vega-Lite and vega-embed in one script, as vl-convert brings them along."""
    import vl_convert

    script: str = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # it has a default
    # HTML's parser would end or nest the script at these, and reads every line end as a newline;
    # the hash must be of what it reads.
    script = re.sub(r"<(?=/?script|!--)", r"\\x3c", script, flags=re.IGNORECASE)
    return script.replace("\r\n", "\n").replace("\r", "\n")


def _policy(scripts: tuple[str, ...]) -> str:
    """The content security policy: these scripts, styles in the page, and nothing from anywhere."""
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    # vega-embed and its tooltip bring styles of their own.
    return (
        f"default-src 'none'; script-src {hashes or chr(39) + 'none' + chr(39)}; "
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
