"""What a report consists of, in plain values: whoever has something to show fills these in.

`page` makes HTML of them and `charts` the figures; neither knows where the numbers come from.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

Axis = Literal["seconds", "flops", "tokens", "steps"]
AXES: dict[Axis, str] = {
    "seconds": "seconds of training",
    "flops": "FLOPs",
    "tokens": "tokens",
    "steps": "steps",
}
"""What a loss can be drawn over, with the axis' title."""


@dataclass(frozen=True)
class Point:
    """How far a run had come, on every axis, and its validation loss there."""

    seconds: float
    flops: float
    tokens: float
    steps: float
    loss: float
    """Nats."""


@dataclass(frozen=True)
class Curve:
    """The validation losses of one run."""

    group: str
    """What the legend names and the colour goes by: a variant, or a run's name."""
    detail: str
    """What the hover adds: "seed 0, 65 % of the budget"."""
    points: tuple[Point, ...]
    main: bool = True
    """Drawn strong; other runs of the group (smaller budgets, further seeds) are drawn faint."""


@dataclass(frozen=True)
class Band:
    """A stage, shaded behind the curves."""

    label: str
    """"4 layers"."""
    start: Point
    end: Point


@dataclass(frozen=True)
class Curves:
    """Loss curves with a switch of the x axis."""

    title: str
    curves: tuple[Curve, ...]
    bands: tuple[Band, ...] = ()
    note: str = ""
    axes: tuple[Axis, ...] = ("seconds", "flops", "tokens", "steps")


@dataclass(frozen=True)
class Figure:
    """Any other figure: a Vega-Lite specification, complete with its data."""

    title: str
    spec: dict[str, Any]
    note: str = ""
    still: bool = True
    """Whether it is a picture as it stands; one to choose in is drawn in the page alone."""


@dataclass(frozen=True)
class Table:
    """Rows of text."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    folded: bool = False
    """Closed until clicked; for recipes and other long things."""


@dataclass(frozen=True)
class Text:
    """Sentences under a heading of their own."""

    title: str
    sentences: tuple[str, ...]


Part = Curves | Figure | Table | Text


@dataclass(frozen=True)
class Page:
    """A whole report, in the order in which it is read."""

    title: str
    verdict: tuple[str, ...]
    """Sentences; the first is set large."""
    parts: tuple[Part, ...]
    facts: dict[str, str] = field(default_factory=dict)
    """The foot: versions, hardware, corpus, command, date."""
