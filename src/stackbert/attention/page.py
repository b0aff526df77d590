"""What was found about a model's attention as a page, and its figures as files."""

import datetime
import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import stackbert
from stackbert.attention.beside import growth_groups, of_one_start
from stackbert.attention.classes import LOCAL_WINDOW, paper_share
from stackbert.attention.examples import Examples
from stackbert.attention.explorer import explorer_figure
from stackbert.attention.figures import likeness_figure, overview_figure, profile_figure
from stackbert.attention.heatmaps import default_heads, heads_figure
from stackbert.attention.moments import growth_figure, growth_heads
from stackbert.attention.page_tables import (
    classes_table,
    growths_table,
    layers_table,
    likeness_table,
)
from stackbert.attention.result import RADIUS, AttentionResult, GrowthAttention
from stackbert.attention.statements import statements
from stackbert.reporting.content import Figure, Page, Part, Table, Text
from stackbert.reporting.figures import save_figures
from stackbert.reporting.page import write_page

EXPLORER = "Any head, any sentence"
_SHADES = "Row: query; column: key; dark: much attention. All maps have one scale."


def attention_page(result: AttentionResult, examples: Examples) -> Page:
    """Fill a page: the three claims in sentences, the figures, the tables.

    Args:
        result: what was measured.
        examples: maps of some sentences, of the same model; with those of the growths, they are
            drawn, too.

    Raises:
        ValueError: the examples are of other growths than the result.
    """
    now = datetime.datetime.now(datetime.UTC)
    return Page(
        f"Attention of {result.model.name}",
        (_headline(result), *statements(result)),
        _parts(result, examples),
        {**_facts(result), "Report": f"{now:%Y-%m-%d}, StackBERT {stackbert.__version__}"},
    )


def with_attention(page: Page, result: AttentionResult, examples: Examples) -> Page:
    """A page on something else, such as the run that trained the model, with this one's parts.

    They come behind the page's own, but for the folded ones at its end. The sentences are a part
    of their own, so that the page's first sentences stay about what it is about.

    Args:
        page: a report.
        result: what was measured.
        examples: as `attention_page` takes them.
    """
    folded = itertools.takewhile(_is_folded, reversed(page.parts))
    last = len(page.parts) - len(list(folded))
    found = Text(f"Attention of {result.model.name}", (_headline(result), *statements(result)))
    facts = {f"Attention: {name.lower()}": value for name, value in _facts(result).items()}
    return replace(
        page,
        parts=(*page.parts[:last], found, *_parts(result, examples), *page.parts[last:]),
        facts={**page.facts, **facts},
    )


def _is_folded(part: Part) -> bool:
    return isinstance(part, Table) and part.folded


def _headline(result: AttentionResult) -> str:
    measures = result.measures
    share = paper_share(measures)
    return f"{share:.0%} of the {measures.classes.size} heads look at their neighbours or at [CLS]."


def _parts(result: AttentionResult, examples: Examples) -> tuple[Part, ...]:
    measures = result.measures
    heads = default_heads(measures)
    tables = (layers_table(result), likeness_table(result), growths_table(result.growths))
    return (
        Figure(
            EXPLORER,
            explorer_figure(examples.sentences, measures, heads[0]),
            f"{_SHADES} A click on a sentence or on a head chooses it, and so do the lists above; "
            "the pointer shows tokens and weight. Colours of heads are those of their classes.",
            still=False,
        ),
        Figure(
            "Heads of low, middle and high layers",
            heads_figure(examples.small, heads, measures.classes),
            f"{_SHADES} The heads were chosen by a rule: of the lower, the middle and the upper "
            f"third of the layers the one with most mass within {LOCAL_WINDOW} positions, then of "
            "each the one with most mass on the first token.",
        ),
        Figure(
            "All heads",
            overview_figure(measures),
            "The top layer is on top. docs/attention.md has the classes' thresholds.",
        ),
        Figure(
            "Attention by relative position",
            profile_figure(measures),
            f"Means over the heads of a class and over all queries, up to {RADIUS} positions away. "
            "Uniform: a head that looks at all tokens of a sentence alike.",
        ),
        *_likeness(result),
        *_growths(result, examples),
        classes_table(result),
        *(table for table in tables if table is not None),
    )


def write_attention_page(page: Page, out: Path) -> Path:
    """Write `attention.html` into `out`, and the figures into its `figures`, as SVG and PNG.

    The figure in which heads can be chosen is left out of the files: one choice of many is no
    picture of it.

    Returns:
        The HTML file.

    Raises:
        UserError: the folder cannot be written.
    """
    path = out / "attention.html"
    write_page(page, path)
    save_figures(page, out / "figures")
    return path


def _likeness(result: AttentionResult) -> list[Figure]:
    note = (
        "Jensen-Shannon divergence, 0 to 1, heads matched best to best. Dark: alike. {} A model's "
        "untrained layers are all alike, so small numbers say something only beside the table's "
        "baselines."
    )
    figures = [
        Figure(
            "How alike layers are",
            likeness_figure(result.likeness),
            note.format("On the diagonal a layer meets itself."),
        )
    ]
    if result.other is not None:
        second = f"Columns: {result.other.model.name}."
        title = f"How alike layers are: {result.model.name} and {result.other.model.name}"
        figures.append(Figure(title, likeness_figure(result.other.likeness), note.format(second)))
    return figures


def _growths(result: AttentionResult, examples: Examples) -> list[Figure]:
    if not examples.growths:
        return []
    maps = {
        (growth.run, growth.step): drawn
        for growth, drawn in zip(result.growths, examples.growths, strict=True)
    }
    figures = []
    for group in growth_groups(result.growths):
        heads = growth_heads(group)
        if not heads:  # of chosen heads none was copied
            continue
        drawn = [maps[growth.run, growth.step] for growth in group]
        figures.append(
            Figure(_growth_title(group), growth_figure(drawn, heads), _growth_note(group))
        )
    return figures


def _growth_title(group: Sequence[GrowthAttention]) -> str:
    change = f"Growing from {group[0].source_depth} to {group[0].depth} layers"
    if len(group) == 1:
        return f"{change} by {group[0].label}"
    return f"{change}: {', '.join(growth.run for growth in group)}"


def _growth_note(group: Sequence[GrowthAttention]) -> str:
    note = (
        f"{_SHADES} Heads of new layers; in the rows of the shallow model the head that they copy "
        "or, in fresh layers, that stacking would have copied there. The heads were chosen by the "
        "shallow model's measures, as those above"
    )
    if len(group) == 1:
        return f"{note}."
    note += f": that of {group[0].run}."
    if of_one_start(group):
        return f"{note} All grew from the same weights, so their shallow model is drawn once."
    return (
        f"{note} The runs' shallow models do not have the same weights, so their maps differ "
        "before any growing."
    )


def _facts(result: AttentionResult) -> dict[str, str]:
    model, measures = result.model, result.measures
    runs = dict.fromkeys(growth.run for growth in result.growths)
    facts = {
        "Model": f"{model.name} ({model.type}), {model.depth} layers of {model.heads} heads",
        "Text": f"{result.text}: {measures.sentences:,} sentences, {measures.tokens:,} tokens, cut "
        f"at {result.max_length}",
        "Seed": str(result.seed),
    }
    return {**facts, "Growths of": ", ".join(runs)} if len(runs) > 1 else facts
