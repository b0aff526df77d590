"""A result's measures as a table, a line a layer."""

import io

from rich import box
from rich.console import Console
from rich.table import Table

from stackbert.attention.result import CLASSES, WINDOWS, AttentionResult, Measures

_WINDOW = WINDOWS.index(4)


def layer_table(result: AttentionResult) -> str:
    """Means over the heads of each layer, with a uniform head and an untrained model below."""
    model, measures = result.model, result.measures
    table = Table(
        box=box.SIMPLE_HEAD,
        title=(
            f"Attention of {model.name} ({model.type}, {model.depth} layers of {model.heads} "
            f"heads), {measures.sentences:,} sentences, {measures.tokens:,} tokens"
        ),
        title_justify="left",
        pad_edge=False,
    )
    table.add_column("layer")
    for heading in ("within 4", "itself", "previous", "next", "[CLS]", "[SEP]"):
        table.add_column(heading, justify="right")
    table.add_column("entropy", justify="right")
    table.add_column("distance", justify="right")
    table.add_column("heads")
    for layer in range(model.depth):
        table.add_row(str(layer + 1), *layer_means(measures, layer), class_counts(measures, layer))
    table.add_section()
    table.add_row("all", *layer_means(measures, slice(None)), class_counts(measures, slice(None)))
    table.add_row("uniform", *uniform_means(measures), "")
    fresh = result.untrained.measures
    # Beside the uniform row, which is of all sentences, it must say that it is of some.
    label = f"untrained ({fresh.sentences})"
    table.add_row(label, *layer_means(fresh, slice(None)), class_counts(fresh, slice(None)))
    console = Console(file=io.StringIO(), width=140, color_system=None, markup=False)
    console.print(table)
    text = console.file.getvalue() if isinstance(console.file, io.StringIO) else ""
    return "\n".join(line.rstrip() for line in text.splitlines())


def layer_means(measures: Measures, layers: int | slice) -> list[str]:
    """The cells of a layer, or of several: each measure's mean over their heads."""
    values = (
        measures.within[_WINDOW],
        measures.itself,
        measures.previous,
        measures.following,
        measures.first,
        measures.sep,
        measures.entropy,
    )
    means = [f"{value[layers].mean():.3f}" for value in values]
    return [*means, f"{measures.distance[layers].mean():.1f}"]


def uniform_means(measures: Measures) -> list[str]:
    """The same cells of a head that looks at all tokens alike."""
    values = (
        measures.within_uniform[_WINDOW],
        measures.itself_uniform,
        measures.previous_uniform,
        measures.following_uniform,
        measures.first_uniform,
        measures.sep_uniform,
        measures.entropy_uniform,
    )
    return [*(f"{value:.3f}" for value in values), f"{measures.distance_uniform:.1f}"]


def class_counts(measures: Measures, layers: int | slice) -> str:
    """How many heads of these layers are of each class, in words."""
    found = measures.classes[layers]
    counts = {name: int((found == name).sum()) for name in CLASSES}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)
