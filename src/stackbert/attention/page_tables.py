"""The tables of a page on attention: layers, classes, likeness, growth."""

from collections.abc import Sequence

from stackbert.attention.beside import growth_groups
from stackbert.attention.classes import LOCAL_WINDOW, PAPERS, paper_share
from stackbert.attention.moments import MOMENTS
from stackbert.attention.result import (
    WINDOWS,
    AttentionResult,
    Contrast,
    GrowthAttention,
)
from stackbert.attention.table import class_counts, layer_means, uniform_means
from stackbert.reporting.content import Table

_WINDOW = WINDOWS.index(LOCAL_WINDOW)
_SPECIAL = ("[CLS]", "[SEP]")


def layers_table(result: AttentionResult) -> Table:
    """Means over the heads of each layer, then of all, of a uniform head and an untrained model."""
    measures, fresh = result.measures, result.untrained.measures
    rows = [
        (str(layer + 1), *layer_means(measures, layer), class_counts(measures, layer))
        for layer in reversed(range(measures.depth))
    ]
    rows += [
        ("all", *layer_means(measures, slice(None)), class_counts(measures, slice(None))),
        ("uniform", *uniform_means(measures), ""),
        ("untrained", *layer_means(fresh, slice(None)), class_counts(fresh, slice(None))),
    ]
    masses = (f"within {LOCAL_WINDOW}", "itself", "previous", "next", *_SPECIAL)
    return Table(
        "Layer by layer",
        ("layer", *masses, "entropy", "distance", "heads"),
        tuple(rows),
        "Means over heads and queries. Shares of a query's attention; entropy in nats; distance in "
        "positions. Uniform is a head that looks at all tokens of a sentence alike, on the same "
        f"sentences; untrained a model of the same config, on {fresh.sentences} of them.",
    )


def classes_table(result: AttentionResult) -> Table:
    """How many heads are of each class, beside an untrained model."""
    measures, fresh = result.measures, result.untrained.measures
    rows = [
        (name, str(int((measures.classes == name).sum())), _percent(share), _percent(untrained))
        for (name, share), untrained in zip(
            measures.shares.items(), fresh.shares.values(), strict=True
        )
    ]
    for window in WINDOWS:
        share, untrained = paper_share(measures, window), paper_share(fresh, window)
        count = round(share * measures.classes.size)
        label = f"{', '.join(PAPERS)}; neighbours within {window}"
        rows.append((label, str(count), _percent(share), _percent(untrained)))
    return Table(
        "What the heads are",
        ("class", "heads", "share", "share, untrained"),
        tuple(rows),
        "The last rows are the paper's patterns together, with other distances counted as near. "
        "docs/attention.md has the thresholds.",
    )


def likeness_table(result: AttentionResult) -> Table | None:
    """The contrasts behind the claims on likeness; None where there is none."""
    contrasts: list[tuple[str, Contrast]] = []
    if result.contrast is not None:
        contrasts.append(("top half, bottom half", result.contrast))
    if result.other is not None:
        names = f"{result.model.name}, {result.other.model.name}"
        contrasts.append((names, result.other.contrast))
    rows = tuple(
        (
            name,
            *(
                f"{value:.3f}"
                for value in (
                    contrast.matched,
                    contrast.dealt,
                    contrast.untrained,
                    contrast.random_pairs,
                    contrast.all_pairs,
                )
            ),
        )
        for name, contrast in contrasts
    )
    if not rows:
        return None
    return Table(
        "How alike layers are",
        (
            "layers of",
            "most similar layer",
            "heads dealt to layers at random",
            "untrained layers",
            "heads paired at random",
            "all layers",
        ),
        rows,
        "Jensen-Shannon divergence, 0 to 1, heads matched best to best; means over the layers. "
        f"On {result.likeness.sentences} sentences, {result.likeness.rows:,} queries.",
    )


def growths_table(growths: Sequence[GrowthAttention]) -> Table | None:
    """What happened to the heads of the new layers, moment by moment; None without growths.

    Growths of several runs that can be held beside each other stand below each other.
    """
    rows = [row for group in growth_groups(growths) for growth in group for row in _moments(growth)]
    if not rows:
        return None
    return Table(
        "Across growth",
        (
            "growth",
            "moment",
            "step",
            "from the source",
            "source is nearest",
            "within 4",
            "[CLS]",
            *PAPERS,
            "kept",
            "regained",
            "changed",
        ),
        tuple(rows),
        "Of the new layers' heads; in the rows of the shallow model, of all its heads. From the "
        "source: divergence from the head that was copied (of fresh layers: that stacking would "
        "have copied). Source is nearest: of all heads of the shallow model. Kept: so at both "
        "later moments; regained: only at the end; changed: not at the end. Fresh heads copy none "
        "and are not counted there.",
    )


def _moments(growth: GrowthAttention) -> list[tuple[str, ...]]:
    rows = []
    change = f"{growth.source_depth} → {growth.depth}, {growth.label}"
    for name, label in MOMENTS.items():
        moment = growth.moment(name)
        shallow, later = name == "shallow", name == "next"
        layers = list(range(moment.measures.depth)) if shallow else growth.new_layers
        classes, outcome = moment.measures.classes[layers], growth.outcome[growth.new_layers]
        sourceless = shallow or bool(moment.fresh[layers].all())
        rows.append(
            (
                change,
                label,
                f"{moment.step:,}",
                "" if shallow else f"{moment.divergence[layers].mean():.3f}",
                "" if sourceless else _percent(float(moment.is_nearest[layers].mean())),
                f"{moment.measures.within[_WINDOW][layers].mean():.3f}",
                f"{moment.measures.first[layers].mean():.3f}",
                *(str(int((classes == each).sum())) for each in PAPERS),
                *(
                    str(int((outcome == each).sum())) if later else ""
                    for each in ("kept", "regained", "changed")
                ),
            )
        )
    return rows


def _percent(share: float) -> str:
    return f"{share:.0%}"
