"""Attention maps in the paper's style: row = query, column = key, a token label at each.

A map travels as one row of data with its weights in thousandths, and is taken apart where it is
drawn: with a row for each weight a page would be ten times as long.
"""

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
"""Weights of the shades: the squares of 0 to 1 in quarters. With even steps all weights of a head
that looks at ten tokens would be white."""
MOST_WEIGHTS = 1_200_000
"""Of the maps to choose from: some 4 MB of page. Examples beyond are left out."""


def default_heads(heads: pd.DataFrame, count: int = 6) -> list[Head]:
    """Heads to draw, chosen by a rule and not by eye.

    Layers are divided into groups from bottom to top, half as many as heads are wanted. Of each
    group the head with most mass within `LOCAL_WINDOW` positions (first column apart) is taken,
    then of each the one with most mass on the first token, and so on with the heads that are left.

    Args:
        heads: layer, head and measures.
        count: heads wanted; all are returned if there are fewer.
    """
    layers = np.array_split(np.arange(1, heads["layer"].max() + 1), (count + 1) // 2)
    groups = [group for group in layers if len(group)]
    free = heads.sort_values(["layer", "head"]).set_index(["layer", "head"])
    chosen: list[Head] = []
    while len(free) and len(chosen) < count:
        for mass in (f"near_{LOCAL_WINDOW}", "first"):
            for group in groups:
                found = free[free.index.isin(group, level="layer")]
                if len(found) and len(chosen) < count:
                    chosen.append(found[mass].idxmax())
                    free = free.drop(chosen[-1])
    return chosen


def head_maps(result: AttentionResult, heads: Sequence[Head]) -> dict[str, Any]:
    """The maps of some heads on the shortest example: the paper's Fig. 2."""
    classes = result.heads_of().set_index(["layer", "head"])["class"]
    number = result.shortest
    rows = [
        {
            "panel": f"{_label(at)} ({classes[at]})",
            **_map(result, f"maps_{number}", at, result.examples[number]),
        }
        for at in heads
    ]
    cells = _cells(pd.DataFrame(rows), by=["panel"], side=228, tokens=result.examples[number])
    facet = alt.Facet("panel:N", title=None, sort=[row["panel"] for row in rows], header=_header())
    return specification(cells.facet(facet=facet, columns=3, spacing=14), height=None)


def growth_maps(result: AttentionResult, group: pd.DataFrame) -> dict[str, Any] | None:
    """Heads of new layers at each moment of the growths of a group: the paper's Fig. 4.

    A column a head, a row a run and moment. In the rows of the shallow model the head itself is
    drawn, in the others the head of the highest new layer that copies it, or stands where stacking
    would have copied it. Where all runs grew from the same maps, these are drawn once.

    Args:
        result: what was measured.
        group: as `growth_groups` returns it.

    Returns:
        A Vega-Lite specification; None if no chosen head is copied by every growth.
    """
    heads = result.growth_heads
    numbers = list(dict.fromkeys(group["growth"]))
    copies = {}
    for number in numbers:
        grown = heads[(heads["growth"] == number) & (heads["moment"] == "grown") & heads["new"]]
        copies[number] = grown.groupby("source")["layer"].max()
    shallow = heads[(heads["growth"] == numbers[0]) & (heads["moment"] == "shallow")]
    chosen = [
        at for at in default_heads(shallow, 4) if all(at[0] in copies[number] for number in numbers)
    ]
    if not chosen:
        return None
    tokens = result.examples[result.shortest]
    first = result.arrays[f"growth_{numbers[0]}_shallow"]
    start = all(np.array_equal(first, result.arrays[f"growth_{n}_shallow"]) for n in numbers)
    rows = []
    for number in numbers:
        run = group[group["growth"] == number]["run"].iloc[0]
        for moment, called in MOMENTS.items():
            if moment == "shallow" and start and number != numbers[0]:
                continue
            what = called if moment == "shallow" and start else f"{run}: {called}"
            for layer, head in chosen:
                at = (layer if moment == "shallow" else int(copies[number][layer]), head)
                maps = _map(result, f"growth_{number}_{moment}", at, tokens)
                # Runs may put the copy into different layers, so the column is the source's.
                panel = f"copies of {_label((layer, head))}"
                rows.append({"moment": what, "panel": panel, "drawn": _label(at), **maps})
    by = ["moment", "panel"]
    chart = _cells(pd.DataFrame(rows), by=by, side=168, tokens=tokens, titles=False, tell="drawn")
    row, column = (list(dict.fromkeys(each[name] for each in rows)) for name in by)
    drawn = chart.facet(
        row=alt.Row("moment:N", title=None, sort=row, header=_header()),
        column=alt.Column("panel:N", title=None, sort=column, header=_header()),
        spacing=8,
    )
    return specification(drawn, height=None)


def explorer(result: AttentionResult, start: Head) -> dict[str, Any]:
    """The map of any head on any example, chosen from lists, beside a grid of all heads."""
    numbers, weights = [], 0
    for number in range(len(result.examples)):
        weights += result.arrays[f"maps_{number}"].size
        if number and weights > MOST_WEIGHTS:
            break
        numbers.append(number)
    heads = result.heads_of()
    places = list(zip(heads["layer"].tolist(), heads["head"].tolist(), strict=True))
    rows = [
        {
            "sentence": number,
            "layer": layer,
            "head": head,
            **_map(result, f"maps_{number}", (layer, head), result.examples[number]),
        }
        for number in numbers
        for layer, head in places
    ]
    texts = [" ".join(result.examples[number]) for number in numbers]
    choices = [
        _choice("sentence", 0, numbers, texts),
        _choice("layer", start[0], heads["layer"].unique().tolist()),
        _choice("head", start[1], heads["head"].unique().tolist()),
    ]
    shown = "datum.layer == shown_layer && datum.head == shown_head"
    chosen = alt.when(shown)
    grid = head_grid(heads).encode(
        opacity=chosen.then(alt.value(1.0)).otherwise(alt.value(0.55)),
        stroke=chosen.then(alt.value(GREY)).otherwise(alt.value("transparent")),
        strokeWidth=alt.value(2.5),
    )
    grid = grid.properties(width=18 * max(head for _, head in places), height=18 * places[-1][0])
    longest = max(result.examples, key=len)
    maps = _cells(pd.DataFrame(rows), by=["sentence", "layer", "head"], side=440, tokens=longest)
    maps.transform.insert(0, alt.FilterTransform(f"{shown} && datum.sentence == shown_sentence"))
    drawn = alt.hconcat(grid, maps, spacing=24).add_params(*choices)
    return specification(drawn.resolve_scale(color="independent"), height=None)


def head_grid(heads: pd.DataFrame) -> alt.Chart:
    """A cell for each head, coloured by class; the top layer is on top."""
    masses = [f"within_{LOCAL_WINDOW}", "first", "sep", "entropy"]
    drawn: alt.Chart = (
        alt.Chart(heads[["layer", "head", "class", *masses]].round(4))
        .mark_rect()
        .encode(
            x=alt.X("head:O", axis=plain_axis("head"), scale=alt.Scale(paddingInner=0.06)),
            y=alt.Y(
                "layer:O",
                axis=plain_axis("layer"),
                scale=alt.Scale(paddingInner=0.06),
                sort="descending",
            ),
            color=colours("class", CLASSES),
            tooltip=["layer:O", "head:O", "class:N", *(f"{name}:Q" for name in masses)],
        )
    )
    return drawn


def plain_axis(title: str) -> alt.Axis:
    """An axis without lines, for cells."""
    return alt.Axis(title=title, labelAngle=0, ticks=False, domain=False, titleLimit=320)


def _choice(
    name: str, start: int, values: list[int], labels: Iterable[object] = ()
) -> alt.Parameter:
    texts = [str(label)[:60] for label in labels or values]
    bind = alt.binding_select(options=values, labels=texts, name=f"{name} ")
    return alt.param(name=f"shown_{name}", value=start, bind=bind)


def _map(result: AttentionResult, name: str, at: Head, tokens: Sequence[str]) -> dict[str, Any]:
    weights = result.arrays[name][at[0] - 1, at[1] - 1].astype(np.float32)
    return {
        "tokens": list(tokens),
        "weights": np.rint(weights * 1000).astype(int).ravel().tolist(),
    }


def _cells(
    maps: pd.DataFrame,
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
        alt.Chart(maps)
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
