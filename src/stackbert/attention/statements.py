"""A result in words: how far the paper's three claims hold, what growing did, and a table."""

import pandas as pd

from stackbert.attention.likeness import Contrast
from stackbert.attention.measure import AttentionResult
from stackbert.attention.measures import CLASSES, LOCAL_WINDOW, PAPER_CLASSES, paper_share

_VERDICTS = {"holds": 2 / 3, "holds in part": 1 / 3, "hardly holds": 0.1}  # least shares
_AS_UNTRAINED = 0.02  # closer to an untrained model all layers are alike, which says nothing

LAYER_FORMATS = dict.fromkeys(
    ("within_4", "itself", "previous", "following", "first", "sep", "entropy", "distance"), "{:.3f}"
)
"""The measures in `layer_table`, and how to write them."""


def statements(result: AttentionResult) -> list[str]:
    """What is found of the three claims of Gong et al. (2019), section 3, then of each growth."""
    lines = [_patterns(result)]
    if result.top_bottom:
        lines.append(f"Claim 2, top layers look like bottom layers: {_judged(result.top_bottom)}")
    if result.shallow_deep:
        claim = "Claim 3, a shallow model's maps look like a deep one's"
        lines.append(f"{claim}: {_judged(result.shallow_deep)}")
    if len(result.growth_heads):
        lines += [_growth(rows) for _, rows in growth_table(result).groupby("growth")]
    return lines


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
    words = [word for word, least in _VERDICTS.items() if contrast.share >= least]
    verdict = f"{words[0] if words else 'does not hold'} ({contrast.share:.0%})"
    if contrast.untrained < _AS_UNTRAINED:
        verdict = "cannot be judged, as the maps hardly differ from an untrained model's"
    return (
        f"{verdict}. Layers differ by {contrast.matched:.3f} (Jensen-Shannon divergence, 0 to 1, "
        f"heads matched one to one); from untrained layers by {contrast.untrained:.3f} (0%); if it "
        f"did not matter in which layer a head is, by {contrast.dealt:.3f} (100%)."
    )


def _growth(moments: pd.DataFrame) -> str:
    shallow, grown, later = (row for _, row in moments.iterrows())
    said = (
        f"Growth by {grown['run']} from {grown['source_depth']} to {grown['depth']} layers at step "
        f"{grown['step']:,}: the heads of the new layers differ from those that stacking copies by "
        f"{grown['divergence']:.3f} right after growing, and by {later['divergence']:.3f} at the "
        f"end of the next stage. Their mass on the first token is {grown['first']:.2f}, then "
        f"{later['first']:.2f} (shallow model: {shallow['first']:.2f}). One of the paper's "
        f"patterns is found in {grown['pattern']:.0%}, then in {later['pattern']:.0%} of them."
    )
    if pd.notna(grown["source_is_nearest"]):  # of fresh heads there is no source
        said += (
            " Of all heads of the shallow model, the one that was copied is the most similar to "
            f"{grown['source_is_nearest']:.0%}, then to {later['source_is_nearest']:.0%} of the "
            "copies."
        )
    return said


def growth_table(result: AttentionResult) -> pd.DataFrame:
    """A row for each growth and moment: means over the heads of the new layers.

    In the shallow model over all heads. `pattern` is the share that has one of the paper's.
    """
    heads = result.growth_heads
    heads = heads[heads["new"] | (heads["moment"] == "shallow")]
    heads = heads.assign(pattern=heads["class"].isin(PAPER_CLASSES))
    keys = ["growth", "run", "source_depth", "depth", "moment", "step"]
    measures = ["divergence", "source_is_nearest", "within_4", "first", "pattern"]
    return heads.groupby(keys, sort=False)[measures].mean().reset_index()


def layer_table(result: AttentionResult) -> pd.DataFrame:
    """Means over the heads of each layer, then of all, of an untrained model and a uniform head."""
    heads, fresh = result.heads_of(), result.heads_of("untrained")
    groups = {str(layer): of for layer, of in heads.groupby("layer")}
    groups |= {"all": heads, f"untrained ({result.about('untrained')['sentences']})": fresh}
    measures = list(LAYER_FORMATS)
    rows = []
    for label, of in groups.items():
        counts = of["class"].value_counts().items()
        classes = ", ".join(f"{count} {name}" for name, count in counts)
        rows.append({"layer": label, **of[measures].mean(), "heads": classes})
    rows.append({"layer": "uniform", **result.about()[measures], "heads": ""})
    return pd.DataFrame(rows)
