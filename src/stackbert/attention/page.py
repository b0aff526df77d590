"""What was found about a model's attention as a page, and its figures as files."""

import datetime
from dataclasses import replace
from pathlib import Path

import stackbert
from stackbert.attention.classes import LOCAL_WINDOW, paper_share
from stackbert.attention.examples import Examples
from stackbert.attention.explorer import explorer_figure
from stackbert.attention.figures import likeness_figure, overview_figure, profile_figure
from stackbert.attention.heatmaps import default_heads, growth_figure, growth_heads, heads_figure
from stackbert.attention.page_tables import (
    classes_table,
    growths_table,
    layers_table,
    likeness_table,
)
from stackbert.attention.result import RADIUS, AttentionResult
from stackbert.attention.statements import statements
from stackbert.reporting.content import Figure, Page, Table
from stackbert.reporting.figures import save_figures
from stackbert.reporting.page import write_page

EXPLORER = "Any head, any sentence"
_SHADES = "Row: query; column: key; dark: much attention. All maps have one scale."


def attention_page(result: AttentionResult, examples: Examples) -> Page:
    """Fill a page: the three claims in sentences, the figures, the tables.

    Args:
        result: what was measured.
        examples: maps of some sentences, of the same model; with those of the run's growths, they
            are drawn, too.
    """
    measures = result.measures
    share = paper_share(measures)
    headline = (
        f"{share:.0%} of the {measures.classes.size} heads look at their neighbours or at [CLS]."
    )
    heads = default_heads(measures)
    tables = (layers_table(result), likeness_table(result), growths_table(result.growths))
    return Page(
        f"Attention of {result.model.name}",
        (headline, *statements(result)),
        (
            Figure(
                EXPLORER,
                explorer_figure(examples.sentences, measures, heads[0]),
                f"{_SHADES} A click on a sentence or on a head chooses it; the pointer shows "
                "tokens and weight. Colours of heads are those of their classes.",
            ),
            Figure(
                "Heads of low, middle and high layers",
                heads_figure(examples.small, heads, measures.classes),
                f"{_SHADES} The heads were chosen by a rule: of the lower, the middle and the "
                f"upper third of the layers the one with most mass within {LOCAL_WINDOW} "
                "positions, then of each the one with most mass on the first token.",
            ),
            Figure(
                "All heads",
                overview_figure(measures),
                "The top layer is on top. docs/attention.md has the classes' thresholds.",
            ),
            Figure(
                "Attention by relative position",
                profile_figure(measures),
                f"Means over the heads of a class and over all queries, up to {RADIUS} positions "
                "away. Uniform: a head that looks at all tokens of a sentence alike.",
            ),
            *_likeness(result),
            *_growths(result, examples),
            classes_table(result),
            *(table for table in tables if isinstance(table, Table)),
        ),
        _facts(result),
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
    still = tuple(part for part in page.parts if part.title != EXPLORER)
    save_figures(replace(page, parts=still), out / "figures")
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
    figures = []
    for growth, maps in zip(result.growths, examples.growths, strict=False):
        heads = growth_heads(growth)
        if not heads:  # of chosen heads none was copied
            continue
        figures.append(
            Figure(
                f"Growing from {growth.source_depth} to {growth.depth} layers by {growth.operator}",
                growth_figure([maps], heads),
                f"{_SHADES} Heads of new layers; in the first row the shallow model's head that "
                "stacking copies there. They were chosen by the shallow model's measures, as the "
                "heads above.",
            )
        )
    return figures


def _facts(result: AttentionResult) -> dict[str, str]:
    model, measures = result.model, result.measures
    now = datetime.datetime.now(datetime.UTC)
    return {
        "Model": f"{model.name} ({model.type}), {model.depth} layers of {model.heads} heads",
        "Text": f"{result.text}: {measures.sentences:,} sentences, {measures.tokens:,} tokens, cut "
        f"at {result.max_length}",
        "Seed": str(result.seed),
        "Report": f"{now:%Y-%m-%d}, StackBERT {stackbert.__version__}",
    }
