"""A page's figures as files of their own, for papers and slides: SVG and PNG."""

from pathlib import Path
from typing import Any

import vl_convert

from stackbert.files import explaining_os_errors, write_text_atomically
from stackbert.reporting.charts import clipping_note, fitted, loss_curves, style
from stackbert.reporting.content import Axis, Curves, Figure, Page
from stackbert.reporting.wording import slug

WIDTH = 760
AXES: tuple[Axis, ...] = ("seconds", "steps")
"""What loss curves are saved over, of those that the page offers."""
_LINE = 120
"""Characters of a note that fit beside each other."""


def save_figures(page: Page, folder: Path) -> list[Path]:
    """Draw the figures of `page` into `folder`, each as SVG and as PNG of twice the size.

    Args:
        page: loss curves are drawn over time and over steps; figures to choose in are left out.
        folder: made if need be. Files are named after the figures' titles; those of an earlier
            call are replaced.

    Returns:
        The files, in the page's order.

    Raises:
        UserError: the folder cannot be written.
    """
    saved: list[Path] = []
    with explaining_os_errors(f"writing figures to {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        taken: set[str] = set()
        for name, spec in _drawings(page):
            free = next(n for n in _names(name) if n not in taken)
            taken.add(free)
            svg, png = folder / f"{free}.svg", folder / f"{free}.png"
            # An empty list of addresses: drawing asks nothing of the network.
            drawn = vl_convert.vegalite_to_svg(spec, config=style(), allowed_base_urls=[])
            write_text_atomically(svg, drawn)
            png.write_bytes(vl_convert.svg_to_png(drawn, scale=2.0))
            saved += [svg, png]
    return saved


def _drawings(page: Page) -> list[tuple[str, dict[str, Any]]]:
    drawings = []
    for part in page.parts:
        if isinstance(part, Curves):
            note = " ".join(filter(None, (part.note, clipping_note(part))))
            for axis in part.axes:
                if axis in AXES:
                    spec = _titled(loss_curves(part, axis), part.title, note)
                    drawings.append((f"{slug(part.title)}-{_SUFFIX[axis]}", spec))
        elif isinstance(part, Figure) and part.still:
            drawings.append((slug(part.title), _titled(part.spec, part.title, part.note)))
    return drawings


_SUFFIX = {"seconds": "time", "steps": "steps"}


def _titled(spec: dict[str, Any], title: str, note: str) -> dict[str, Any]:
    """The specification with its title and note drawn in, and a width of its own."""
    lines: list[str] = [""]
    for word in note.split():
        longer = f"{lines[-1]} {word}".strip()
        if len(longer) <= _LINE:
            lines[-1] = longer
        else:
            lines.append(word)
    heading: dict[str, Any] = {"text": title}
    if note:
        heading["subtitle"] = lines
    return {**fitted(spec, WIDTH), "title": heading}


def _names(name: str) -> list[str]:
    return [name, *(f"{name}-{number}" for number in range(2, 1000))]
