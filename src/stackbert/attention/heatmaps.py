"""Heat maps in the paper's style: row = query, column = key, a token label at each.

A map travels packed, as one row of data with its weights in thousandths, and is taken apart where
it is drawn: with a row for each weight the data would be ten times as long.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np

from stackbert.attention.classes import LOCAL_WINDOW
from stackbert.attention.result import F32, WINDOWS, Measures, Names, SentenceMaps
from stackbert.reporting.charts import GREY, Rows

Head = tuple[int, int]
"""Layer and head, both from 0; what a reader sees counts from 1."""

SHADES = ("#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b")
STOPS = (0.0, 0.0625, 0.25, 0.5625, 1.0)
"""Weights of the shades: the squares of 0 to 1 in quarters. With even steps all weights of a head
that looks at ten tokens would be white."""


def default_heads(measures: Measures, n: int = 6) -> list[Head]:
    """Heads to draw, chosen by a rule and not by eye.

    The layers are divided into groups of equal size from bottom to top, half as many as heads are
    wanted. Of each group the head with most mass within `LOCAL_WINDOW` positions (first column
    apart) is taken, then of each group the one with most mass on the first token. Where a model
    has fewer layers than groups, the rule goes on with the heads that are left.

    Args:
        measures: of the model.
        n: heads wanted.

    Returns:
        `n` heads, or all if there are fewer: the local ones from bottom to top, then the others.
    """
    groups = np.array_split(
        np.arange(measures.depth), min(max(1, (n + 1) // 2), max(1, measures.depth))
    )
    masses = (measures.near[WINDOWS.index(LOCAL_WINDOW)], measures.first)
    wanted = min(n, measures.depth * measures.heads)
    chosen: list[Head] = []
    while len(chosen) < wanted:
        for mass in masses:
            for layers in groups:
                free = [
                    (int(layer), head)
                    for layer in layers
                    for head in range(measures.heads)
                    if (int(layer), head) not in chosen
                ]
                if free and len(chosen) < wanted:
                    # The lowest of equals, so that the choice does not hang on the order.
                    chosen.append(max(free, key=lambda at: (mass[at], -at[0], -at[1])))
    return chosen


def packed(weights: F32) -> list[int]:
    """(S, S) to S·S whole thousandths, row by row; likewise of more dimensions."""
    thousandths: list[int] = np.rint(weights * 1000).astype(np.int64).ravel().tolist()
    return thousandths


def head_label(head: Head, classes: Names | None = None) -> str:
    """ "layer 3, head 1 (local)"."""
    kind = "" if classes is None else f" ({classes[head]})"
    return f"layer {head[0] + 1}, head {head[1] + 1}{kind}"


def heads_figure(
    sentence: SentenceMaps,
    heads: Sequence[Head],
    classes: Names | None = None,
    *,
    columns: int = 3,
) -> dict[str, Any]:
    """The maps of some heads on one sentence, beside each other on one scale from 0 to 1.

    Args:
        sentence: whose maps.
        heads: which, in their order.
        classes: (L, H), named above each map.
        columns: maps in a row.

    Returns:
        A Vega-Lite specification, complete with its data.
    """
    panels = [head_label(head, classes) for head in heads]
    rows = [
        {"panel": panel, "tokens": list(sentence.tokens), "weights": packed(sentence.maps[head])}
        for panel, head in zip(panels, heads, strict=True)
    ]
    chart = cells(
        alt.Chart(alt.NamedData(name="maps")), by=["panel"], side=228, tokens=len(sentence.tokens)
    )
    facet = alt.Facet("panel:N", title=None, sort=panels, header=header(labelFontSize=12))
    drawn = chart.facet(facet=facet, columns=columns, spacing=14)
    return complete(drawn, {"maps": rows})


def cells(
    chart: alt.Chart,
    *,
    by: Sequence[str],
    side: int,
    tokens: int,
    titles: bool = True,
    extra: Sequence[tuple[str, str]] = (),
) -> alt.Chart:
    """The map of each packed row of `chart`'s data: a cell a weight, a label a token.

    Args:
        chart: whose rows hold "tokens" (S) and "weights" (S·S thousandths).
        by: the fields that tell one map from another.
        side: pixels.
        tokens: of the longest sentence drawn, for the size of the labels.
        titles: whether "query" and "key" stand at the axes.
        extra: further fields that the pointer shows, with their names.
    """
    size = min(11.0, max(5.0, 0.9 * side / max(1, tokens)))

    def axis(title: str) -> alt.Axis:
        # A place is put before each token, since a sentence has some tokens twice.
        return alt.Axis(
            title=title if titles else None,
            labelExpr="substring(datum.label, 3)",
            labelFontSize=size,
            labelLimit=84,
            labelOverlap=False,
            labelPadding=2,
            ticks=False,
            domain=False,
        )

    # A wider legend than this would be cut off by the narrowest figure.
    legend = alt.Legend(
        title="attention", orient="top", titleColor=GREY, gradientLength=180, tickCount=5
    )
    drawn: alt.Chart = (
        chart.transform_flatten(["weights"], as_=["thousandths"])
        .transform_window(nth="row_number()", groupby=list(by))
        .transform_calculate(
            weight="datum.thousandths / 1000",
            query_place="floor((datum.nth - 1) / length(datum.tokens))",
            key_place="(datum.nth - 1) % length(datum.tokens)",
        )
        .transform_calculate(
            query_token="datum.tokens[datum.query_place]",
            key_token="datum.tokens[datum.key_place]",
        )
        .transform_calculate(
            query="format(datum.query_place, '03d') + datum.query_token",
            key="format(datum.key_place, '03d') + datum.key_token",
        )
        # Thousands of cells with a label for screen readers each would be megabytes of labels.
        .mark_rect(aria=False)
        .encode(
            x=alt.X("key:O", axis=axis("key")),
            y=alt.Y("query:O", axis=axis("query")),
            color=alt.Color(
                "weight:Q", scale=alt.Scale(domain=list(STOPS), range=list(SHADES)), legend=legend
            ),
            tooltip=[
                *(alt.Tooltip(f"{field}:N", title=title) for field, title in extra),
                alt.Tooltip("query_token:N", title="query"),
                alt.Tooltip("key_token:N", title="key"),
                alt.Tooltip("weight:Q", title="weight", format=".3f"),
            ],
        )
        .properties(width=side, height=side)
    )
    return drawn


def complete(
    chart: alt.FacetChart | alt.VConcatChart | alt.HConcatChart, datasets: Mapping[str, Rows]
) -> dict[str, Any]:
    """A chart of several views as a specification with its data; views keep their own width."""
    spec: dict[str, Any] = chart.to_dict()
    spec.pop("config", None)  # the look is that of `charts.style`
    spec["datasets"] = {**spec.get("datasets", {}), **datasets}
    return spec


def header(**given: Any) -> alt.Header:  # noqa: ANN401 (altair's own properties)
    """The headings of views, which are not among what a page's style gives a colour."""
    return alt.Header(labelColor=GREY, labelPadding=4, **given)
