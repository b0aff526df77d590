"""All heads of a model at a glance: their classes, where they look, how alike their layers are.

Each function gives a Vega-Lite specification, complete with its data. The maps themselves are drawn
by `heatmaps` and `explorer`.
"""

from typing import Any

import altair as alt
import numpy as np

from stackbert.attention.classes import LOCAL_WINDOW
from stackbert.attention.result import CLASSES, RADIUS, WINDOWS, Likeness, Measures
from stackbert.reporting.charts import GREY, PALETTE, colours, specification

UNIFORM = "uniform"
_PIXELS = 24
"""Height of a layer."""


def head_rows(measures: Measures) -> list[dict[str, Any]]:
    """A row of data for each head: its place from 1, its class, its masses."""
    within = measures.within[WINDOWS.index(LOCAL_WINDOW)]
    return [
        {
            "layer": layer + 1,
            "head": head + 1,
            "class": str(measures.classes[layer, head]),
            "within": round(float(within[layer, head]), 4),
            "first": round(float(measures.first[layer, head]), 4),
            "sep": round(float(measures.sep[layer, head]), 4),
            "entropy": round(float(measures.entropy[layer, head]), 4),
        }
        for layer in range(measures.depth)
        for head in range(measures.heads)
    ]


def head_tooltip() -> list[alt.Tooltip]:
    """What the pointer shows of a head of `head_rows`."""
    masses = (("within", f"within {LOCAL_WINDOW}"), ("first", "on [CLS]"), ("sep", "on [SEP]"))
    return [
        alt.Tooltip("layer:O"),
        alt.Tooltip("head:O"),
        alt.Tooltip("class:N"),
        *(alt.Tooltip(f"{field}:Q", title=title, format=".3f") for field, title in masses),
        alt.Tooltip("entropy:Q", title="entropy, nats", format=".2f"),
    ]


def head_grid(chart: alt.Chart) -> alt.Chart:
    """A cell for each head of `head_rows`, coloured by class; the top layer is on top."""
    drawn: alt.Chart = chart.mark_rect().encode(
        x=alt.X("head:O", axis=_axis("head"), scale=_gaps()),
        y=alt.Y("layer:O", axis=_axis("layer"), scale=_gaps(), sort="descending"),
        color=colours("class", CLASSES),
        tooltip=head_tooltip(),
    )
    return drawn


def overview_figure(measures: Measures) -> dict[str, Any]:
    """All layers by all heads, coloured by class; the pointer shows the masses."""
    chart = head_grid(alt.Chart(alt.NamedData(name="heads")))
    height = max(120, _PIXELS * measures.depth)
    return specification(chart, height=height, datasets={"heads": head_rows(measures)})


def profile_figure(measures: Measures) -> dict[str, Any]:
    """Mean attention by the key's position relative to the query: a line a class, and uniform."""
    present = [name for name in CLASSES if (measures.classes == name).any()]
    groups = {name: measures.profile[measures.classes == name].mean(axis=0) for name in present}
    rows = [
        {"group": name, "position": place - RADIUS, "mass": round(float(mass), 5)}
        for name, profile in {**groups, UNIFORM: measures.profile_uniform}.items()
        for place, mass in enumerate(profile)
    ]
    shades = [PALETTE[CLASSES.index(name)] for name in present]  # as in the overview
    dashes = (
        alt.when(f"datum.group == '{UNIFORM}'").then(alt.value([5, 4])).otherwise(alt.value([1, 0]))
    )
    tooltip = [
        alt.Tooltip("group:N", title="heads"),
        alt.Tooltip("position:Q", title="key − query", format="+d"),
        alt.Tooltip("mass:Q", title="attention", format=".4f"),
    ]
    base = alt.Chart(alt.NamedData(name="profile")).encode(
        x=alt.X(
            "position:Q",
            title="position of the key relative to the query",
            scale=alt.Scale(domain=[-RADIUS, RADIUS], nice=False),
        ),
        y=alt.Y("mass:Q", title="share of the attention"),
        color=alt.Color(
            "group:N",
            scale=alt.Scale(domain=[*present, UNIFORM], range=[*shades, GREY]),
            legend=alt.Legend(title=None, orient="top"),
        ),
    )
    lines = base.mark_line(strokeWidth=2).encode(strokeDash=dashes)
    dots = base.mark_point(filled=True, size=36, opacity=0.85).encode(tooltip=tooltip)
    return specification(alt.LayerChart(layer=[lines, dots]), datasets={"profile": rows})


def likeness_figure(likeness: Likeness) -> dict[str, Any]:
    """The divergence of every two layers, heads matched best to best; dark is alike."""
    rows = [
        {"first": one + 1, "second": other + 1, "divergence": round(float(value), 4)}
        for (one, other), value in np.ndenumerate(likeness.divergence)
    ]
    highest = max(0.01, float(likeness.divergence.max()))
    base = alt.Chart(alt.NamedData(name="layers")).encode(
        x=alt.X("second:O", axis=_axis(f"layer of {likeness.second}")),
        y=alt.Y("first:O", axis=_axis(f"layer of {likeness.first}"), sort="descending"),
    )
    shades = alt.Scale(domain=[0.0, highest], scheme="blues", reverse=True, nice=False)
    drawn = [
        base.mark_rect().encode(
            color=alt.Color(
                "divergence:Q",
                scale=shades,
                legend=alt.Legend(
                    title="divergence", orient="top", titleColor=GREY, gradientLength=180
                ),
            ),
            tooltip=[
                alt.Tooltip("first:O", title=f"layer of {likeness.first}"),
                alt.Tooltip("second:O", title=f"layer of {likeness.second}"),
                alt.Tooltip("divergence:Q", format=".3f"),
            ],
        )
    ]
    if likeness.divergence.shape[1] <= 16:  # more numbers would run into each other
        ink = (
            alt.when(f"datum.divergence < {highest / 2:.4f}")
            .then(alt.value("#fff"))
            .otherwise(alt.value("#111"))
        )
        drawn.append(
            base.mark_text(fontSize=11).encode(
                text=alt.Text("divergence:Q", format=".2f"), color=ink
            )
        )
    height = max(140, _PIXELS * len(likeness.divergence))
    return specification(alt.LayerChart(layer=drawn), height=height, datasets={"layers": rows})


def _axis(title: str) -> alt.Axis:
    return alt.Axis(title=title, labelAngle=0, ticks=False, domain=False, titleLimit=320)


def _gaps() -> alt.Scale:
    return alt.Scale(paddingInner=0.06, paddingOuter=0)
