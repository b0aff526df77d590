"""The table of a run's stages, as text."""

import io

from rich import box
from rich.console import Console
from rich.table import Table

from stackbert.pretraining.summary import RunSummary


def stage_table(summary: RunSummary) -> str:
    """A table: depth, steps, tokens, seconds, share of the time, MFU, loss around each growth."""
    table = Table(box=box.SIMPLE_HEAD, title=f"Stages of {summary.name}", title_justify="left")
    for heading in (
        "depth",
        "steps",
        "tokens",
        "seconds",
        "share",
        "MFU",
        "loss after growth",
        "loss at the end",
    ):
        table.add_column(heading, justify="right")
    for stage in summary.stages:
        table.add_row(
            str(stage.depth),
            f"{stage.steps:,}",
            f"{stage.tokens:,}",
            f"{stage.seconds:,.1f}",
            f"{stage.seconds / summary.seconds:.0%}",
            f"{stage.mfu:.0%}",
            _number(stage.loss_grown),
            _number(stage.loss),
        )
    console = Console(file=io.StringIO(), width=100, color_system=None)
    console.print(table)
    text = console.file.getvalue() if isinstance(console.file, io.StringIO) else ""
    lines = [line.rstrip() for line in text.splitlines()]
    if len(summary.stages) > 1:
        share = summary.seconds / summary.scratch_seconds
        lines.append(
            f"{summary.seconds:,.0f} s of training; as many steps at depth "
            f"{summary.stages[-1].depth} from the first on would have taken "
            f"{summary.scratch_seconds:,.0f} s ({share:.0%})."
        )
    total = sum(summary.wall.values())
    if not total:
        return "\n".join(lines)
    shares = sorted(summary.wall.items(), key=lambda item: -item[1])
    parts = ", ".join(f"{kind} {s / total:.1%}" for kind, s in shares if s >= 0.0005 * total)
    lines.append(f"Of {total:,.0f} s in all: {parts}.")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
