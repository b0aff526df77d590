"""Growths of several runs beside each other: which compare, and what differs.

The paper's Fig. 4 shows one growth by several operators. Each is a run of its own here, so they
compare only where they grew from and to the same depth.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from stackbert.attention.classes import PAPERS
from stackbert.attention.result import GrowthAttention


def growth_groups(growths: Sequence[GrowthAttention]) -> list[tuple[GrowthAttention, ...]]:
    """The growths that can be held beside each other, group by group in the order of the first.

    They are from and to the same depths, with as many heads a layer.
    """
    groups: dict[tuple[int, int, int], list[GrowthAttention]] = {}
    for growth in growths:
        heads = growth.moment("shallow").measures.heads
        groups.setdefault((growth.source_depth, growth.depth, heads), []).append(growth)
    return [tuple(group) for group in groups.values()]


def of_one_start(growths: Sequence[GrowthAttention]) -> bool:
    """Whether all grew from the same weights."""
    return len({growth.weights for growth in growths}) == 1


def beside_statement(growths: Sequence[GrowthAttention]) -> str:
    """What differs between runs that grew from and to the same depth: the ends of each range."""
    grown = {growth.run: growth.moment("grown") for growth in growths}
    later = {growth.run: growth.moment("next") for growth in growths}
    new = {growth.run: growth.new_layers for growth in growths}
    first = [
        _range({run: moment.measures.first[new[run]].mean() for run, moment in at.items()}, ".2f")
        for at in (grown, later)
    ]
    differ = [
        _range({run: moment.divergence[new[run]].mean() for run, moment in at.items()}, ".3f")
        for at in (grown, later)
    ]
    shares = {run: np.isin(m.measures.classes[new[run]], PAPERS).mean() for run, m in later.items()}
    return (
        f"Beside each other, growing {growths[0].source_depth} to {growths[0].depth} layers: the "
        f"new layers' mass on the first token is {first[0]} right after growing and {first[1]} at "
        "the end of the next stage; their heads differ from those that stacking copies there by "
        f"{differ[0]}, then by {differ[1]}; the share of them that have one of the paper's "
        f"patterns is {_range(shares, '.0%')} at the end."
    )


def _range(values: Mapping[str, float], form: str) -> str:
    """The lowest and the highest value with their names, as far as their digits tell them apart."""
    low, high = (pick(values, key=lambda name: values[name]) for pick in (min, max))
    ends = [format(float(values[name]), form) for name in (low, high)]
    if ends[0] == ends[1]:
        return f"{ends[0]} with all"
    return f"{ends[0]} ({low}) to {ends[1]} ({high})"
