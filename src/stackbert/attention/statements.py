"""A result in sentences: how far each of the paper's three claims holds, in numbers."""

import numpy as np

from stackbert.attention.beside import beside_statement, growth_groups
from stackbert.attention.classes import LOCAL_WINDOW, PAPERS, paper_share
from stackbert.attention.result import (
    CLASSES,
    AttentionResult,
    Comparison,
    Contrast,
    GrowthAttention,
    Moment,
)

_LARGELY, _PARTLY, _BARELY = 2 / 3, 1 / 3, 0.1
"""Of the way from an untrained layer to a likeness in which layers do not matter."""
_AS_UNTRAINED = 0.02
"""A model that differs less from an untrained one has not learned where to look: then all of its
layers are alike, and it says nothing."""


def statements(result: AttentionResult) -> tuple[str, ...]:
    """The three claims of Gong et al. (2019), section 3, on this model and text.

    Returns:
        A sentence or two for each claim that the result has numbers for, then for each growth,
        and one that compares the growths of several runs from and to the same depth.
    """
    lines = [patterns_statement(result)]
    if result.contrast is not None:
        lines.append(top_and_bottom_statement(result.contrast))
    if result.other is not None:
        lines.append(shallow_and_deep_statement(result, result.other))
    for group in growth_groups(result.growths):
        lines += [line for growth in group for line in growth_statements(growth)]
        if len(group) > 1:
            lines.append(beside_statement(group))
    return tuple(lines)


def likeness_share(contrast: Contrast) -> float:
    """How far the layers are alike, 0 to 1.

    0 if they are no closer than untrained layers are, 1 if they are as close as if it did not
    matter in which layer a head is, and in proportion between.
    """
    if contrast.matched >= contrast.untrained:
        return 0.0
    if contrast.matched <= contrast.dealt:
        return 1.0
    return (contrast.untrained - contrast.matched) / (contrast.untrained - contrast.dealt)


def patterns_statement(result: AttentionResult) -> str:
    """Claim 1."""
    measures = result.measures
    heads = measures.classes.size
    counts = {name: int((measures.classes == name).sum()) for name in CLASSES}
    paper, fresh = paper_share(measures), paper_share(result.untrained.measures)
    others = [f"{paper_share(measures, window):.0%}" for window in (2, 8)]
    verdict = "holds" if paper > 0.5 else "does not hold"
    return (
        f"Claim 1, most heads look at their neighbours or at [CLS]: {verdict}. "
        f"{round(paper * heads)} of {heads} heads ({paper:.0%}) do: {counts['local']} local, "
        f"{counts['[CLS]']} [CLS], {counts['mixed']} mixed; the others: {counts['[SEP]']} [SEP], "
        f"{counts['broad']} broad, {counts['other']} other. With neighbours up to 2 positions away "
        f"in place of {LOCAL_WINDOW} it is {others[0]} of the heads, with 8 {others[1]}; of an "
        f"untrained model {fresh:.0%}."
    )


def top_and_bottom_statement(contrast: Contrast) -> str:
    """Claim 2."""
    return (
        f"Claim 2, top layers look like bottom layers: {_verdict(contrast)}. Each layer of the top "
        "half differs from the most similar one of the bottom half by "
        f"{_numbers(contrast, 'the bottom half')}; {contrast.untrained:.3f} from an untrained "
        "bottom half. (The untrained model's own two halves differ by "
        f"{contrast.untrained_alike:.3f}: all its heads are nearly uniform.)"
    )


def shallow_and_deep_statement(result: AttentionResult, other: Comparison) -> str:
    """Claim 3."""
    shallow, deep = sorted((result.model, other.model), key=lambda model: model.depth)
    contrast = other.contrast
    return (
        f"Claim 3, a shallow model's maps look like a deep one's: {_verdict(contrast)}. Each of "
        f"the {deep.depth} layers of {deep.name} differs from the most similar of the "
        f"{shallow.depth} layers of {shallow.name} by {_numbers(contrast, shallow.name)}; "
        f"{contrast.untrained:.3f} from the most similar layer of an untrained model."
    )


def _numbers(contrast: Contrast, others: str) -> str:
    return (
        f"{contrast.matched:.3f} (Jensen-Shannon, 0 to 1, heads matched best to best); "
        f"{contrast.random_pairs:.3f} if its heads are paired at random, {contrast.dealt:.3f} if "
        f"heads are dealt out to the layers at random, {contrast.all_pairs:.3f} from all layers of "
        f"{others}"
    )


def _verdict(contrast: Contrast) -> str:
    if contrast.untrained < _AS_UNTRAINED:
        return "cannot be told, as the maps hardly differ from an untrained model's"
    share = likeness_share(contrast)
    word = (
        "holds"
        if share >= _LARGELY
        else "holds in part"
        if share >= _PARTLY
        else "hardly holds"
        if share >= _BARELY
        else "does not hold"
    )
    return (
        f"{word} ({share:.0%}, where 0% is no nearer than untrained layers and 100% as near as if "
        "it did not matter in which layer a head is)"
    )


def growth_statements(growth: GrowthAttention) -> tuple[str, ...]:
    """What happened to the new layers' heads at one growth."""
    grown, later = growth.moment("grown"), growth.moment("next")
    new = growth.new_layers
    differ = [f"{moment.divergence[new].mean():.3f}" for moment in (grown, later)]
    first = [f"{moment.measures.first[new].mean():.2f}" for moment in (grown, later)]
    shallow = f"{growth.moment('shallow').measures.first.mean():.2f}"
    lines = [
        f"Growth by {growth.label}, {growth.source_depth} to {growth.depth} layers at step "
        f"{growth.step:,}: the new layers' heads differ from those that stacking copies there "
        f"by {differ[0]} right after growing and {differ[1]} at the end of the next stage; their "
        f"mass on the first token is {first[0]}, then {first[1]} (the shallow model's: {shallow}). "
        f"Of the paper's patterns (local, [CLS], mixed) are {_patterned(grown, new)}, then "
        f"{_patterned(later, new)}."
    ]
    outcome = growth.outcome[new]
    copied = outcome[outcome != "fresh"]
    if copied.size:
        counts = {name: int((copied == name).sum()) for name in ("kept", "regained", "changed")}
        lines.append(
            f"Of the {copied.size} heads that {growth.label} copies into new layers, "
            f"{counts['kept']} keep their pattern throughout (of all heads of the shallow model "
            f"their source is the most similar), {counts['regained']} lose and regain it, "
            f"{counts['changed']} change; by chance {growth.chance:.0%} would be nearest to their "
            "source."
        )
    return tuple(lines)


def _patterned(moment: Moment, layers: list[int]) -> str:
    classes = moment.measures.classes[layers]
    return f"{int(np.isin(classes, PAPERS).sum())} of {classes.size} heads"
