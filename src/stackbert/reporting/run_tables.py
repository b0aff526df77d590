"""The tables of a report on runs: stages, growth, wall time, recipe."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from stackbert.pretraining.budget import evaluation_interval
from stackbert.recipe import Recipe
from stackbert.reporting.content import Table
from stackbert.reporting.run_data import RunData
from stackbert.reporting.wording import difference, duration, loss, si

_MISSING = "–"
Row = tuple[str, ...]


def runs_table(runs: Sequence[RunData]) -> Table:
    """A row a run: how far it came and what it cost."""
    rows: list[Row] = []
    for run in runs:
        at = run.progress or dict.fromkeys(("step", "tokens", "flops", "seconds"), 0)
        losses = run.evaluations
        rows.append(
            (
                run.name,
                run.recipe.name,
                run.depths,
                f"{at['step']:,}",
                si(at["tokens"]),
                si(at["flops"]),
                duration(at["seconds"]),
                loss(losses[-1]["loss"]) if losses else _MISSING,
                "" if run.finished else f"unfinished, of {run.recipe.total_steps:,} steps",
            )
        )
    columns: Row = ("run", "recipe", "depth", "steps", "tokens", "FLOPs", "time", "loss", "")
    if all(run.finished for run in runs):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    note = "Time is training alone; the loss is the last validation loss, in nats."
    return Table("Runs", columns, tuple(rows), note)


def stage_table(runs: Sequence[RunData]) -> Table:
    """A row a stage that has ended."""
    columns = (
        "depth",
        "steps",
        "tokens",
        "time",
        "share",
        "MFU",
        "loss after growth",
        "loss at the end",
    )
    note = (
        "Time is training alone. MFU: the share of this machine's measured rate of matrix products "
        "that training used. Losses are validation losses, in nats."
    )
    going = [run.name for run in runs if not run.finished]
    if going:
        what = "The run" if len(runs) == 1 else ", ".join(going)
        note += f" {what} {'is' if len(going) == 1 else 'are'} unfinished: "
        note += "only stages that have ended are here."
    return _by_run("Stages", columns, runs, _stage_rows, note)


def growth_table(runs: Sequence[RunData]) -> Table | None:
    """A row a growth: the jump of the loss, and how long it took to come back; None if none."""
    columns = (
        "growth",
        "operator",
        "optimiser state",
        "at step",
        "loss before",
        "loss after",
        "jump",
        "back below after",
        "growing took",
    )
    every = sorted({evaluation_interval(run.recipe) for run in runs})
    steps = " or ".join(f"{n:,}" for n in every)
    note = (
        "Back below: steps and training time from the growth until an evaluation found the "
        f"validation loss below what it was before. There is one every {steps} steps, so it may "
        "have been earlier."
    )
    table = _by_run("Growth", columns, runs, _growth_rows, note)
    return table if table.rows else None


def wall_table(runs: Sequence[RunData]) -> Table | None:
    """Where the wall time went, as far as the ledgers account for it; None if none does."""
    accounts = [(run, _wall(run)) for run in runs]
    accounts = [(run, wall) for run, wall in accounts if wall]
    if not accounts:
        return None
    note = (
        "From the opening of the run's folder to its last checkpoint, in all processes of the run; "
        "for a run that is unfinished, to the end of its last stage."
    )
    if len(runs) == 1:
        wall = accounts[0][1]
        total = sum(wall.values())
        rows = [
            (kind, duration(s), _percent(s, total))
            for kind, s in sorted(wall.items(), key=lambda item: -item[1])
            if s >= 0.0005 * total
        ]
        rows.append(("in all", duration(total), ""))
        return Table("Where the time went", ("", "time", "share"), tuple(rows), note)
    kinds = list(dict.fromkeys(k for _, wall in accounts for k, s in wall.items() if s > 0))
    lines = [
        (
            run.name,
            duration(sum(wall.values())),
            *(_percent(wall.get(kind, 0.0), sum(wall.values())) for kind in kinds),
        )
        for run, wall in accounts
    ]
    return Table("Where the time went", ("run", "in all", *kinds), tuple(lines), note)


def recipe_table(run: RunData, title: str) -> Table:
    """Every field of a recipe as run, closed until it is asked for."""
    rows = tuple(flat_recipe(run.recipe).items())
    return Table(title, ("field", "value"), rows, folded=True)


def difference_table(runs: Sequence[RunData]) -> Table | None:
    """The fields in which the recipes differ; None if they do not."""
    flat = [flat_recipe(run.recipe) for run in runs]
    fields = dict.fromkeys(name for one in flat for name in one)
    rows = [(name, *(one.get(name, _MISSING) for one in flat)) for name in fields]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    if not rows:
        return None
    names = tuple(run.name for run in runs)
    return Table("Where the recipes differ", ("field", *names), tuple(rows))


def flat_recipe(recipe: Recipe) -> dict[str, str]:
    """A recipe's fields by their dotted names, as `--set` takes them, with their values as text."""

    def flatten(value: Any, name: str) -> Iterable[tuple[str, str]]:  # noqa: ANN401 (plain values)
        if isinstance(value, dict):
            items: Iterable[tuple[Any, Any]] = value.items()
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            items = enumerate(value)
        else:
            yield name, "" if value is None else str(value)
            return
        for key, item in items:
            yield from flatten(item, f"{name}.{key}" if name else str(key))

    # A stage's own batch and lengths are mostly left to the recipe's; empty rows say nothing.
    flat = dict(flatten(recipe.model_dump(mode="json"), ""))
    return {k: v for k, v in flat.items() if v or not k.startswith("stages.")}


