"""`compare`: the claim put to a fair test on the user's own text and machine."""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from stackbert.comparison.begin import Say, check_grows, open_record
from stackbert.comparison.costs import filling
from stackbert.comparison.folder import Question, Record, Tried, write_record
from stackbert.comparison.processes import Task, counted, run_all
from stackbert.comparison.results import Results, final_loss, read_results
from stackbert.comparison.runs import (
    PlannedRun,
    is_finished,
    plan_runs,
    planned,
    recipe_file,
    run_folder,
    with_runs,
)
from stackbert.comparison.variants import (
    SCRATCH,
    at_rate,
    load_variants,
    scratch_of,
    untuned,
)
from stackbert.corpus.store import Corpus, open_corpus
from stackbert.errors import RunError, UserError
from stackbert.files import held_folder
from stackbert.pretraining.rundir import CHECKPOINTS
from stackbert.recipe import Recipe


def compare(
    recipe: Recipe,
    *,
    corpus: str | Path | Corpus,
    out: str | Path,
    variants: Sequence[str] = (SCRATCH, "stack"),
    seeds: int = 3,
    budget: str | None = None,
    fractions: Sequence[float] = (1.0,),
    rates: Sequence[float] = (1.0,),
    jobs: int = 1,
    keep_checkpoints: bool = False,
    say: Say | None = None,
) -> Results:
    """Train every variant of a recipe on the same budget and report what came of it.

    Every variant sees the same rows and masks in the same order, starts from the same seeds, and
    decays its learning rate to the end of its whole schedule within its own budget. A budget in
    seconds is spent by a table of seconds per step measured here once, so that no variant gains
    by running in a quiet minute. docs/comparison.md has the rules and their reasons.

    Called again with the same `out`, it goes on where it was stopped; more variants, seeds and
    fractions may be asked for then, and finished runs are kept.

    Args:
        recipe: stages of rising depth; `scratch` is made from them.
        corpus: a folder that `build_corpus` made, or an opened corpus.
        out: folder of the comparison.
        variants: "scratch" (always included), growth operators, or YAML files.
        seeds: runs of each variant; below 2 there is no interval, 3 are few.
        budget: of each run: "30m" of training, "2000steps", "4e15flops". By default the time that
            scratch takes for the recipe's steps.
        fractions: shares of the budget that each variant but scratch is run at; from several
            follows the share at which it equals scratch's loss.
        rates: factors of the learning rates; of several, scratch tries each with one seed and all
            variants take its best.
        jobs: runs side by side; the cores are divided.
        keep_checkpoints: leave a finished run its checkpoints, one at the end of each stage; by
            default it keeps its final model and its ledger only.
        say: hears of progress.

    Returns:
        All runs that have ended, of this call and of earlier ones.

    Raises:
        UserError: wrong input; nothing was trained.
        RunError: no run could be made. One that fails alone is named in the verdict.
        Interrupted: Ctrl-C or SIGTERM; the same call goes on.

    Example:
        >>> import stackbert as sb
        >>> results = sb.compare(  # doctest: +SKIP
        ...     sb.load_recipe("small-cpu"), corpus="corpus", out="comparison", jobs=2
        ... )
    """
    tell = say or (lambda text: None)
    _check(seeds, rates, jobs)
    check_grows(recipe)
    recipe = untuned(recipe)
    asked = load_variants(variants, recipe, seeds=seeds, fractions=fractions)
    opened = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
    folder = Path(out)
    fingerprint = opened.manifest.fingerprint
    question = Question("variants", recipe, fingerprint, budget, jobs, tuple(sorted(set(rates))))
    with held_folder(folder, f"comparing in {folder}"):
        recipes = {variant.name: variant.recipe for variant in asked}
        record = open_record(folder, question, recipes, opened, tell)
        plan_runs(asked, record, rate=1.0)  # a budget that is too short is found before it is set
        write_record(folder, record)
        if len(question.rates) > 1:
            record = _tune(folder, record, opened, tell, keep_checkpoints)
        else:
            record = replace(record, rate=question.rates[0])
        runs = plan_runs(asked, record, rate=record.rate)
        record = with_runs(record, runs)
        write_record(folder, record)
        make_runs(folder, record, runs, opened, tell, keep_checkpoints=keep_checkpoints)
    return read_results(folder)


def make_runs(
    folder: Path,
    record: Record,
    runs: Sequence[PlannedRun],
    corpus: Corpus,
    say: Say,
    *,
    keep_checkpoints: bool = False,
) -> None:
    """Make those of the runs that are not there yet.

    Raises:
        Interrupted: asked to stop.
        RunError: a run was refused.
    """

    def tidy(run: Path) -> None:
        # A finished run has its model; the checkpoints were there to resume from.
        if not keep_checkpoints and (run / CHECKPOINTS).is_dir():
            shutil.rmtree(run / CHECKPOINTS)

    todo: dict[str, PlannedRun] = {}
    for run in runs:
        if is_finished(run_folder(folder, run)):
            tidy(run_folder(folder, run))
        else:
            todo.setdefault(run.key, run)
    kept = len({run.key for run in runs}) - len(todo)
    if todo:
        say(f"{counted(len(todo), 'run')} to be made, {kept} there already")
    tasks = [
        Task(
            run.label,
            recipe_file(folder, run),
            corpus.folder,
            run_folder(folder, run),
        )
        for run in todo.values()
    ]
    failed = run_all(
        tasks,
        jobs=record.question.jobs,
        threads=record.threads,
        say=say,
        done=lambda task: tidy(task.out),
    )
    if failed and len(failed) == len({run.key for run in runs}):
        raise RunError(f"No run could be made. {failed[0]}")


def _tune(folder: Path, record: Record, corpus: Corpus, say: Say, keep_checkpoints: bool) -> Record:
    """Let scratch choose the learning rate, for itself and so for all."""
    question = record.question
    scratch = filling(scratch_of(question.recipe), record.reference, record.budget)
    trials = [
        planned(
            SCRATCH,
            1.0,
            at_rate(scratch, rate),
            record.settings,
            question.corpus,
            note=f" at {rate:g} times the learning rates",
        )
        for rate in question.rates
    ]
    make_runs(folder, record, trials, corpus, say, keep_checkpoints=keep_checkpoints)
    tried = tuple(
        Tried(rate, final_loss(run_folder(folder, run)))
        for rate, run in zip(question.rates, trials, strict=True)
    )
    best = min(tried, key=lambda t: math.inf if t.loss is None else t.loss)
    if best.loss is None:
        raise RunError(
            f"Scratch ended with none of the learning rates {question.rates}; the logs in "
            f"{folder / 'runs'} say why."
        )
    say(f"scratch does best at {best.rate:g} times the recipe's learning rates; all take that")
    # A trial that failed before may have ended now, and done better: what was run at another rate
    # is no part of the comparison then.
    entries = record.entries if record.rate == best.rate else ()
    return replace(record, rate=best.rate, tried=tried, entries=entries)


def _check(seeds: int, rates: Sequence[float], jobs: int) -> None:
    if seeds < 1:
        raise UserError(f"seeds must be at least 1, not {seeds}.")
    if jobs < 1:
        raise UserError(f"jobs must be at least 1, not {jobs}.")
    if not rates or not all(0.0 < rate < 1000.0 for rate in rates):
        raise UserError(f"Learning rates are factors above 0, such as 0.5,1,2; not {list(rates)}.")


def console_say() -> Callable[[str], None]:
    """Prints a line with the time of day, for the command line."""
    import time

    import typer

    return lambda text: typer.echo(f"{time.strftime('%H:%M:%S')} {text}", err=True)
