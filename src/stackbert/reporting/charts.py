"""Figures as Vega-Lite specifications, made with altair; and the look that all of them share.

A specification holds its data but no colours of the page: `style` gives those, light or dark, to
whatever draws it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import altair as alt

from stackbert.reporting.content import AXES, Axis, Band, Curves, Point
from stackbert.reporting.wording import duration, time_unit

PALETTE = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#8c6bb1",
    "#7f7f7f",
)
"""The first six are Okabe and Ito's: told apart by colour-blind readers, on white and on black."""
GREY = "#7d858e"
"""Readable on white and on black."""
HEIGHT = 340
OPENING = 0.05
"""Share of the longest run whose losses may lie above the frame. A model that knows nothing yet
starts at 9 nats; with that in the frame, all that matters is a line at its bottom."""
_LABEL = 60
"""Pixels that a stage's label takes."""

Rows = Sequence[Mapping[str, Any]]


def loss_curves(curves: Curves, axis: Axis) -> dict[str, Any]:
    """Losses over `axis`: a line a run, its colour the group's, stages as bands behind.

    The value of every point shows when the pointer comes near it. The data are the same whatever
    the axis, so that a page with a switch need hold them only once.

    Args:
        curves: what is drawn; points whose loss is not finite are left out.
        axis: one of `curves.axes`.

    Returns:
        A Vega-Lite specification with its data under "datasets", as wide as what it is put into.
    """
    reach = {name: max((getattr(p, name) for p in _points(curves)), default=0.0) for name in AXES}
    unit, seconds = time_unit(reach["seconds"])
    far = reach[axis] / (seconds if axis == "seconds" else 1.0) or 1.0
    title = AXES[axis].replace("seconds", unit) if axis == "seconds" else AXES[axis]
    # SI prefixes where plain digits would fill the axis.
    digits = alt.Axis(format="~s") if reach[axis] >= 1e5 else alt.Axis()

    def x(field: str) -> alt.X:
        scale = alt.Scale(domain=[0.0, 1.01 * far], nice=False)  # room for the last dot
        return alt.X(f"{field}:Q", title=title, scale=scale, axis=digits)

    groups = list(dict.fromkeys(curve.group for curve in curves.curves))
    low, high = loss_range(curves)
    y = alt.Y(
        "loss:Q",
        title="loss, nats",
        scale=alt.Scale(domain=[low, high], zero=False, nice=False),
    )
    colour = colours("group", groups)
    detail = alt.Detail("curve:N")
    order = alt.Order("nth:Q")
    points = alt.NamedData(name="points")

    def lines(which: str, width: float, opacity: float) -> alt.Chart:
        chart = alt.Chart(points).transform_filter(which)
        chart = chart.mark_line(strokeWidth=width, opacity=opacity, clip=True)
        drawn: alt.Chart = chart.encode(x=x(axis), y=y, color=colour, detail=detail, order=order)
        return drawn

    hover = alt.selection_point(
        name="hover", nearest=True, on="pointerover", clear="pointerout", empty=False
    )
    shown, hidden = alt.value(1.0), alt.value(0.0)
    dots = (
        alt.Chart(points)
        .mark_point(filled=True, clip=True)
        .encode(
            x=x(axis),
            y=y,
            color=colour,
            size=alt.when(hover).then(alt.value(110)).otherwise(alt.value(28)),
            opacity=alt.when(hover).then(shown).when("datum.main").then(shown).otherwise(hidden),
            tooltip=_tooltip(curves),
        )
        .add_params(hover)
    )
    layers = [
        *_bands(curves.bands, axis, reach[axis], x),
        lines("!datum.main", 1.2, 0.4),
        lines("datum.main", 2.2, 1.0),
        dots,
    ]
    datasets = {
        "points": _point_rows(curves, seconds),
        "bands": _band_rows(curves.bands, seconds),
    }
    return specification(alt.LayerChart(layer=layers), datasets=datasets)


