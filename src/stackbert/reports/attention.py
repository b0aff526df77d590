"""The report on a measurement of attention."""

from pathlib import Path
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from stackbert.attention.growth import MOMENTS
from stackbert.attention.likeness import match
from stackbert.attention.measure import AttentionResult, read_attention
from stackbert.attention.measures import CLASSES, F64, PROFILE, paper_share
from stackbert.attention.statements import LAYER_FORMATS, growth_table, layer_table, statements
from stackbert.reports.charts import GREY, PALETTE, specification
from stackbert.reports.heatmaps import explorer, growth_maps, plain_axis
from stackbert.reports.page import Chart, Page, Table

_SHADES = "Row: query; column: key; dark: much attention. All maps have one scale."


def attention_page(folder: Path) -> Page:
    """The page on what `stackbert attention` wrote into a folder."""
    result = read_attention(folder)
    about, heads = result.about(), result.heads_of()
    name = about["name"]
    explored = f"{_SHADES} docs/attention.md has the rules for the classes."
    profiles = "Means over the heads of a class. Uniform: a head that looks at all tokens alike."
    layers = (
        "Means over heads and queries. Shares of a query's attention; entropy in nats; distance in "
        "positions. In brackets: sentences that an untrained model of the same config read."
    )
    parts = (
        Chart("Any head, any sentence", explorer(result), explored),
        Chart("Attention by relative position", _profiles(result), profiles),
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


def _profiles(result: AttentionResult) -> dict[str, Any]:
    means = result.heads_of().groupby("class")[list(PROFILE)].mean()
    means.loc["uniform"] = result.about()[list(PROFILE)].astype(float)
    rows = means.rename_axis("group").reset_index()
    rows = rows.melt("group", var_name="position", value_name="mass").round(5)
    rows["position"] = rows["position"].str.removeprefix("at_").astype(int)
    scale = alt.Scale(domain=[*CLASSES, "uniform"], range=[*PALETTE[: len(CLASSES)], GREY])
    base = alt.Chart(rows).encode(
        x=alt.X("position:Q", title="position of the key relative to the query"),
        y=alt.Y("mass:Q", title="share of the attention"),
        color=alt.Color("group:N", scale=scale, legend=alt.Legend(title=None, orient="top")),
        tooltip=["group:N", "position:Q", alt.Tooltip("mass:Q", format=".4f")],
    )
    return specification(base.mark_line(strokeWidth=2, point=True))


def _likeness(result: AttentionResult) -> list[Chart]:
    note = "Jensen-Shannon divergence, 0 to 1, heads matched one to one. Dark: alike."
    name, charts = result.about()["name"], []
    for model, other in result.models[["model", "name"]].itertuples(index=False):
        if model != "untrained":
            title = "How alike layers are" + (
                f": {name} and {other}" if model == "compared" else ""
            )
            drawn = _layers(match(result.arrays[f"likeness_{model}"]), name, other)
            charts.append(Chart(title, drawn, note))
    return charts


def _layers(divergence_LL: F64, name: str, other: str) -> dict[str, Any]:
    layer, other_layer = np.indices(divergence_LL.shape).reshape(2, -1) + 1
    values = divergence_LL.ravel().round(4)
    rows = pd.DataFrame({"layer": layer, "other": other_layer, "divergence": values})
    highest = max(0.01, float(values.max()))
    shades = alt.Scale(domain=[0.0, highest], scheme="blues", reverse=True, nice=False)
    legend = alt.Legend(title="divergence", orient="top", gradientLength=180)
    color = alt.Color("divergence:Q", scale=shades, legend=legend)
    cells = (
        alt.Chart(rows)
        .mark_rect()
        .encode(
            x=alt.X("other:O", axis=plain_axis(f"layer of {other}")),
            y=alt.Y("layer:O", axis=plain_axis(f"layer of {name}"), sort="descending"),
            color=color,
            tooltip=["layer:O", "other:O", "divergence:Q"],
        )
    )
    return specification(cells, height=max(140, 24 * len(divergence_LL)))


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
