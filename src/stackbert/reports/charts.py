"""Charts as Vega-Lite specifications, made with altair; `STYLES` holds the look of all."""

from collections.abc import Sequence
from typing import Any

import altair as alt
import pandas as pd

from stackbert.units import format_duration

# Columns that a loss can be drawn over, and what the choice in the page calls them.
AXES = {"seconds": "time", "flops": "FLOPs", "tokens": "tokens", "steps": "steps"}
# The first six are Okabe and Ito's: told apart by colour-blind readers, on white and on black.
PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f"]
GREY = "#7d858e"
HEIGHT = 340
OPENING = 0.05  # share of the longest run whose losses may lie above the frame


def loss_curves(points: pd.DataFrame, bands: pd.DataFrame | None = None) -> dict[str, Any]:
    """Losses, a line a run, with a choice of what they are drawn over.

    Args:
        points: in order: `group` (names the colour), `run` (a line), `detail` (for the tooltip),
            `main` (drawn strong), the columns of `AXES`, `loss`.
        bands: stages to shade behind the lines: `label`, `start_X` and `end_X` for each of `AXES`.
    """
    points = points[points["loss"].notna()]
    unit, scale = _time_unit(points["seconds"].max())
    points = points.assign(
        time=points["seconds"].map(format_duration),
        seconds=points["seconds"] / scale,
        nth=range(len(points)),
    )
    choices = alt.binding_radio(options=list(AXES), labels=list(AXES.values()), name="over ")
    over = alt.param(name="over", value="seconds", bind=choices)
    number = "datum.value < 1e5 ? format(datum.value, '~r') : format(datum.value, '.3~s')"
    axis = alt.Axis(labelExpr=number, grid=False)
    x = alt.X("x:Q", title=None, scale=alt.Scale(zero=True, nice=False), axis=axis)
    y_scale = alt.Scale(domain=list(loss_range(points)), nice=False)
    base = (
        alt.Chart(points)
        .transform_calculate(x="datum[over]")
        .encode(
            x=x,
            y=alt.Y("loss:Q", title="loss, nats", scale=y_scale),
            color=colours("group", list(dict.fromkeys(points["group"]))),
        )
    )
    main = alt.when("datum.main")
    lines = base.mark_line(clip=True).encode(
        detail="run:N",
        order="nth:Q",
        size=main.then(alt.value(2.2)).otherwise(alt.value(1.2)),
        opacity=main.then(alt.value(1.0)).otherwise(alt.value(0.4)),
    )
    formats = {"loss": ".3f", "steps": ",.0f", "flops": ".3s", "tokens": ",.0f"}
    told = [alt.Tooltip(f"{name}:Q", format=form) for name, form in formats.items()]
    dots = base.mark_point(filled=True, clip=True).encode(
        size=alt.value(28),
        opacity=main.then(alt.value(1.0)).otherwise(alt.value(0.0)),
        tooltip=["group:N", "detail:N", "time:N", *told],
    )
    titles = {**AXES, "seconds": f"{unit} of training"}
    title = alt.Chart(pd.DataFrame([{}])).mark_text(text={"expr": f"{titles}[over]"}, fontSize=12.5)
    title = title.encode(x=alt.value({"expr": "width / 2"}), y=alt.value(HEIGHT + 34))
    layers: list[Any] = [lines, dots, title]
    if bands is not None and len(bands):
        bands = bands.assign(odd=[place % 2 == 1 for place in range(len(bands))])
        bands[["start_seconds", "end_seconds"]] /= scale
        shade = alt.Chart(bands).encode(x=x)
        shade = shade.transform_calculate(x="datum['start_' + over]", x2="datum['end_' + over]")
        opacity = alt.when("datum.odd").then(alt.value(0.17)).otherwise(alt.value(0.07))
        # Neighbours take turns on two lines: a short stage has no room for its label.
        line = {"expr": "datum.odd ? -21 : -6"}
        labels = shade.mark_text(align="left", baseline="bottom", dx=4, dy=line, color=GREY)
        layers = [
            shade.mark_rect(color=GREY).encode(x2="x2:Q", opacity=opacity),
            labels.encode(y=alt.value(HEIGHT), text="label:N"),
            *layers,
        ]
    return specification(alt.layer(*layers).add_params(over))


