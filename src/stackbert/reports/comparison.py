"""The report on a comparison: the verdict, learning curves, standings, the reference table."""

from pathlib import Path

import pandas as pd

from stackbert.comparison.results import Comparison, read_comparison
from stackbert.recipes import flat_fields
from stackbert.reports.charts import clipping_note, intervals, loss_curves
from stackbert.reports.page import Chart, Page, Table
from stackbert.reports.runs import stage_bands


def comparison_page(folder: Path) -> Page:
    """The report of a comparison's folder, whatever has finished of it.

    Raises:
        UserError: it holds no comparison.
    """
    found = read_comparison(folder)
    parts: list[Chart | Table] = []
    if len(found.results):
        parts.append(_curves(found))
    if len(found.standings()):
        parts += _standings(found)
    parts += [_speeds(found), _growths(found), _reference(found)]
    changes = "Text, order of the rows, masks, seeds and evaluation are the same for all."
    parts += [
        Table("What the variants change", found.differences(), changes),
        Table("Learning rates that scratch tried", found.tried, formats={"loss": "{:.3f}"}),
        Table("Runs", found.runs.drop(columns="folder"), folded=True),
        Table(
            "Recipe",
            pd.Series(flat_fields(found.request.recipe), name="value").astype(str).reset_index(),
            folded=True,
        ),
    ]
    return Page(
        f"Comparison of {found.request.recipe.name}",
        tuple(found.verdict()),
        tuple(part for part in parts if isinstance(part, Chart) or len(part.frame)),
        _facts(found),
    )


def _curves(found: Comparison) -> Chart:
    curves = found.curves()
    note = "Validation loss. Time is the reference table's: steps times the seconds of their kind."
    grown = curves[curves["main"] & (curves["group"] != "scratch")]
    bands = None
    if len(grown):
        name = grown["group"].iloc[0]
        own = grown[grown["group"] == name]
        run = found.runs[(found.runs["variant"] == name) & (found.runs["missing"] == "")]
        recipe = found.variants[name]
        if len(run):
            # The recipe before it was scaled to the budget; the curve knows its real length.
            bands = stage_bands(recipe.scaled(int(own["steps"].max())), own)
            note += f" The bands are the stages of {name}."
    return Chart("Loss", loss_curves(curves, bands), f"{note} {clipping_note(curves)}".strip())


def _standings(found: Comparison) -> list[Chart | Table]:
    rows = found.standings()
    shares = rows["fraction"].map("{:.3g}".format)
    drawn = pd.DataFrame(
        {
            "variant": rows["variant"] + ", " + shares + " of the budget",
            "mean": rows["loss"],
            "low": rows["loss_low"],
            "high": rows["loss_high"],
        }
    )
    chart = intervals(drawn, y="variant", title="final validation loss, nats")
    frame = rows.rename(columns={"fraction": "budget", "difference": "vs. scratch"})
    columns = ["variant", "budget", "seeds", "loss", "vs. scratch", "low", "high", "outcome"]
    formats = {"budget": "{:.3g}", "loss": "{:.3f}", "vs. scratch": "{:+.3f}"}
    formats |= {"low": "{:+.3f}", "high": "{:+.3f}"}
    note = (
        "Differences are paired by seed, against scratch at its whole budget; low and high are "
        "their 95 % interval."
    )
    return [
        Chart("Final loss", chart, "Means over the seeds with 95 % intervals."),
        Table("Final validation loss", frame[columns], note, formats),
    ]


def _speeds(found: Comparison) -> Table:
    rows = found.speeds()
    rows["share"] = rows["share"].map(str)
    note = "Shares of scratch's budget, from runs at several budgets, each with its whole schedule."
    return Table(f"{found.budget.unit.capitalize()} to scratch's loss", rows, note)


def _growths(found: Comparison) -> Table:
    rows = found.growths()
    rows = rows.assign(jump=rows["after"] - rows["before"])
    formats = {"fraction": "{:.3g}", "before": "{:.3f}", "after": "{:.3f}", "jump": "{:+.3f}"}
    return Table("Growth", rows, "", formats | {"step": "{:,.0f}"}, folded=len(rows) > 8)


def _reference(found: Comparison) -> Table:
    rows = found.reference.steps.assign(
        ms=1e3 * found.reference.steps["seconds"],
        fastest=1e3 * found.reference.steps["fastest"],
        slowest=1e3 * found.reference.steps["slowest"],
        GFLOPs=found.reference.steps["flops"] / 1e9,
    )
    columns = ["depth", "sequences", "sequence_length", "mask_rate", "ms", "fastest", "slowest"]
    formats = dict.fromkeys(("ms", "fastest", "slowest", "GFLOPs"), "{:,.1f}")
    note = (
        f"Milliseconds, measured as the runs are made ({found.request.jobs} at a time, "
        f"{found.reference.threads} threads each), all kinds in turn; the medians count."
    )
    return Table("What a step takes here", rows[[*columns, "readings", "GFLOPs"]], note, formats)


def _facts(found: Comparison) -> dict[str, str]:
    return {
        **{name: str(value) for name, value in found.reference.machine.items()},
        "Budget": f"{found.budget} of each run at a share of 1",
        "Corpus": f"{Path(found.corpus_folder).name}, fingerprint {found.request.corpus}",
        "Unigram entropy": f"{found.entropy:.3f} nats on the validation text",
        "Precision": found.reference.precision + (", compiled" if found.reference.compile else ""),
    }
