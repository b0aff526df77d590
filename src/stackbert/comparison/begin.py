"""Beginning a comparison, or going on with one: what all its runs share is measured once."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from stackbert.comparison.calibration import calibrate, extended, settle_kinds
from stackbert.comparison.costs import (
    Budget,
    Reference,
    StepKind,
    all_kinds,
    parse_budget,
    step_kinds,
)
from stackbert.comparison.folder import (
    Question,
    Record,
    check_may_begin,
    check_same_question,
    is_comparison,
    read_record,
)
from stackbert.comparison.processes import counted, threads_each
from stackbert.comparison.variants import depth_pairs, scratch_of
from stackbert.corpus.store import Corpus
from stackbert.errors import UserError
from stackbert.recipe import Recipe
from stackbert.recipe_files import differing_fields, parse_recipe

Say = Callable[[str], None]


def open_record(
    folder: Path,
    question: Question,
    recipes: dict[str, Recipe],
    corpus: Corpus,
    say: Say,
) -> Record:
    """The comparison's record, with a reference table that covers every recipe; not yet written.

    What is in the table stays. Steps of a new kind are measured beside scratch's and brought to
    the table's speed.

    Args:
        folder: of the comparison.
        question: must be that of an earlier call.
        recipes: of all variants, of any length.
        corpus: to measure on.
        say: hears of what is measured.

    Raises:
        UserError: the folder holds something else, or another question.
    """
    scratch = scratch_of(question.recipe)
    wanted = all_kinds([scratch, *recipes.values()])
    pairs = tuple(dict.fromkeys(p for r in recipes.values() for p in depth_pairs(r)))
    if not is_comparison(folder):
        check_may_begin(folder)
        record = _begin(question, wanted, pairs, corpus, scratch, say)
    else:
        record = read_record(folder)
        check_same_question(folder, record.question, question)
        _check_same_variants(folder, record, recipes)
        record = _covering(record, wanted, pairs, corpus, scratch, say)
    plain = {name: recipe.model_dump(mode="json") for name, recipe in recipes.items()}
    return replace(record, recipes={**record.recipes, **plain})


def _check_same_variants(folder: Path, record: Record, recipes: dict[str, Recipe]) -> None:
    for name, recipe in recipes.items():
        if name not in record.recipes:
            continue
        there = parse_recipe(record.recipes[name], f"variant '{name}'")
        differing = differing_fields(there, recipe)
        if differing:
            raise UserError(
                f"{folder} holds a variant '{name}' that differs in: {'; '.join(differing)}. Give "
                "the new one another name."
            )


def _begin(
    question: Question,
    wanted: Sequence[StepKind],
    pairs: Sequence[tuple[int, int]],
    corpus: Corpus,
    scratch: Recipe,
    say: Say,
) -> Record:
    threads = threads_each(question.jobs)
    asked = None if question.budget is None else parse_budget(question.budget)
    say(f"measuring seconds per step, {_places(question.jobs, threads)} …")
    settings, machine = settle_kinds(
        question.recipe,
        wanted,
        scratch,
        corpus.folder,
        threads=threads,
        seconds=asked.amount if asked is not None and asked.unit == "seconds" else None,
    )
    reference = calibrate(
        question.recipe,
        wanted,
        pairs,
        settings,
        corpus.folder,
        threads=threads,
        jobs=question.jobs,
    )
    say(_table(reference))
    return Record(
        question=question,
        corpus_folder=str(corpus.folder),
        entropy=corpus.manifest.validation.unigram_entropy,
        machine=machine,
        threads=threads,
        settings=settings,
        reference=reference,
        budget=asked or Budget(reference.cost(scratch, "seconds"), "seconds"),
    )


def _covering(
    record: Record,
    wanted: Sequence[StepKind],
    pairs: Sequence[tuple[int, int]],
    corpus: Corpus,
    scratch: Recipe,
    say: Say,
) -> Record:
    known = {row.kind for row in record.reference.steps}
    grown = {(row.source_depth, row.target_depth) for row in record.reference.growths}
    new = [kind for kind in wanted if kind not in known]
    new_pairs = [pair for pair in pairs if pair not in grown]
    if not new and not new_pairs:
        return record
    question = record.question
    say("measuring seconds per step of what was added …")
    anchor = step_kinds(scratch)[-1]
    # A growth is measured on a model of its first depth, in rows of some kind.
    sources = {source for source, _ in new_pairs}
    kinds = sorted(
        {anchor, *new, *(k for k in known if k.depth in sources)}, key=lambda kind: kind.depth
    )
    budget = record.budget
    settled, _ = settle_kinds(
        question.recipe,
        kinds,
        scratch,
        corpus.folder,
        threads=record.threads,
        seconds=budget.amount if question.budget and budget.unit == "seconds" else None,
    )
    rows = dict(settled.micro_batches) | dict(record.settings.micro_batches)
    settings = replace(record.settings, micro_batches=tuple(rows.items()))
    measured = calibrate(
        question.recipe,
        kinds,
        new_pairs,
        settings,
        corpus.folder,
        threads=record.threads,
        jobs=question.jobs,
    )
    reference = extended(record.reference, measured, anchor)
    say(_table(reference))
    return replace(record, settings=settings, reference=reference)


def check_grows(recipe: Recipe) -> None:
    """Refuse a recipe that has nothing to compare.

    Raises:
        UserError: all its stages have one depth.
    """
    if not depth_pairs(recipe):
        raise UserError(
            f"Recipe '{recipe.name}' has one depth only, so nothing grows. Give it stages of "
            "rising depth; 'scratch' is made from them."
        )


def _places(jobs: int, threads: int) -> str:
    places = "one process" if jobs == 1 else f"{jobs} processes at a time"
    return f"in {places} of {counted(threads, 'thread')}"


def _table(reference: Reference) -> str:
    parts = [
        f"{1000 * row.seconds:.0f} ms at depth {row.kind.depth}"
        for row in sorted(reference.steps, key=lambda row: row.kind.depth)
    ]
    return f"a step takes {', '.join(parts)}"
