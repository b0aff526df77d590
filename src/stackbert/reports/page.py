"""A report as one HTML file that asks nothing of anybody: no server, no font, no remote script.

jinja escapes all text, and a content security policy in the page allows its two scripts only.
"""

import base64
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from stackbert.files import write_text, writing
from stackbert.reports.charts import STYLES
from stackbert.tables import cell_text

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Chart:
    """A figure: a Vega-Lite specification, complete with its data."""

    title: str
    spec: Mapping[str, Any]
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A DataFrame to show; its columns are the headings. An empty one is left out."""

    title: str
    frame: pd.DataFrame
    note: str = ""
    formats: Mapping[str, str] = field(default_factory=dict)  # of a column's values ("{:.3f}")
    folded: bool = False  # until clicked


@dataclass(frozen=True)
class Page:
    """What is reported of a subject, in the order in which it is read."""

    title: str
    verdict: tuple[str, ...]  # the first sentence is set large
    parts: tuple[Chart | Table, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)  # versions, hardware, corpus


def is_report(path: Path) -> bool:
    """Whether a file is a report that StackBERT wrote, so that it may be replaced."""
    mark = b'<meta name="generator" content="StackBERT'
    return path.is_file() and mark in path.read_bytes()[:4096]


def render(pages: Sequence[Page]) -> str:
    """Pages below each other as HTML with everything in it."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    figures = [part.spec for page in pages for part in page.parts if isinstance(part, Chart)]
    data = {"styles": STYLES, "figures": figures}
    # A page without figures needs no library to draw them.
    scripts = (_vega(), (_HERE / "page.js").read_text("utf-8")) if figures else ()
    loader = FileSystemLoader(_HERE)
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=loader)
    return environment.get_template("page.html.j2").render(
        pages=pages,
        css=(_HERE / "page.css").read_text("utf-8"),
        # In a script element JSON must not hold a "<": it could end the element.
        data=json.dumps(data, separators=(",", ":")).replace("<", "\\u003c") if figures else "",
        scripts=scripts,
        policy=_policy(scripts),
        version=version("stackbert"),
        cells=_cells,
    )


def save_figures(pages: Sequence[Page], folder: Path) -> None:
    """Draw the figures of pages as SVG and PNG, named after their titles."""
    import vl_convert

    drawn: Counter[str] = Counter()
    with writing(f"writing figures to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for part in (part for page in pages for part in page.parts if isinstance(part, Chart)):
            name = re.sub(r"\W+", "-", part.title.lower()).strip("-")
            drawn[name] += 1
            name += f"-{drawn[name]}" if drawn[name] > 1 else ""
            spec = {**part.spec, "title": part.title}
            if "mark" in spec or "layer" in spec:  # views in a row keep their own widths
                spec["width"] = 760
            # An empty list of addresses: drawing asks nothing of the network.
            svg = vl_convert.vegalite_to_svg(spec, config=STYLES["light"], allowed_base_urls=[])
            write_text(folder / f"{name}.svg", svg)
            (folder / f"{name}.png").write_bytes(vl_convert.svg_to_png(svg, scale=2.0))


def _cells(table: Table) -> list[list[tuple[str, bool]]]:
    """The rows of a table as text, each cell with whether its column holds numbers."""
    numeric = map(pd.api.types.is_numeric_dtype, table.frame.dtypes)
    columns = list(zip(table.frame, numeric, strict=True))
    return [
        [
            (cell_text(value, table.formats.get(name)), is_number)
            for value, (name, is_number) in zip(row, columns, strict=True)
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
    digests = (hashlib.sha256(script.encode()).digest() for script in scripts)
    hashes = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    # vega-embed and its tooltip bring styles of their own.
    return (
        f"default-src 'none'; script-src {hashes or chr(39) + 'none' + chr(39)}; "
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
    )
