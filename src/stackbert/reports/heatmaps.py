"""Attention maps in the paper's style: row = query, column = key, a token label at each.

A map travels as one row of data and is taken apart where it is drawn: a row a weight would be ten
times as long.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from stackbert.attention.growth import MOMENTS
from stackbert.attention.measure import AttentionResult
from stackbert.attention.measures import CLASSES, LOCAL_WINDOW
from stackbert.reports.charts import GREY, colours, specification

Head = tuple[int, int]
"""Layer and head, from 1 as in the tables."""

SHADES = ("#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b")
STOPS = (0.0, 0.0625, 0.25, 0.5625, 1.0)
"""Weights of the shades: with even steps a head that looks at ten tokens would be white."""
MOST_WEIGHTS = 1_200_000
"""Of the maps to choose from: some 4 MB of page. Examples beyond are left out."""


def default_heads(heads: pd.DataFrame, count: int = 6) -> list[Head]:
    """Heads to draw, chosen by a rule and not by eye.

    Layers are divided into groups from bottom to top, half as many as heads are wanted. Of each
    group the head with most mass within `LOCAL_WINDOW` positions (first column apart) is taken,
    then of each the one with most mass on the first token, among the heads that are left.
    """
    layers = np.array_split(np.arange(1, heads["layer"].max() + 1), count // 2)
    free = heads.set_index(["layer", "head"])
    chosen: list[Head] = []
    for mass in (f"near_{LOCAL_WINDOW}", "first"):
        for group in layers:
            found = free[free.index.isin(group, level="layer")]
            if len(found):
                chosen.append(found[mass].idxmax())
                free = free.drop(chosen[-1])
    return chosen


def head_maps(result: AttentionResult, heads: Sequence[Head]) -> dict[str, Any]:
    """The maps of some heads on the shortest example: the paper's Fig. 2."""
    classes = result.heads_of().set_index(["layer", "head"])["class"]
    number = result.shortest
    rows = [
        {"panel": f"{_label(at)} ({classes[at]})", **_map(result, f"maps_{number}", at, number)}
        for at in heads
    ]
    cells = _cells(rows, by=["panel"], side=228, tokens=result.examples[number])
    facet = alt.Facet("panel:N", title=None, sort=[row["panel"] for row in rows], header=_header())
    return specification(cells.facet(facet=facet, columns=3, spacing=14), height=None)


def growth_maps(result: AttentionResult, group: pd.DataFrame) -> dict[str, Any] | None:
    """Heads of new layers at each moment of the growths of a group: the paper's Fig. 4.

    A column a head, a row a run and moment. In the rows of the shallow model the head itself is
    drawn, in the others the head of the highest new layer that copies it, or stands where stacking
    would have copied it.

    Args:
        result: what was measured.
        group: as `growth_groups` returns it.

    Returns:
        A Vega-Lite specification; None if no chosen head is copied by every growth.
    """
    runs = group.groupby("growth", sort=False)["run"].first()
    heads = result.growth_heads[result.growth_heads["growth"].isin(runs.index)]
    new = heads[(heads["moment"] == "grown") & heads["new"]]
    copies = new.groupby(["growth", "source"])["layer"].max()
    first = heads[(heads["growth"] == runs.index[0]) & (heads["moment"] == "shallow")]
    rows = []
    for layer, head in default_heads(first, 4):
        if not all((number, layer) in copies.index for number in runs.index):
            continue
        # Runs may put the copy into different layers, so the column is the source's.
        panel = f"copies of {_label((layer, head))}"
        for (number, run), moment in itertools.product(runs.items(), MOMENTS):
            at = (layer if moment == "shallow" else int(copies[number, layer]), head)
            maps = _map(result, f"growth_{number}_{moment}", at, result.shortest)
            what = f"{run}: {MOMENTS[moment]}"
            rows.append({"moment": what, "panel": panel, "drawn": _label(at), **maps})
    if not rows:
        return None
    by, tokens = ["moment", "panel"], result.examples[result.shortest]
    chart = _cells(rows, by=by, side=168, tokens=tokens, titles=False, tell="drawn")
    row, column = (list(dict.fromkeys(each[name] for each in rows)) for name in by)
    drawn = chart.facet(
        row=alt.Row("moment:N", title=None, sort=row, header=_header()),
        column=alt.Column("panel:N", title=None, sort=column, header=_header()),
        spacing=8,
    )
    return specification(drawn, height=None)