def _stage_rows(run: RunData) -> list[Row]:
    summary = run.summary
    if summary is None:
        return []
    return [
        (
            str(stage.depth),
            f"{stage.steps:,}",
            f"{stage.tokens:,}",
            duration(stage.seconds),
            _percent(stage.seconds, summary.seconds),
            f"{stage.mfu * 100:.0f} %",
            loss(stage.loss_grown),
            loss(stage.loss),
        )
        for stage in summary.stages
    ]


def _growth_rows(run: RunData) -> list[Row]:
    rows: list[Row] = []
    taken = 0.0
    for growth in (row for row in run.rows if row["kind"] == "growth"):
        before, after = growth["loss_before"], growth["loss_after"]
        known = before is not None and after is not None
        rows.append(
            (
                f"{growth['source_depth']} → {growth['target_depth']}",
                growth["operator"],
                growth["optimizer_state"],
                f"{growth['step']:,}",
                loss(before),
                loss(after),
                difference(after - before) if known else _MISSING,
                _recovery(run, growth) if known else _MISSING,
                duration(growth["growth_seconds"] - taken),
            )
        )
        taken = growth["growth_seconds"]  # the ledger's sum over all growths so far
    return rows


def _recovery(run: RunData, growth: dict[str, Any]) -> str:
    before = growth["loss_before"]
    if growth["loss_after"] <= before:
        return "no rise"
    for row in run.evaluations:
        if row["step"] > growth["step"] and row["loss"] < before:
            steps = row["step"] - growth["step"]
            return f"{steps:,} steps, {duration(row['seconds'] - growth['seconds'])}"
    return "never" if run.finished else "not yet"


def _by_run(
    title: str,
    columns: Row,
    runs: Sequence[RunData],
    rows_of: Callable[[RunData], list[Row]],
    note: str,
) -> Table:
    """The rows of all runs below each other; with several, the run's name goes first."""
    if len(runs) == 1:
        return Table(title, columns, tuple(rows_of(runs[0])), note)
    rows = tuple((run.name, *row) for run in runs for row in rows_of(run))
    return Table(title, ("run", *columns), rows, note)


def _wall(run: RunData) -> dict[str, float]:
    accounts: list[dict[str, float]] = [r["wall"] for r in run.rows if r["kind"] in ("time", "end")]
    return accounts[-1] if accounts else {}


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else _MISSING
