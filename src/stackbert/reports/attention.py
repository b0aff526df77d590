"""The report on a measurement of attention, with maps in the paper's style.

A map travels as one row of data and is taken apart where it is drawn, which is a tenth as long.
"""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from stackbert.attention.growth import MOMENTS
from stackbert.attention.likeness import match
from stackbert.attention.measure import AttentionResult, read_attention
from stackbert.attention.measures import CLASSES, LOCAL_WINDOW, paper_share
from stackbert.attention.statements import LAYER_FORMATS, growth_table, layer_table, statements
from stackbert.reports.charts import colours, specification
from stackbert.reports.page import Chart, Page, Table

_SHADES = "Row: query; column: key; dark: much attention. All maps have one scale."

SHADES = ("#f7fbff", "#c6dbef", "#6baed6", "#2171b5", "#08306b")
STOPS = (0.0, 0.0625, 0.25, 0.5625, 1.0)  # with even steps a look at ten tokens would be white


def page(folder: Path) -> Page:
    """The page on what `stackbert attention` wrote into a folder."""
    result = read_attention(folder)
    about, heads = result.about(), result.heads_of()
    name = about["name"]
    explored = f"{_SHADES} docs/attention.md has the rules for the classes."
    layers = (
        "Means over heads and queries. Shares of a query's attention; entropy in nats; distance in "
        "positions. In brackets: sentences that an untrained model of the same config read."
    )
    parts = (
        Chart("Any head, any sentence", explorer(result), explored),
        *_likeness(result),
        *_growths(result),
        Table("Layer by layer", layer_table(result), layers, LAYER_FORMATS),
    )
    facts = {
        "Attention of": f"{name} ({about['type']})",
        "Text": f"{result.text}, {about['sentences']:,} sentences, {about['tokens']:,} tokens",
    }
    share = f"{paper_share(heads, about):.0%} of the {len(heads)} heads"
    verdict = (f"{share} look at their neighbours or at [CLS].", *statements(result))
    return Page(f"Attention of {name}", verdict, parts, facts)


def _likeness(result: AttentionResult) -> Iterator[Chart]:
    name = result.about()["name"]
    for model, other in result.models[["model", "name"]].itertuples(index=False):
        if model == "untrained":
            continue
        divergence_LL = match(result.arrays[f"likeness_{model}"]).round(4)
        layer, other_layer = np.indices(divergence_LL.shape).reshape(2, -1) + 1
        columns = {"layer": layer, "other": other_layer, "divergence": divergence_LL.ravel()}
        domain = [0.0, max(0.01, float(divergence_LL.max()))]
        shades = alt.Scale(domain=domain, scheme="blues", reverse=True, nice=False)
        legend = alt.Legend(title="divergence", orient="top", gradientLength=180)
        cells = alt.Chart(pd.DataFrame(columns)).mark_rect()
        cells = cells.encode(
            x=alt.X("other:O", axis=plain_axis(f"layer of {other}")),
            y=alt.Y("layer:O", axis=plain_axis(f"layer of {name}"), sort="descending"),
            color=alt.Color("divergence:Q", scale=shades, legend=legend),
            tooltip=["layer:O", "other:O", "divergence:Q"],
        )
        yield Chart(
            "How alike layers are" + (f": {name} and {other}" if model == "compared" else ""),
            specification(cells, height=max(140, 24 * len(divergence_LL))),
            "Jensen-Shannon divergence, 0 to 1, heads matched one to one. Dark: alike.",
        )


def _growths(result: AttentionResult) -> list[Chart | Table]:
    if result.growth_heads.empty:
        return []
    note = (
        f"{_SHADES} Heads of new layers; in the rows of the shallow model the head that they copy "
        "or, in fresh layers, that stacking would have copied there."
    )
    table, parts = growth_table(result), []
    for (source, depth), rows in table.groupby(["source_depth", "depth"], sort=False):
        drawn = growth_maps(result, rows["growth"].unique())
        runs = ", ".join(rows["run"].unique())
        if drawn:
            parts.append(Chart(f"Growing from {source} to {depth} layers by {runs}", drawn, note))
    frame = table.drop(columns="growth").replace({"moment": MOMENTS})
    frame = frame.rename(columns=lambda name: name.replace("_", " "))
    note = (
        "Means over the new layers' heads; of the shallow model, over all. Divergence: from the "
        "head that was copied, or that stacking would have copied. Source is nearest: of how many "
        "copies, among all heads of the shallow model. Pattern: how many have one of the paper's."
    )
    return [*parts, Table("Across growth", frame, note, dict.fromkeys(frame.columns[5:], "{:.3f}"))]


def growth_maps(result: AttentionResult, numbers: Sequence[int]) -> dict[str, Any] | None:
    """Heads of new layers at each moment of growths between the same depths: the paper's Fig. 4.

    A column a head, a row a run and moment. In the rows of the shallow model the head itself is
    drawn, in the others the head of the highest new layer that copies it, or stands where stacking
    would have copied it. Drawn are the two heads with most mass near the query and the two with
    most on the first token; None if a growth copies none of them.
    """
    heads = result.growth_heads
    new = heads[(heads["moment"] == "grown") & heads["new"]]
    copies = new.groupby(["growth", "source", "head"])["layer"].max()
    runs = heads.groupby("growth")["run"].first()
    first = heads[(heads["growth"] == numbers[0]) & (heads["moment"] == "shallow")]
    near = first.nlargest(2, f"near_{LOCAL_WINDOW}")
    drawn_heads = pd.concat([near, first.drop(near.index).nlargest(2, "first")])
    rows = []
    for layer, head in drawn_heads[["layer", "head"]].to_numpy().tolist():
        if not all((number, layer, head) in copies.index for number in numbers):
            continue
        for number, moment in itertools.product(numbers, MOMENTS):
            at = (layer if moment == "shallow" else int(copies[number, layer, head]), head)
            # Runs may put the copy into different layers, so the column is the source's.
            place = {"column": f"copies of layer {layer}, head {head}"}
            place["row"] = f"{runs[number]}: {MOMENTS[moment]}"
            rows.append({**place, **_map(result, f"growth_{number}_{moment}", at)})
    if not rows:
        return None
    orders = {name: list(dict.fromkeys(row[name] for row in rows)) for name in ("row", "column")}
    drawn = _cells(rows, by=list(orders), side=168).facet(
        row=alt.Row("row:N", title=None, sort=orders["row"]),
        column=alt.Column("column:N", title=None, sort=orders["column"]),
        spacing=8,
    )
    return specification(drawn, height=None)


