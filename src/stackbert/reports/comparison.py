"""The report on a comparison: the verdict, learning curves, standings, the reference table."""

from pathlib import Path

import pandas as pd

from stackbert.comparison.results import Comparison, read_comparison, stages_text
from stackbert.comparison.variants import SCRATCH, is_fixed
from stackbert.recipes import differing_fields, flat_fields
from stackbert.reports.charts import AXES, clipping_note, intervals, loss_curves
from stackbert.reports.page import Chart, Page, Table
from stackbert.reports.runs import stage_bands
from stackbert.units import format_duration


def page(folder: Path) -> Page:
    """The report of a comparison's folder, whatever has finished; UserError if it holds none."""
    found = read_comparison(folder)
    recipe, reference = found.request.recipe, found.reference
    fields = pd.DataFrame(flat_fields(recipe).items(), columns=["field", "value"]).astype(str)
    parts: list[Chart | Table] = []
    if found.best_fixed():
        parts += [_curves(found), *_budgets(found), *_standings(found)]
    parts += [
        _reference(found),
        _differences(found),
        Table("Learning rates that were tried", found.tried, formats={"loss": "{:.3f}"}),
        Table("Runs", found.runs.drop(columns="folder"), folded=True),
        Table("Recipe", fields, folded=True),
    ]
    facts = {
        **reference.machine,
        "Budget": f"{found.budget} of each run at a share of 1",
        "Corpus": f"{Path(found.corpus_folder).name}, fingerprint {found.request.corpus}",
        "Unigram entropy": f"{found.entropy:.3f} nats on the validation text",
        "Precision": reference.precision + (", compiled" if reference.compile else ""),
    }
    return Page(f"Comparison of {recipe.name}", tuple(found.verdict()), tuple(parts), facts)


def _curves(found: Comparison) -> Chart:
    curves = found.curves()
    note = "Validation loss. Time is the reference table's: steps times the seconds of their kind."
    bands = None
    for name, own in curves[curves["main"]].groupby("group", sort=False):
        if bands is None and not is_fixed(name):
            # The recipe before it was scaled to the budget; the curve knows its real length.
            bands = stage_bands(found.variants[name].scaled(int(own["steps"].max())), own)
            note += f" The bands are the stages of {name}."
    return Chart("Loss", loss_curves(curves, bands), f"{note} {clipping_note(curves)}".strip())


def _budgets(found: Comparison) -> list[Chart]:
    """Where there are several: final losses over them, a line a variant."""
    if len(found.shares) < 2:
        return []
    ends = found.curves().groupby("run", sort=False).last().query("fraction in @found.shares")
    points = ends.groupby(["group", "fraction"], sort=False)[[*AXES, "loss"]].mean()
    points = points.reset_index().sort_values("fraction", kind="stable")
    # What is drawn last lies on top: the variants that grow.
    points = points.sort_values("group", key=lambda names: ~names.map(is_fixed), kind="stable")
    points = points.assign(run=points["group"], detail="", main=True)
    note = "Each point ends a schedule of its own; means over the seeds. The controls' lowest is "
    return [Chart("Final loss over the budget", loss_curves(points), note + "the envelope.")]


def _standings(found: Comparison) -> list[Chart | Table]:
    best = found.best_fixed()
    rows, scratch = found.standings(best), found.standings()
    shares = rows["fraction"].map("{:.3g}".format)
    drawn = rows[["loss", "loss_low", "loss_high"]].set_axis(["mean", "low", "high"], axis=1)
    drawn = drawn.assign(variant=rows["variant"] + ", " + shares + " of the budget")
    chart = intervals(drawn, y="variant", title="final validation loss, nats")
    against, own = f"vs. {best}", ["variant", "fraction", "difference"]
    frame = rows.rename(columns={"difference": against}).merge(scratch[own], how="left")
    frame = frame.rename(columns={"difference": "vs. scratch", "fraction": "budget"})
    signed = dict.fromkeys([against, "low", "high", "vs. scratch"], "{:+.3f}")
    losses = ["variant", "budget", "seeds", "loss", against, "low", "high", "outcome"]
    note = (
        "Differences are paired by seed, against a control at the whole budget; low and high are "
        f"the 95 % interval of those to {best}, the best fixed depth. Outcomes are corrected for "
        "the number of variants (Holm)."
    )
    formats = {"budget": "{:.3g}", "loss": "{:.3f}", **signed}
    spent = frame[["variant", "budget", "step", "seconds", "flops", "tokens", "tokens_a_parameter"]]
    spent = spent.assign(seconds=spent["seconds"].map(format_duration))
    spent.columns = ["variant", "budget", "steps", "time", "FLOPs", "tokens", "tokens a parameter"]
    counts = {"steps": "{:,.0f}", "FLOPs": "{:.3g}", "tokens": "{:,.0f}"}
    counts |= {"budget": "{:.3g}", "tokens a parameter": "{:.1f}"}
    by_table = "By the reference table; parameters are those of the final layers."
    columns = [*losses, *([] if best == SCRATCH else ["vs. scratch"])]
    return [
        Chart("Final loss", chart, "Means over the seeds with 95 % intervals."),
        Table("Final validation loss", frame[columns], note, formats),
        Table("What a run spent", spent, by_table, counts),
    ]


def _differences(found: Comparison) -> Table:
    rows = []
    for name, own in found.variants.items():
        alike = found.request.recipe.model_copy(update={"stages": own.stages})
        rows.append((name, stages_text(own), "; ".join(differing_fields(alike, own))))
    note = "Text, order of the rows, masks, seeds and evaluation are the same for all."
    frame = pd.DataFrame(rows, columns=["variant", "stages", "other"])
    return Table("What the variants change", frame, note)


def _reference(found: Comparison) -> Table:
    steps = found.reference.steps
    times = 1e3 * steps[["seconds", "fastest", "slowest"]].rename(columns={"seconds": "ms"})
    rows = steps[["depth", "sequences", "sequence_length", "mask_rate"]].join(times)
    rows = rows.assign(readings=steps["readings"], GFLOPs=steps["flops"] / 1e9)
    formats = dict.fromkeys((*times, "GFLOPs"), "{:,.1f}")
    note = (
        f"Milliseconds, measured as the runs are made ({found.request.jobs} at a time, "
        f"{found.reference.threads} threads each), all kinds in turn; the medians count."
    )
    return Table("What a step takes here", rows, note, formats)
