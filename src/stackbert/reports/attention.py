"""The report on a measurement of attention."""

from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd

from stackbert.attention.growth import MOMENTS, OUTCOMES
from stackbert.attention.likeness import SENTENCES
from stackbert.attention.measure import AttentionResult, read_attention
from stackbert.attention.measures import (
    CLASSES,
    LOCAL_WINDOW,
    PAPER_CLASSES,
    PROFILE,
    RADIUS,
    WINDOWS,
    paper_share,
)
from stackbert.attention.statements import LAYER_FORMATS, growth_groups, layer_table, statements
from stackbert.reports.charts import GREY, PALETTE, specification
from stackbert.reports.heatmaps import (
    default_heads,
    explorer,
    growth_maps,
    head_maps,
    plain_axis,
)
from stackbert.reports.page import Chart, Page, Table, Text

_SHADES = "Row: query; column: key; dark: much attention. All maps have one scale."


def attention_page(folder: Path) -> Page:
    """The page on what `stackbert attention` wrote into a folder.

    Raises:
        UserError: a file is missing, damaged or of another measurement.
    """
    result = read_attention(folder)
    about, heads = result.about(), result.heads_of()
    share = paper_share(heads, about)
    chosen = default_heads(heads)
    parts = [
        Text(f"Attention of {about['name']}", tuple(statements(result))),
        Chart(
            "Any head, any sentence",
            explorer(result, chosen[0]),
            f"{_SHADES} Choose sentence, layer and head from the lists. The grid has all heads; "
            "docs/attention.md has the rules for the classes.",
        ),
        Chart(
            "Heads of low, middle and high layers",
            head_maps(result, chosen),
            f"{_SHADES} The heads were chosen by a rule: of the lower, the middle and the upper "
            f"third of the layers the one with most mass within {LOCAL_WINDOW} positions, then of "
            "each the one with most mass on the first token.",
        ),
        Chart(
            "Attention by relative position",
            _profiles(result),
            f"Means over the heads of a class and over all queries, up to {RADIUS} positions away. "
            "Uniform: a head that looks at all tokens of a sentence alike.",
        ),
        *_likeness(result),
        *_growths(result),
        _classes(result),
        Table(
            "Layer by layer",
            layer_table(result),
            "Means over heads and queries. Shares of a query's attention; entropy in nats; "
            "distance in positions. The untrained model has the same config and read the number "
            "of sentences in brackets.",
            LAYER_FORMATS,
        ),
    ]
    facts = {
        "Attention of": f"{about['name']} ({about['type']}), {about['depth']} layers of "
        f"{about['heads_per_layer']} heads",
        "Text": f"{result.text}: {about['sentences']:,} sentences, {about['tokens']:,} tokens, "
        f"cut at {result.max_length}; seed {result.seed}",
    }
    return Page(
        f"Attention of {about['name']}",
        (f"{share:.0%} of the {len(heads)} heads look at their neighbours or at [CLS].",),
        tuple(parts),
        facts,
    )


def _profiles(result: AttentionResult) -> dict[str, Any]:
    """Mean attention by the key's position relative to the query: a line a class, and uniform."""
    means = result.heads_of().groupby("class")[list(PROFILE)].mean()
    means = means.loc[[name for name in CLASSES if name in means.index]]
    uniform = result.about()[list(PROFILE)].astype(float)
    rows = pd.concat([means, uniform.to_frame("uniform").T]).rename_axis("group")
    rows = rows.reset_index().melt("group", var_name="position", value_name="mass").round(5)
    rows["position"] = rows["position"].str.removeprefix("at_").astype(int)
    shades = [*(PALETTE[CLASSES.index(name)] for name in means.index), GREY]
    scale = alt.Scale(domain=[*means.index, "uniform"], range=shades)
    base = alt.Chart(rows).encode(
        x=alt.X("position:Q", title="position of the key relative to the query"),
        y=alt.Y("mass:Q", title="share of the attention"),
        color=alt.Color("group:N", scale=scale, legend=alt.Legend(title=None, orient="top")),
    )
    dots = base.mark_point(filled=True, size=36).encode(
        tooltip=["group:N", "position:Q", alt.Tooltip("mass:Q", format=".4f")]
    )
    return specification(alt.layer(base.mark_line(strokeWidth=2), dots))