def explorer(result: AttentionResult) -> dict[str, Any]:
    """The map of any head on any example, chosen from lists, next to a grid of all heads."""
    heads = result.heads_of()
    places = {name: heads[name].unique().tolist() for name in ("layer", "head")}
    numbers = list(range(len(result.examples)))
    rows = [
        {"sentence": number, **_map(result, f"maps_{number}", at, number)}
        for number, *at in itertools.product(numbers, *places.values())
    ]
    labels = [" ".join(tokens)[:60] for tokens in result.examples]
    sentences = alt.binding_select(options=numbers, labels=labels, name="sentence ")
    sentence = alt.param(name="shown_sentence", value=0, bind=sentences)
    lists = {
        name: alt.binding_select(options=values, name=f"{name} ") for name, values in places.items()
    }
    start = heads.nlargest(1, f"near_{LOCAL_WINDOW}")[["layer", "head"]].to_dict("records")
    head = alt.selection_point("shown", fields=list(places), value=start, on="click", bind=lists)  # type: ignore[arg-type]  # one input a field
    masses = [f"within_{LOCAL_WINDOW}", "first", "sep", "entropy"]
    gap = alt.Scale(paddingInner=0.06)
    grid = (
        alt.Chart(heads[[*places, "class", *masses]].round(4))
        .mark_rect()
        .encode(
            x=alt.X("head:O", axis=plain_axis("head"), scale=gap),
            y=alt.Y("layer:O", axis=plain_axis("layer"), scale=gap, sort="descending"),
            color=colours("class", CLASSES),
            opacity=alt.when(head).then(alt.value(1.0)).otherwise(alt.value(0.5)),
            tooltip=["layer:O", "head:O", "class:N", *(f"{name}:Q" for name in masses)],
        )
        .properties(width=18 * len(places["head"]), height=18 * len(places["layer"]))
        .add_params(head)
    )
    maps = _cells(rows, by=["sentence", "layer", "head"], side=440)
    of_sentence = alt.FilterTransform("datum.sentence == shown_sentence")
    maps.transform = [of_sentence, alt.FilterTransform({"param": "shown"}), *maps.transform]
    drawn = alt.hconcat(grid, maps, spacing=24).add_params(sentence)
    return specification(drawn.resolve_scale(color="independent"), height=None)


def plain_axis(title: str | None) -> alt.Axis:
    """An axis without lines, for cells."""
    return alt.Axis(title=title, labelAngle=0, ticks=False, domain=False, titleLimit=320)


def _map(result: AttentionResult, name: str, at: Sequence[int], example: int = 0) -> dict[str, Any]:
    layer, head = at
    weights = result.arrays[name][layer - 1, head - 1].astype(np.float32)
    thousandths = np.rint(weights * 1000).astype(int).ravel().tolist()
    tokens = list(result.examples[example])
    return {"layer": layer, "head": head, "tokens": tokens, "weights": thousandths}


def _cells(rows: list[dict[str, Any]], *, by: list[str], side: int) -> alt.Chart:
    """A cell a weight, a label a token; a map is told from another by the columns `by`."""
    longest = max(len(row["tokens"]) for row in rows)
    axis = alt.Axis(
        title=None,
        # A number stands before each token, since a sentence has some tokens twice.
        labelExpr="substring(datum.label, 4)",
        labelFontSize=min(11.0, max(5.0, 0.9 * side / longest)),
        labelOverlap=False,
        ticks=False,
        domain=False,
    )
    legend = alt.Legend(title="attention", orient="top", gradientLength=180, tickCount=5)
    scale = alt.Scale(domain=list(STOPS), range=list(SHADES))
    weight = alt.Tooltip("weight:Q", format=".3f")
    drawn: alt.Chart = (
        alt.Chart(pd.DataFrame(rows))
        .transform_flatten(["weights"], as_=["thousandths"])
        .transform_window(nth="row_number()", groupby=by)
        .transform_calculate(
            weight="datum.thousandths / 1000",
            at="floor((datum.nth - 1) / length(datum.tokens))",
            to="(datum.nth - 1) % length(datum.tokens)",
        )
        .transform_calculate(
            query="format(datum.at, '03d') + ' ' + datum.tokens[datum.at]",
            key="format(datum.to, '03d') + ' ' + datum.tokens[datum.to]",
        )
        # Thousands of cells with a label for screen readers each would be megabytes of labels.
        .mark_rect(aria=False)
        .encode(
            x=alt.X("key:O", axis=axis),
            y=alt.Y("query:O", axis=axis),
            color=alt.Color("weight:Q", scale=scale, legend=legend),
            tooltip=["layer:O", "head:O", "query:N", "key:N", weight],
        )
        .properties(width=side, height=side)
    )
    return drawn
