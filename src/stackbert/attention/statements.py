"""A result in words: how far the paper's three claims hold, what growing did, and a table."""

import pandas as pd

from stackbert.attention.growth import OUTCOMES
from stackbert.attention.likeness import Contrast
from stackbert.attention.measure import AttentionResult
from stackbert.attention.measures import CLASSES, LOCAL_WINDOW, PAPER_CLASSES, paper_share

_VERDICTS = ((2 / 3, "holds"), (1 / 3, "holds in part"), (0.1, "hardly holds"))
"""By the least share of the way from untrained layers to layers that heads do not depend on."""
_AS_UNTRAINED = 0.02
"""A model that differs less from an untrained one has not learned where to look. Then all of its
layers are alike, which says nothing."""

_COLUMNS = {
    f"within_{LOCAL_WINDOW}": f"within {LOCAL_WINDOW}",
    "itself": "itself",
    "previous": "previous",
    "following": "next",
    "first": "[CLS]",
    "sep": "[SEP]",
    "entropy": "entropy",
    "distance": "distance",
}
LAYER_FORMATS = dict.fromkeys(_COLUMNS.values(), "{:.3f}")
"""How to write the numbers of `layer_table`."""


def statements(result: AttentionResult) -> list[str]:
    """The three claims of Gong et al. (2019), section 3, on this model and text.

    Returns:
        A sentence or more for each claim that the result has numbers for, then for each growth.
    """
    lines = [_patterns(result)]
    if result.top_bottom:
        lines.append(
            f"Claim 2, top layers look like bottom layers: {_judged(result.top_bottom)} The layers "
            "are those of the top half, compared with the most similar of the bottom half."
        )
    if result.shallow_deep:
        models = result.models[result.models["model"] != "untrained"].sort_values("depth")
        (_, shallow), (_, deep) = models.iterrows()
        lines.append(
            "Claim 3, a shallow model's maps look like a deep one's: "
            f"{_judged(result.shallow_deep)} The layers are the {deep['depth']} of {deep['name']}, "
            f"compared with the most similar of the {shallow['depth']} of {shallow['name']}."
        )
    for group in growth_groups(result):
        lines += [line for _, growth in group.groupby("growth") for line in _growth(growth)]
    return lines


def growth_groups(result: AttentionResult) -> list[pd.DataFrame]:
    """The rows of `growths` by what can be compared: equal depths and heads per layer."""
    if result.growths.empty:
        return []
    keys = ["source_depth", "depth", "heads_per_layer"]
    return [group for _, group in result.growths.groupby(keys, sort=False)]


def likeness_share(contrast: Contrast) -> float:
    """How alike the layers are.

    0 if they are no closer than untrained layers, 1 if as close as if it did not matter in which
    layer a head is, and in proportion between.
    """
    if contrast.matched >= contrast.untrained:
        return 0.0
    if contrast.matched <= contrast.dealt:
        return 1.0
    return (contrast.untrained - contrast.matched) / (contrast.untrained - contrast.dealt)


def _patterns(result: AttentionResult) -> str:
    heads, uniform = result.heads_of("measured"), result.about("measured")
    share, near, far = (paper_share(heads, uniform, window) for window in (LOCAL_WINDOW, 2, 8))
    fresh = paper_share(result.heads_of("untrained"), result.about("untrained"))
    counts = ", ".join(f"{(heads['class'] == name).sum()} {name}" for name in CLASSES)
    return (
        "Claim 1, most heads look at their neighbours or at [CLS]: "
        f"{'holds' if share > 0.5 else 'does not hold'}. {round(share * len(heads))} of "
        f"{len(heads)} heads ({share:.0%}) do; in an untrained model {fresh:.0%}. By class: "
        f"{counts}. With neighbours within 2 positions instead of {LOCAL_WINDOW} it is "
        f"{near:.0%} of the heads, within 8 {far:.0%}."
    )


def _judged(contrast: Contrast) -> str:
    share = likeness_share(contrast)
    word = next((word for least, word in _VERDICTS if share >= least), "does not hold")
    verdict = f"{word} ({share:.0%})"
    if contrast.untrained < _AS_UNTRAINED:
        verdict = "cannot be judged, as the maps hardly differ from an untrained model's"
    return (
        f"{verdict}. Layers differ by {contrast.matched:.3f} (Jensen-Shannon divergence, 0 to 1, "
        f"heads matched one to one); from untrained layers by {contrast.untrained:.3f} (0%); if it "
        f"did not matter in which layer a head is, by {contrast.dealt:.3f} (100%)."
    )


def _growth(moments: pd.DataFrame) -> list[str]:
    shallow, grown, later = (row for _, row in moments.iterrows())
    patterns = [f"{sum(row[name] for name in PAPER_CLASSES)}" for row in (grown, later)]
    lines = [
        f"Growth by {grown['run']} from {grown['source_depth']} to {grown['depth']} layers at step "
        f"{grown['step']:,}: the heads of the new layers differ from those that stacking copies by "
        f"{grown['divergence']:.3f} right after growing, and by {later['divergence']:.3f} at the "
        f"end of the next stage. Their mass on the first token is {grown['first']:.2f}, then "
        f"{later['first']:.2f} (shallow model: {shallow['first']:.2f}). One of the paper's "
        f"patterns is found in {patterns[0]}, then {patterns[1]} of {grown['heads']} heads."
    ]
    kept, regained, changed = (int(later[name]) for name in OUTCOMES)
    if copied := kept + regained + changed:
        chance = 1 / (grown["source_depth"] * grown["heads_per_layer"])
        lines.append(
            f"Of the {copied} heads that {grown['run']} copies into new layers, {kept} keep their "
            f"pattern throughout, {regained} lose and regain it, {changed} change. A head keeps it "
            "if, of all heads of the shallow model, its source is the most similar; by chance "
            f"{chance:.0%} would."
        )
    return lines


def layer_table(result: AttentionResult) -> pd.DataFrame:
    """Means over the heads of each layer, then of all, of a uniform head and an untrained model."""

    def row(label: str, heads: pd.DataFrame) -> dict[str, object]:
        counts = {name: int((heads["class"] == name).sum()) for name in CLASSES}
        classes = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        return {"layer": label, **heads[list(_COLUMNS)].mean(), "heads": classes}

    heads, fresh = result.heads_of("measured"), result.about("untrained")
    rows = [row(str(layer), of) for layer, of in heads.groupby("layer")]
    rows += [
        row("all", heads),
        {"layer": "uniform", **result.about("measured")[list(_COLUMNS)], "heads": ""},
        row(f"untrained ({fresh['sentences']})", result.heads_of("untrained")),
    ]
    return pd.DataFrame(rows).rename(columns=_COLUMNS)