def _likeness(result: AttentionResult) -> list[Chart | Table]:
    parts: list[Chart | Table] = []
    name = result.about()["name"]
    contrasts = {f"top half and bottom half of {name}": result.top_bottom}
    note = "Jensen-Shannon divergence, 0 to 1, heads matched one to one."
    for model, rows in result.likeness.groupby("model", sort=False):
        if model == "untrained":
            continue
        other, title = result.about(str(model))["name"], "How alike layers are"
        if model == "compared":
            title += f": {name} and {other}"
            contrasts[f"{name} and {other}"] = result.shallow_deep
        parts.append(Chart(title, _layers(rows.round(4), name, other), f"{note} Dark: alike."))
    rows = pd.DataFrame(
        {
            "layers of": of,
            "most similar layer": each.matched,
            "heads dealt to the layers at random": each.dealt,
            "untrained layers": each.untrained,
        }
        for of, each in contrasts.items()
        if each
    )
    if len(rows):
        note += f" Means over the layers, on up to {SENTENCES} sentences."
        formats = dict.fromkeys(rows.columns[1:], "{:.3f}")
        parts.append(Table("How alike layers are, on average", rows, note, formats))
    return parts


def _layers(rows: pd.DataFrame, name: str, other: str) -> dict[str, Any]:
    highest = max(0.01, float(rows["divergence"].max()))
    shades = alt.Scale(domain=[0.0, highest], scheme="blues", reverse=True, nice=False)
    legend = alt.Legend(title="divergence", orient="top", gradientLength=180)
    base = alt.Chart(rows).encode(
        x=alt.X("other_layer:O", axis=plain_axis(f"layer of {other}")),
        y=alt.Y("layer:O", axis=plain_axis(f"layer of {name}"), sort="descending"),
        tooltip=["layer:O", "other_layer:O", alt.Tooltip("divergence:Q", format=".3f")],
    )
    drawn = [base.mark_rect().encode(color=alt.Color("divergence:Q", scale=shades, legend=legend))]
    if rows["other_layer"].max() <= 16:  # more numbers would run into each other
        dark = alt.when(f"datum.divergence < {highest / 2:.4f}")
        ink = dark.then(alt.value("#fff")).otherwise(alt.value("#111"))
        text = alt.Text("divergence:Q", format=".2f")
        drawn.append(base.mark_text(fontSize=11).encode(text=text, color=ink))
    height = max(140, 24 * int(rows["layer"].max()))
    return specification(alt.layer(*drawn), height=height)


def _growths(result: AttentionResult) -> list[Chart | Table]:
    if result.growths.empty:
        return []
    parts: list[Chart | Table] = []
    for group in growth_groups(result):
        first = group.iloc[0]
        runs = ", ".join(dict.fromkeys(group["run"]))
        change = f"Growing from {first['source_depth']} to {first['depth']} layers by {runs}"
        drawn = growth_maps(result, group)
        if drawn:
            note = (
                f"{_SHADES} Heads of new layers; in the rows of the shallow model the head that "
                "they copy or, in fresh layers, that stacking would have copied there. The heads "
                "were chosen by the shallow model's measures, as those above."
            )
            parts.append(Chart(change, drawn, note))
    rows = pd.concat(growth_groups(result))
    rows["growth"] = [f"{row.source_depth} → {row.depth}, {row.run}" for row in rows.itertuples()]
    rows["moment"] = rows["moment"].map(MOMENTS)
    shares = {
        "divergence": "from the source",
        "source_is_nearest": "source is most similar",
        f"within_{LOCAL_WINDOW}": f"within {LOCAL_WINDOW}",
        "first": "on [CLS]",
    }
    columns = ["growth", "moment", "step", *shares, *PAPER_CLASSES, *OUTCOMES]
    formats = dict.fromkeys(shares.values(), "{:.3f}") | dict.fromkeys(OUTCOMES, "{:.0f}")
    note = (
        "Of the new layers' heads; in the rows of the shallow model, of all its heads. From the "
        "source: divergence from the head that was copied, or that stacking would have copied. "
        "Kept: the source is the most similar of all heads of the shallow model at both later "
        "moments; regained: only at the end; changed: not at the end."
    )
    frame = rows[columns].rename(columns=shares)
    return [*parts, Table("Across growth", frame, note, formats)]


def _classes(result: AttentionResult) -> Table:
    """How many heads are of each class, next to an untrained model."""
    models = [(result.heads_of(model), result.about(model)) for model in ("measured", "untrained")]
    rows = []
    for name in CLASSES:
        rows.append([name, *((heads["class"] == name).mean() for heads, _ in models)])
    for window in WINDOWS:
        label = f"{', '.join(PAPER_CLASSES)}; neighbours within {window}"
        rows.append([label, *(paper_share(*model, window) for model in models)])
    count = len(models[0][0])
    frame = pd.DataFrame(rows, columns=["class", "share", "share, untrained"])
    frame.insert(1, "heads", (frame["share"] * count).round().astype(int))
    return Table(
        "What the heads are",
        frame,
        "The last rows are the paper's patterns together, with other distances counted as near.",
        dict.fromkeys(frame.columns[2:], "{:.0%}"),
    )
