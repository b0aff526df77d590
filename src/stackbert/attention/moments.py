"""The maps of a growth, moment by moment: the paper's Fig. 4, for one run or several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from stackbert.attention.heatmaps import (
    Head,
    cells,
    complete,
    default_heads,
    head_label,
    header,
    packed,
)
from stackbert.attention.result import I64, GrowthAttention, SentenceMaps, new_layers

MOMENTS = {
    "shallow": "shallow",
    "grown": "right after growing",
    "next": "end of next stage",
}
"""The moments of a growth that are drawn, in their order, as a reader sees them."""
_SIDE = 168
"""Pixels of a map: four of them, and their labels, are as wide as a page."""


@dataclass(frozen=True)
class GrowthMaps:
    """The maps of one sentence at the moments of a growth."""

    name: str
    """Of the run."""
    moments: Mapping[str, SentenceMaps]
    """By the names of `MOMENTS`."""
    origins: I64
    """(L,): `Moment.origins` right after growing."""
    weights: str
    """`GrowthAttention.weights`: of one digest are growths of the same shallow model."""


def growth_heads(growths: Sequence[GrowthAttention], n: int = 4) -> list[Head]:
    """Heads of a shallow model whose copies, or what stands in their places, are worth drawing.

    `default_heads` chooses them, in the shallow model of the first growth alone, so that growths
    beside each other show the same heads. Heads of layers that some growth has no second copy of
    are left out.

    Args:
        growths: of one run, or of several that can be held beside each other.
        n: heads wanted.
    """
    places = [new_places(growth.moment("grown").origins) for growth in growths]
    heads = default_heads(growths[0].moment("shallow").measures, n)
    return [head for head in heads if all(head[0] in each for each in places)]


def new_places(origins: I64) -> dict[int, int]:
    """Layer of the shallow model → the highest new layer that copies it.

    Fresh layers count for those that stacking would have copied there.
    """
    return {int(origins[layer]): layer for layer in new_layers(origins)}


def growth_figure(growths: Sequence[GrowthMaps], heads: Sequence[Head]) -> dict[str, Any]:
    """The paper's Fig. 4: heads of the upper layers before growing, right after it, and later.

    A column for each head, a block of rows for each run, a row of it for each moment. In the rows
    of the shallow model the head itself is drawn, in the others the head of the new layer that
    copies it, or stands where stacking would have copied it. Where all runs grew from the same
    shallow model, that is drawn once, above them.

    Args:
        growths: of one run, or of several that grew from the same depth, on the same sentence.
        heads: of the shallow model, as `growth_heads` gives them.

    Returns:
        A Vega-Lite specification, complete with its data.

    Raises:
        ValueError: the maps are of different sentences.
    """
    tokens = {maps.tokens for growth in growths for maps in growth.moments.values()}
    if len(tokens) != 1:
        raise ValueError("the maps to be drawn beside each other are of different sentences")
    (shown,) = tokens
    once = len(growths) > 1 and len({growth.weights for growth in growths}) == 1
    blocks = []
    if once:
        blocks.append(("shallow model of all", _rows(growths[0], heads, ["shallow"])))
    moments = [name for name in MOMENTS if name != "shallow" or not once]
    blocks += [(growth.name, _rows(growth, heads, moments)) for growth in growths]
    datasets = {f"maps-{nth}": rows for nth, (_, rows) in enumerate(blocks, 1)}
    drawn = [
        _block(title, data, rows, len(shown))
        for data, (title, rows) in zip(datasets, blocks, strict=True)
    ]
    return complete(alt.VConcatChart(vconcat=drawn, spacing=22), datasets)


def _rows(
    growth: GrowthMaps, heads: Sequence[Head], moments: Sequence[str]
) -> list[dict[str, Any]]:
    places = new_places(growth.origins)
    rows = []
    for name in moments:
        for layer, head in heads:
            new = (places[layer], head)
            at = (layer, head) if name == "shallow" else new
            maps = growth.moments[name]
            rows.append(
                {
                    "moment": MOMENTS[name],
                    "panel": head_label(at if len(moments) == 1 else new),
                    "drawn": head_label(at),
                    "tokens": list(maps.tokens),
                    "weights": packed(maps.maps[at]),
                }
            )
    return rows


def _block(title: str, data: str, rows: Sequence[Mapping[str, Any]], tokens: int) -> alt.FacetChart:
    chart = cells(
        alt.Chart(alt.NamedData(name=data)),
        by=["moment", "panel"],
        side=_SIDE,
        tokens=tokens,
        titles=False,  # each would stand there as often as there are maps
        extra=[("drawn", "of")],
    )
    drawn: alt.FacetChart = chart.facet(
        row=alt.Row(
            "moment:N",
            title=None,
            sort=list(dict.fromkeys(row["moment"] for row in rows)),
            header=header(labelFontSize=12),
        ),
        column=alt.Column(
            "panel:N",
            title=None,
            sort=list(dict.fromkeys(row["panel"] for row in rows)),
            header=header(labelFontSize=12, labelOrient="top"),
        ),
        spacing=8,
    )
    return drawn.properties(title=alt.Title(text=title, fontSize=13))