def intervals(
    rows: pd.DataFrame, *, y: str, title: str, zero: str = "", colour: str | None = None
) -> dict[str, Any]:
    """Means with their intervals, one below the other.

    `rows` has `mean`, `low`, `high` (NaN where there is no interval), the column `y`, which names a
    line, and `colour`. `title` is of the x axis; `zero` says what the vertical line at 0 means.
    """
    height = 34 * rows[y].nunique() + 40
    names = alt.Y(f"{y}:N", title=None, sort=list(dict.fromkeys(rows[y])))
    hue = colours(colour, list(dict.fromkeys(rows[colour]))) if colour else alt.value(PALETTE[0])
    shift = alt.YOffset(f"{colour}:N") if colour else alt.Undefined
    told = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("mean", "low", "high")]
    base = alt.Chart(rows).encode(y=names, color=hue, yOffset=shift, tooltip=[f"{y}:N", *told])
    bars = base.mark_rule(strokeWidth=2).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    x = alt.X("mean:Q", title=title, scale=alt.Scale(zero=bool(zero)))
    layers = [bars, base.mark_point(filled=True, size=70).encode(x=x)]
    if zero:
        line = alt.Chart(pd.DataFrame([{"at": 0.0, "what": zero}]))
        line = line.mark_rule(strokeDash=[4, 4], color=GREY)
        layers.insert(0, line.encode(x="at:Q", tooltip="what:N"))
    return specification(alt.layer(*layers), height=height)


def specification(chart: Any, *, height: int | None = HEIGHT) -> dict[str, Any]:  # noqa: ANN401
    """An altair chart as a Vega-Lite specification, as wide as the page; with None as it is."""
    if height is not None:
        chart = chart.properties(width="container", height=height)
    with alt.data_transformers.enable("default", max_rows=None):
        spec: dict[str, Any] = chart.to_dict()
    spec.pop("config", None)  # the look is that of `STYLES` alone
    return spec


def colours(field: str, groups: Sequence[str]) -> alt.Color:
    """The colour channel that gives a group the same colour in all charts of a page."""
    key = alt.Legend(title=None, orient="top", columns=3, symbolOpacity=1.0)
    hues = [PALETTE[place % len(PALETTE)] for place in range(len(groups))]
    scale = alt.Scale(domain=list(groups), range=hues)
    return alt.Color(f"{field}:N", scale=scale, legend=key if len(groups) > 1 else None)


def loss_range(points: pd.DataFrame) -> tuple[float, float]:
    """The losses at the bottom and the top of the frame.

    Early losses would flatten all that matters; those after `OPENING` are sure to be inside.
    """
    if points["loss"].isna().all():
        return 0.0, 1.0
    later = points[points["steps"] >= OPENING * points["steps"].max()]
    high = max(later["loss"].max(), points.groupby("run")["loss"].last().max())
    low = points.loc[points["loss"] <= high, "loss"].min()
    span = high - low or 0.1
    return float(low - 0.1 * span), float(high + 0.04 * span)


def clipping_note(points: pd.DataFrame) -> str:
    """The sentence that says what the frame leaves out; empty if nothing."""
    _, high = loss_range(points)
    if not (points["loss"] > high).any():
        return ""
    return (
        f"Losses above {high:.2f} nats, all from the first {OPENING:.0%} of the longest run, lie "
        "outside the frame."
    )


def _time_unit(seconds: float) -> tuple[str, float]:
    if seconds <= 300:
        return "seconds", 1.0
    return ("minutes", 60.0) if seconds <= 3 * 3600 else ("hours", 3600.0)


def _style(ink: str, rule: str, ground: str) -> dict[str, Any]:
    text = {"labelColor": ink, "titleColor": ink, "labelFontSize": 12}
    axis = {"titleFontSize": 12.5, "titleFontWeight": "normal", "titlePadding": 8}
    return {
        "background": ground,
        "font": "system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif",
        "view": {"stroke": None},
        # A mitred corner, as at a growth, reaches up to a loss that nobody measured.
        "line": {"strokeJoin": "round"},
        "text": {"color": ink},
        "axis": {**text, **axis, "gridColor": rule, "domainColor": GREY, "tickColor": GREY},
        "legend": {**text, "labelLimit": 280},
        "header": text,
        "title": {"color": ink, "anchor": "start", "fontSize": 15},
    }


# The Vega-Lite config of all charts, by the page's colours.
STYLES = {
    "light": _style("#32373d", "#e4e7ea", "#fff"),
    "dark": _style("#d5d9de", "#343a42", "#15181c"),
}
