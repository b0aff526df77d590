"""The report on one pre-training run, or on several beside each other."""

import datetime
from collections.abc import Sequence
from pathlib import Path

import stackbert
from stackbert.reporting.content import Curve, Curves, Page, Table
from stackbert.reporting.run_data import (
    RunData,
    read_runs,
    stage_bands,
    training_points,
    validation_points,
)
from stackbert.reporting.run_tables import (
    difference_table,
    growth_table,
    recipe_table,
    runs_table,
    stage_table,
    wall_table,
)
from stackbert.reporting.wording import duration, layers, si


def run_page(folders: Sequence[Path]) -> Page:
    """Fill a page with what the ledgers of run directories say.

    A run need not be finished: the page holds what is there and says so. Nothing is claimed about
    which recipe is better; that takes runs of equal budget, which `stackbert compare` makes.

    Args:
        folders: run directories, at least one.

    Raises:
        UserError: one is not a run directory, or is damaged.
    """
    runs = read_runs(folders)
    return _single(runs[0]) if len(runs) == 1 else _several(runs)


def _single(run: RunData) -> Page:
    curves = Curves(
        "Loss",
        (
            Curve("validation loss", run.depths, validation_points(run)),
            Curve("training loss", run.depths, training_points(run), main=False),
        ),
        stage_bands(run),
        note="The training loss is the mean since the point before. " + _curves_note([run]),
    )
    tables = [stage_table([run]), growth_table([run]), wall_table([run])]
    recipe = recipe_table(run, f"Recipe, as run: {run.recipe.name}")
    return Page(
        f"Pre-training run {run.name}, recipe {run.recipe.name}",
        tuple(_verdict(run)),
        (curves, *_present(tables), recipe),
        _facts([run]),
    )


def _several(runs: list[RunData]) -> Page:
    curves = Curves(
        "Validation loss",
        tuple(Curve(run.name, run.depths, validation_points(run)) for run in runs),
        note=_curves_note(runs),
    )
    tables = [
        runs_table(runs),
        stage_table(runs),
        growth_table(runs),
        wall_table(runs),
        difference_table(runs),
    ]
    recipe = recipe_table(runs[0], f"Recipe of {runs[0].name}, as run")
    return Page(
        f"{len(runs)} pre-training runs",
        tuple(_verdict_of_several(runs)),
        (curves, *_present(tables), recipe),
        _facts(runs),
    )


def _present(tables: Sequence[Table | None]) -> list[Table]:
    return [table for table in tables if table is not None and table.rows]


def _verdict(run: RunData) -> list[str]:
    """How far the run came and at what cost, in sentences that its ledger bears out."""
    at, losses = run.progress, run.evaluations
    if at is None or not losses:
        return ["Unfinished: no step has been made yet."]
    last = losses[-1]
    measured = f"validation loss {last['loss']:.3f} nats"
    cost = f"{at['step']:,} steps and {duration(at['seconds'])} of training"
    if not run.finished:
        sentences = [
            f"Unfinished: {at['step']:,} of {run.recipe.total_steps:,} steps, "
            f"{duration(at['seconds'])} of training, now at {layers(at['depth'])}; {measured} at "
            f"step {last['step']:,}."
        ]
    else:
        sentences = [f"{layers(at['depth'])}, {measured} after {cost}."]
    summary = run.summary
    if run.finished and summary is not None and len(summary.stages) > 1:
        sentences.append(
            f"As many steps at the last stage's depth and batches would have taken "
            f"{duration(summary.scratch_seconds)} at this run's speed. Whether they would have "
            "ended at the same loss, one run cannot say; stackbert compare measures it."
        )
    corpus = run.corpus()
    if corpus is not None:
        entropy, reached = corpus.validation.unigram_entropy, last["masked_lm"]
        side = "below" if reached <= entropy else "above"
        sentences.append(
            f"A model that knows word frequencies alone has {entropy:.3f} nats on the held-out "
            f"text; this one is {abs(entropy - reached):.3f} {side} that."
        )
    return sentences