def specification(
    chart: alt.Chart | alt.LayerChart,
    *,
    height: int = HEIGHT,
    datasets: Mapping[str, Rows] | None = None,
) -> dict[str, Any]:
    """A chart as a Vega-Lite specification, as wide as what it is put into.

    Args:
        chart: whose data may be named (`alt.NamedData`).
        height: in pixels.
        datasets: the rows behind those names. Added after altair's validation, which would look
            at every value of every row.
    """
    spec: dict[str, Any] = chart.properties(width="container", height=height).to_dict()
    spec.pop("config", None)  # the look is `style`'s alone
    if datasets:
        spec["datasets"] = {**spec.get("datasets", {}), **datasets}
    return spec


def fitted(spec: Mapping[str, Any], width: int | str) -> dict[str, Any]:
    """A copy of a specification that is `width` pixels wide, or as wide as its "container".

    One of several views beside each other keeps its own width: Vega-Lite has no other for it.
    """
    single = "mark" in spec or "layer" in spec
    return {**spec, "width": width} if single else dict(spec)


def colours(field: str, groups: Sequence[str], *, legend: bool | None = None) -> alt.Color:
    """The colour channel that gives every group the same colour in all figures of a page.

    Args:
        field: the rows' field with the group.
        groups: all groups, in the order of the legend.
        legend: whether there is one; by default, if there is something to tell apart.
    """
    shown = len(groups) > 1 if legend is None else legend
    columns = 3 if max((len(group) for group in groups), default=0) <= 16 else 2
    key = alt.Legend(title=None, orient="top", columns=columns, symbolOpacity=1.0)
    scale = alt.Scale(domain=list(groups), range=palette(len(groups)))
    return alt.Color(f"{field}:N", scale=scale, legend=key if shown else None)


def palette(number: int) -> list[str]:
    """As many colours; beyond eight they come round again."""
    return [PALETTE[index % len(PALETTE)] for index in range(number)]


def style(*, dark: bool = False) -> dict[str, Any]:
    """The Vega-Lite config of all figures: fonts, lines, and the colours of the page."""
    ink, rule, ground = (
        ("#d5d9de", "#343a42", "#15181c") if dark else ("#32373d", "#e4e7ea", "#fff")
    )
    return {
        "background": ground,
        "customFormatTypes": True,  # of tooltips: any function of Vega's expressions
        "font": "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif",
        "view": {"stroke": None},
        # A mitred corner, as at a growth, reaches up to a loss that nobody measured.
        "line": {"strokeJoin": "round"},
        "axis": {
            "labelColor": ink,
            "labelFontSize": 12,
            "titleColor": ink,
            "titleFontSize": 12.5,
            "titleFontWeight": "normal",
            "titlePadding": 8,
            "gridColor": rule,
            "domainColor": GREY,
            "tickColor": GREY,
        },
        "axisX": {"grid": False},
        "legend": {"labelColor": ink, "labelFontSize": 12.5, "labelLimit": 280},
        "title": {
            "color": ink,
            "anchor": "start",
            "fontSize": 15,
            "subtitleColor": ink,
            "subtitleFontSize": 12,
        },
    }


def loss_range(curves: Curves) -> tuple[float, float]:
    """The losses at the bottom and the top of the frame, with room for the stages' labels.

    The top is the highest loss of those after the first `OPENING` of the longest run; what lies
    before may be cut off. The last loss of every curve is always inside.
    """
    points = _points(curves)
    if not points:
        return 0.0, 1.0
    begin = OPENING * max(point.steps for point in points)
    ends = [_finite(curve.points)[-1] for curve in curves.curves if _finite(curve.points)]
    high = max(point.loss for point in [*ends, *(p for p in points if p.steps >= begin)])
    low = min(point.loss for point in points if point.loss <= high)
    span = high - low or 0.1
    return low - 0.1 * span, high + 0.04 * span