def explorer(result: AttentionResult, start: Head) -> dict[str, Any]:
    """The map of any head on any example, chosen from lists, next to a grid of all heads."""
    weights = np.cumsum([result.arrays[f"maps_{n}"].size for n in range(len(result.examples))])
    numbers = list(range(max(1, int((weights <= MOST_WEIGHTS).sum()))))
    heads = result.heads_of()
    layers, places = heads["layer"].unique().tolist(), heads["head"].unique().tolist()
    rows = [
        {
            "sentence": number,
            "layer": layer,
            "head": head,
            **_map(result, f"maps_{number}", (layer, head), number),
        }
        for number in numbers
        for layer, head in itertools.product(layers, places)
    ]
    choices = [
        _choice("sentence", 0, numbers, [" ".join(result.examples[number]) for number in numbers]),
        _choice("layer", start[0], layers),
        _choice("head", start[1], places),
    ]
    shown = "datum.layer == shown_layer && datum.head == shown_head"
    chosen = alt.when(shown)
    masses = [f"within_{LOCAL_WINDOW}", "first", "sep", "entropy"]
    gap = alt.Scale(paddingInner=0.06)
    grid = (
        alt.Chart(heads[["layer", "head", "class", *masses]].round(4))
        .mark_rect(strokeWidth=2.5)
        .encode(
            x=alt.X("head:O", axis=plain_axis("head"), scale=gap),
            y=alt.Y("layer:O", axis=plain_axis("layer"), scale=gap, sort="descending"),
            color=colours("class", CLASSES),
            opacity=chosen.then(alt.value(1.0)).otherwise(alt.value(0.55)),
            stroke=chosen.then(alt.value(GREY)).otherwise(alt.value("transparent")),
            tooltip=["layer:O", "head:O", "class:N", *(f"{name}:Q" for name in masses)],
        )
        .properties(width=18 * len(places), height=18 * len(layers))
    )
    longest = max(result.examples, key=len)
    maps = _cells(rows, by=["sentence", "layer", "head"], side=440, tokens=longest)
    maps.transform.insert(0, alt.FilterTransform(f"{shown} && datum.sentence == shown_sentence"))
    drawn = alt.hconcat(grid, maps, spacing=24).add_params(*choices)
    return specification(drawn.resolve_scale(color="independent"), height=None)


def plain_axis(title: str) -> alt.Axis:
    """An axis without lines, for cells."""
    return alt.Axis(title=title, labelAngle=0, ticks=False, domain=False, titleLimit=320)


def _choice(
    name: str, start: int, values: list[int], labels: Iterable[object] = ()
) -> alt.Parameter:
    texts = [str(label)[:60] for label in labels or values]
    bind = alt.binding_select(options=values, labels=texts, name=f"{name} ")
    return alt.param(name=f"shown_{name}", value=start, bind=bind)


def _map(result: AttentionResult, name: str, at: Head, example: int) -> dict[str, Any]:
    weights = result.arrays[name][at[0] - 1, at[1] - 1].astype(np.float32)
    thousandths = np.rint(weights * 1000).astype(int).ravel().tolist()
    return {"tokens": list(result.examples[example]), "weights": thousandths}


def _cells(
    rows: list[dict[str, Any]],
    *,
    by: list[str],
    side: int,
    tokens: Sequence[str],
    titles: bool = True,
    tell: str = "",
) -> alt.Chart:
    """A cell a weight, a label a token; a map is told from another by the columns `by`."""

    def axis(title: str) -> alt.Axis:
        # A number stands before each token, since a sentence has some tokens twice.
        return alt.Axis(
            title=title if titles else None,
            labelExpr="substring(datum.label, 3)",
            labelFontSize=min(11.0, max(5.0, 0.9 * side / len(tokens))),
            labelLimit=84,
            labelOverlap=False,
            labelPadding=2,
            ticks=False,
            domain=False,
        )

    told = [alt.Tooltip(f"{tell}:N", title="of")] if tell else []
    legend = alt.Legend(title="attention", orient="top", gradientLength=180, tickCount=5)
    scale = alt.Scale(domain=list(STOPS), range=list(SHADES))
    drawn: alt.Chart = (
        alt.Chart(pd.DataFrame(rows))
        .transform_flatten(["weights"], as_=["thousandths"])
        .transform_window(nth="row_number()", groupby=by)
        .transform_calculate(
            weight="datum.thousandths / 1000",
            row="floor((datum.nth - 1) / length(datum.tokens))",
            column="(datum.nth - 1) % length(datum.tokens)",
        )
        .transform_calculate(from_="datum.tokens[datum.row]", to="datum.tokens[datum.column]")
        .transform_calculate(
            query="format(datum.row, '03d') + datum.from_",
            key="format(datum.column, '03d') + datum.to",
        )
        # Thousands of cells with a label for screen readers each would be megabytes of labels.
        .mark_rect(aria=False)
        .encode(
            x=alt.X("key:O", axis=axis("key")),
            y=alt.Y("query:O", axis=axis("query")),
            color=alt.Color("weight:Q", scale=scale, legend=legend),
            tooltip=[
                *told,
                alt.Tooltip("from_:N", title="query"),
                alt.Tooltip("to:N", title="key"),
                alt.Tooltip("weight:Q", format=".3f"),
            ],
        )
        .properties(width=side, height=side)
    )
    return drawn


def _label(at: Head) -> str:
    return f"layer {at[0]}, head {at[1]}"


def _header() -> alt.Header:
    return alt.Header(labelColor=GREY, labelPadding=4, labelFontSize=12)