def _verdict_of_several(runs: list[RunData]) -> list[str]:
    ended = [(run.evaluations[-1]["loss"], run.name) for run in runs if run.evaluations]
    if not ended:
        return [f"{len(runs)} runs; none has made a step yet."]
    sentences = []
    if len({_measured_on(run) for run in runs}) > 1:
        sentences.append(
            f"{len(runs)} runs whose losses do not compare: they were not measured on the same "
            "held-out text, rows and masks."
        )
    else:
        lowest, name = min(ended)
        sentences.append(
            f"{len(runs)} runs; the lowest last validation loss is {lowest:.3f} nats ({name})."
        )
    going = [run.name for run in runs if not run.finished]
    if going:
        verb = "is" if len(going) == 1 else "are"
        sentences.append(f"Unfinished {verb} {', '.join(going)}.")
    sentences.append(
        "This is no verdict on the recipes: the runs may differ in budget, seed and much else. "
        "stackbert compare gives every variant the same measured budget and says what is noise."
    )
    return sentences


def _measured_on(run: RunData) -> tuple[object, ...]:
    """What the validation rows and masks follow from."""
    recipe = run.recipe
    spec = recipe.evaluation
    return (
        run.record.request.corpus,
        spec.sequences,
        spec.mask_rate,
        recipe.longest_sequence,
        recipe.objective.next_sentence,
    )


def _curves_note(runs: Sequence[RunData]) -> str:
    note = "Time is training alone."
    if any(row["kind"] == "growth" for run in runs for row in run.rows):
        note += " A vertical piece is a growth: the loss right before and right after it."
    return note


def _facts(runs: Sequence[RunData]) -> dict[str, str]:
    """The foot. Where runs differ, each value is named once."""
    facts: dict[str, str] = {}

    def add(name: str, values: Sequence[str]) -> None:
        facts[name] = "; ".join(dict.fromkeys(value for value in values if value))

    add("Run" if len(runs) == 1 else "Runs", [str(run.folder) for run in runs])
    add("Budget asked", [_asked(run) for run in runs])
    add("Corpus", [_corpus_fact(run) for run in runs])
    add("Hardware", [_hardware_fact(run) for run in runs])
    add("Precision", [run.recipe.precision + _compiled(run) for run in runs])
    machines = [run.record.machine for run in runs]
    known = {"device", "threads"}
    for key in dict.fromkeys(key for machine in machines for key in machine):
        if key not in known:
            add(_VERSIONS.get(key, key), [str(machine.get(key, "")) for machine in machines])
    now = datetime.datetime.now(datetime.UTC)
    add("Report", [f"{now:%Y-%m-%d}, StackBERT {stackbert.__version__}"])
    return {name: value for name, value in facts.items() if value}


_VERSIONS = {"stackbert": "StackBERT", "python": "Python", "commit": "Commit"}


def _asked(run: RunData) -> str:
    request = run.record.request
    if request.budget:
        return request.budget
    return "" if request.steps is None else f"{request.steps:,} steps"


def _corpus_fact(run: RunData) -> str:
    fact = f"{Path(run.record.corpus_folder).name}, fingerprint {run.record.request.corpus}"
    manifest = run.corpus()
    if manifest is None:
        return fact
    return (
        f"{fact}: {manifest.train.tokens:,} tokens to train on, {manifest.validation.tokens:,} "
        f"held out, {manifest.tokenizer_size:,} word pieces"
    )


def _hardware_fact(run: RunData) -> str:
    machine = run.record.machine
    threads = f", {machine['threads']} threads" if "threads" in machine else ""
    rate = si(run.record.matrix_rate)
    return f"{machine.get('device', '')}{threads}, {rate}FLOP/s measured in matrix products"


def _compiled(run: RunData) -> str:
    return ", compiled" if run.recipe.compile is True else ""