def clipping_note(curves: Curves) -> str:
    """The sentence that says what the frame leaves out; empty if nothing."""
    _, high = loss_range(curves)
    if all(point.loss <= high for point in _points(curves)):
        return ""
    return (
        f"Losses above {high:.2f} nats, all from the first {OPENING * 100:.0f} % of the longest "
        "run, lie outside the frame."
    )


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if math.isfinite(point.loss)]


def _points(curves: Curves) -> list[Point]:
    return [point for curve in curves.curves for point in _finite(curve.points)]


def _point_rows(curves: Curves, seconds: float) -> list[dict[str, Any]]:
    """A row a point; `seconds` of the axis' unit make its value on the time axis."""
    return [
        {
            "curve": index,
            "nth": nth,
            "group": curve.group,
            "detail": curve.detail,
            "main": curve.main,
            "seconds": _rounded(point.seconds / seconds),
            "time": duration(point.seconds),
            "flops": _rounded(point.flops),
            "tokens": round(point.tokens),
            "steps": round(point.steps),
            "loss": _rounded(point.loss),
        }
        for index, curve in enumerate(curves.curves)
        for nth, point in enumerate(_finite(curve.points))
    ]


def _band_rows(bands: Sequence[Band], seconds: float) -> list[dict[str, Any]]:
    rows = []
    for index, band in enumerate(bands):
        row: dict[str, Any] = {"label": band.label, "odd": index % 2 == 1}
        for edge, point in (("start", band.start), ("end", band.end)):
            row[f"{edge}_seconds"] = _rounded(point.seconds / seconds)
            row |= {f"{edge}_{a}": _rounded(getattr(point, a)) for a in AXES if a != "seconds"}
        rows.append(row)
    return rows


def _bands(
    bands: Sequence[Band], axis: Axis, reach: float, x: Callable[[str], alt.X]
) -> list[alt.Chart]:
    """Shaded rectangles with their labels at the bottom left, where falling losses leave room."""
    if not bands:
        return []
    rows = alt.NamedData(name="bands")
    start, end = f"start_{axis}", alt.X2(f"end_{axis}:Q")
    shades = alt.when("datum.odd").then(alt.value(0.17)).otherwise(alt.value(0.07))
    layers = [
        alt.Chart(rows).mark_rect(color=GREY).encode(x=x(start), x2=end, opacity=shades),
    ]
    widths = [getattr(band.end, axis) - getattr(band.start, axis) for band in bands]
    shortest = min([*widths[:-1], reach]) / (reach or 1.0)
    lifted = {"expr": f"{shortest:.4g} * width < {_LABEL} ? {HEIGHT - 21} : {HEIGHT - 6}"}
    # Where one has no room for its label, they take turns on two lines.
    for which, y in (("!datum.odd", HEIGHT - 6), ("datum.odd", lifted)):
        labels = alt.Chart(rows).transform_filter(which)
        labels = labels.mark_text(align="left", baseline="bottom", dx=4, fontSize=11.5, color=GREY)
        layers.append(labels.encode(x=x(start), y=alt.value(y), text=alt.Text("label:N")))
    return layers


def _tooltip(curves: Curves) -> list[alt.Tooltip]:
    # A field of the name "title" becomes the heading of the box.
    fields = [_text("group", "title")]
    if any(curve.detail for curve in curves.curves):
        fields.append(_text("detail", "run"))
    return [
        *fields,
        alt.Tooltip("loss:Q", title="loss", format=".3f"),
        alt.Tooltip("steps:Q", title="steps", format=",.0f"),
        _text("time", "time"),
        alt.Tooltip("flops:Q", title="FLOPs", format=".3s"),
        alt.Tooltip("tokens:Q", title="tokens", format=",.0f"),
    ]


def _text(field: str, title: str) -> alt.Tooltip:
    # With the nearest point asked for, Vega-Lite 6.4 looks for a field in the wrong place unless
    # it has a format; the format itself is ignored by toString.
    return alt.Tooltip(f"{field}:N", title=title, formatType="toString", format="s")


def _rounded(value: float) -> float:
    """Six digits are more than a screen shows, and keep the file small."""
    return float(f"{value:.6g}")
