"""A `Page` as one HTML file that asks nothing of anybody: no server, no font, no script from afar.

Text goes through jinja's escaping; the figures' specifications lie in a block of JSON that no text
can end; a content security policy in the page itself names the two scripts by their hashes and
forbids everything else, so that what escaped all this would still not run or call home.
"""

import base64
import functools
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vl_convert
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

import stackbert
from stackbert.files import explaining_os_errors, write_text_atomically
from stackbert.reporting.charts import clipping_note, fitted, loss_curves, style
from stackbert.reporting.content import Axis, Curves, Figure, Page, Table, Text

_HERE = Path(__file__).parent
_SWITCH: dict[Axis, str] = {
    "seconds": "time",
    "flops": "FLOPs",
    "tokens": "tokens",
    "steps": "steps",
}
_SURROGATE = re.compile("[\ud800-\udfff]")
_NUMBER = re.compile(r"[<>≤≥~±+−-]?\s?\d[^→]*|[–—-]?")
"""A cell that begins as a number does, or is empty; "2 → 4" is none."""


@dataclass(frozen=True)
class _Part:
    """A figure, a table or some text as the template wants it."""

    title: str
    note: str
    axes: dict[Axis, str] | None = None
    """Of a switch: the axis' names by their keys."""
    figure: int | None = None
    """The place among the figures' data; None for the others."""
    sentences: tuple[str, ...] = ()
    table: Table | None = None
    numeric: tuple[bool, ...] = ()
    """Whether a column holds numbers."""


def write_page(page: Page, path: Path) -> None:
    """Write `page` to `path`, whole or not at all; the folder is made if need be.

    Raises:
        UserError: the path cannot be written.
    """
    html = render(page)
    with explaining_os_errors(f"writing the report to {path}"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(path, html)


def render(page: Page) -> str:
    """`page` as HTML with everything in it: style, figures, the library that draws them."""
    parts: list[_Part] = []
    figures: list[dict[str, Any]] = []
    for part in page.parts:
        if isinstance(part, Table):
            parts.append(_Part(part.title, part.note, table=part, numeric=_numeric(part)))
            continue
        if isinstance(part, Text):
            parts.append(_Part(part.title, "", sentences=part.sentences))
            continue
        if isinstance(part, Curves):
            note = " ".join(filter(None, (part.note, clipping_note(part))))
            axes = {axis: _SWITCH[axis] for axis in part.axes}
            parts.append(_Part(part.title, note, axes=axes, figure=len(figures)))
        else:
            parts.append(_Part(part.title, part.note, figure=len(figures)))
        figures.append(_figure_data(part))
    data = {"styles": {"light": style(), "dark": style(dark=True)}, "figures": figures}
    # A page without figures needs no library to draw them.
    scripts = (_vendor_script(), _own("page.js")) if figures else ()
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        loader=FileSystemLoader(_HERE),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html.j2").render(
        page=page,
        parts=parts,
        css=Markup(_own("page.css")),
        data=Markup(_json_for_script(data)) if figures else None,
        scripts=[Markup(script) for script in scripts],
        policy=_policy(scripts),
        version=stackbert.__version__,
    )
    # Of a folder's name in another encoding, which Python spells with halves of characters.
    return _SURROGATE.sub("\ufffd", html)


def _figure_data(part: Curves | Figure) -> dict[str, Any]:
    """What the page's script draws: a specification an axis, with the rows held once."""
    if isinstance(part, Figure):
        specs = {"": fitted(part.spec, "container")}
    else:
        specs = {axis: loss_curves(part, axis) for axis in part.axes}
    datasets: dict[str, Any] = {}
    for spec in specs.values():
        spec.pop("$schema", None)
        datasets |= spec.pop("datasets", {})
    return {"title": part.title, "specs": specs, "datasets": datasets}


def _numeric(table: Table) -> tuple[bool, ...]:
    columns = [[row[place] for row in table.rows] for place in range(len(table.columns))]
    return tuple(
        any(cells) and all(_NUMBER.fullmatch(cell.strip()) for cell in cells) for cells in columns
    )


def _own(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


@functools.cache
def _vendor_script() -> str:
    """Vega, Vega-Lite and vega-embed in one script, as vl-convert brings them along."""
    script = vl_convert.javascript_bundle()  # type: ignore[call-arg]  # its default is undeclared
    # HTML's parser would end or nest the script at these, and reads every line end as a newline;
    # the hash must be of what it reads.
    script = re.sub(r"<(?=/?script|!--)", r"\\x3c", script, flags=re.IGNORECASE)
    return script.replace("\r\n", "\n").replace("\r", "\n")


def _json_for_script(value: Any) -> str:  # noqa: ANN401 (JSON is any value)
    """JSON in which no `<` is left, so that it cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _policy(scripts: Sequence[str]) -> str:
    """The content security policy: these scripts, styles in the page, and nothing from anywhere."""
    hashes = [
        "'sha256-" + base64.b64encode(hashlib.sha256(s.encode("utf-8")).digest()).decode() + "'"
        for s in scripts
    ]
    return "; ".join(
        (
            "default-src 'none'",
            "script-src " + (" ".join(hashes) or "'none'"),
            "style-src 'unsafe-inline'",  # vega-embed and its tooltip bring their own
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
