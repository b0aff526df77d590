"""The map of any head on any of some sentences, chosen with the pointer or the keyboard.

Three views that hang together: a list of sentences, a grid of all heads, and the map of what is
chosen in both. A click chooses; a click beside the cells chooses nothing new. A list to select from
stands for each of sentence, layer and head, for the keyboard; whatever chose last counts.
"""

from collections.abc import Sequence
from typing import Any

import altair as alt

from stackbert.attention.figures import head_grid, head_rows
from stackbert.attention.heatmaps import Head, cells, complete, packed
from stackbert.attention.result import Measures, SentenceMaps
from stackbert.reporting.charts import GREY, PALETTE

WEIGHTS = 1_200_000
"""Most weights that an explorer holds: some 4 MB of page. Sentences beyond are left out."""
_MAP = 440
"""Pixels of the map's side."""
_CELL = 18
"""Pixels of a head's cell."""
_LINE = 24
"""Pixels of a sentence's line."""
_WIDTH = 840
_OPTION = 60
"""Characters of a sentence in the list to select from."""


def explorer_figure(
    examples: Sequence[SentenceMaps], measures: Measures, start: Head = (0, 0)
) -> dict[str, Any]:
    """A figure in which sentence, layer and head can be chosen.

    Args:
        examples: sentences with their maps; as many as `fitting` gives are held.
        measures: of the model, for the classes of its heads.
        start: the head that is shown first.

    Returns:
        A Vega-Lite specification, complete with its data.

    Raises:
        ValueError: there are no examples.
    """
    if not examples:
        raise ValueError("an explorer needs a sentence")
    held = fitting(examples)
    texts = [" ".join(each.tokens) for each in held]
    choices = [
        _choice(
            "sentence", 1, len(held), [_option(nth, text) for nth, text in enumerate(texts, 1)]
        ),
        _choice("layer", start[0] + 1, measures.depth),
        _choice("head", start[1] + 1, measures.heads),
    ]
    lines = _lines(len(held))
    chosen = alt.when(_is_shown("layer", "head"))
    grid = head_grid(alt.Chart(alt.NamedData(name="heads"), title="Heads: click one"))
    grid = grid.encode(
        opacity=chosen.then(alt.value(1.0)).otherwise(alt.value(0.55)),
        stroke=chosen.then(alt.value(GREY)).otherwise(alt.value("transparent")),
        strokeWidth=alt.value(2.5),
    )
    grid = grid.properties(width=_CELL * measures.heads, height=_CELL * measures.depth)
    title = alt.Title(
        text=alt.expr(
            "'Layer ' + shown_layer + ', head ' + shown_head + ' on sentence ' + shown_sentence"
        )
    )
    shown = (
        alt.Chart(alt.NamedData(name="maps"), title=title)
        .transform_filter(_is_shown("sentence", "layer", "head"))
        .transform_lookup(
            lookup="sentence",
            from_=alt.LookupData(
                data=alt.NamedData(name="sentences"), key="sentence", fields=["tokens"]
            ),
        )
    )
    longest = max(len(each.tokens) for each in held)
    shown = cells(shown, by=["sentence", "layer", "head"], side=_MAP, tokens=longest)
    below = alt.HConcatChart(hconcat=[grid, shown], spacing=24)
    drawn = alt.VConcatChart(vconcat=[lines, below], spacing=18, params=choices)
    drawn.usermeta = {"choices": ["sentence", "layer", "head"]}
    return complete(
        drawn.resolve_scale(color="independent"),
        {
            "sentences": [
                {"sentence": nth, "text": text, "tokens": list(each.tokens)}
                for nth, (text, each) in enumerate(zip(texts, held, strict=True), 1)
            ],
            "heads": head_rows(measures),
            "maps": [
                {
                    "sentence": nth,
                    "layer": layer + 1,
                    "head": place + 1,
                    "weights": packed(each.maps[layer, place]),
                }
                for nth, each in enumerate(held, 1)
                for layer in range(each.maps.shape[0])
                for place in range(each.maps.shape[1])
            ],
        },
    )


def fitting(examples: Sequence[SentenceMaps], weights: int = WEIGHTS) -> list[SentenceMaps]:
    """The first examples that have at most so many weights together; one at least."""
    held = list(examples[:1])
    taken = sum(each.maps.size for each in held)
    for each in examples[1:]:
        taken += each.maps.size
        if taken > weights:
            break
        held.append(each)
    return held


def _lines(count: int) -> alt.LayerChart:
    """The sentences below each other, the chosen one marked."""
    base = alt.Chart(alt.NamedData(name="sentences")).encode(y=alt.Y("sentence:O", axis=None))
    shade = alt.when(_is_shown("sentence")).then(alt.value(0.3)).otherwise(alt.value(0.1))
    bars = base.mark_rect(color=PALETTE[5], cursor="pointer").encode(opacity=shade)
    words = base.mark_text(
        align="left", color=GREY, fontSize=12, limit=_WIDTH - 16, cursor="pointer"
    ).encode(x=alt.value(8), text=alt.Text("text:N"))
    layered: alt.LayerChart = alt.LayerChart(layer=[bars, words])
    return layered.properties(width=_WIDTH, height=_LINE * count, title="Sentences: click one")


def _choice(
    field: str, start: int, count: int, labels: list[str] | None = None
) -> alt.TopLevelParameter:
    """Which of 1 to `count` is shown. Its list sets it, and the page's script at a click."""
    numbers = list(range(1, count + 1))
    bind = alt.BindRadioSelect(
        input="select",
        options=numbers,
        labels=labels or [str(number) for number in numbers],
        name=field.capitalize(),
    )
    return alt.VariableParameter(name=f"shown_{field}", value=start, bind=bind)


def _is_shown(*fields: str) -> str:
    return " && ".join(f"datum.{field} == shown_{field}" for field in fields)


def _option(nth: int, text: str) -> str:
    return f"{nth}: {text if len(text) <= _OPTION else text[: _OPTION - 1] + '…'}"
