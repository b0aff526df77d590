"""`compare`: the claim put to a fair test on the user's own text and machine."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from stackbert.comparison.calibration import calibrate
from stackbert.comparison.processes import threads_each, train_all
from stackbert.comparison.reference import Budget, parse_budget
from stackbert.comparison.results import COMPARISON, RUNS, Comparison, Request, read_comparison
from stackbert.comparison.variants import SCRATCH, Variant, growths_of, load_variants, validated
from stackbert.corpus.store import Corpus, open_corpus
from stackbert.errors import RunError, UserError
from stackbert.files import locked, write_text, writing
from stackbert.pretraining.record import CHECKPOINTS
from stackbert.progress import Progress
from stackbert.recipe import Recipe
from stackbert.recipes import differing_fields
from stackbert.units import counted, format_duration


def compare(
    recipe: Recipe,
    *,
    corpus: str | Path | Corpus,
    out: str | Path,
    variants: Sequence[str] = (SCRATCH, "stack"),
    seeds: int = 3,
    budget: str | None = None,
    steps: int | None = None,
    fractions: Sequence[float] = (1.0,),
    learning_rates: Sequence[float] = (1.0,),
    jobs: int = 1,
    keep_checkpoints: bool = False,
    progress: Progress | None = None,
) -> Comparison:
    """Train every variant of a recipe on the same budget; docs/comparison.md has the rules.

    Called again with the same `out`, it resumes: finished runs are kept, and more variants, seeds
    and fractions may be asked for.

    Args:
        recipe: stages of rising depth; `scratch` is made from them.
        corpus: a folder that `build_corpus` made, or an opened corpus.
        out: folder of the comparison.
        variants: "scratch" (always included), growth operators, or YAML files.
        seeds: runs of each variant; below 2 there is no interval, 3 are few.
        budget: of each run: "30m" of training, "2000steps", "4e15flops". By default the time that
            scratch takes for the recipe's steps.
        steps: first scale the recipe to this many steps.
        fractions: shares of the budget that each variant but scratch is run at.
        learning_rates: factors of the recipe's rates; of several, scratch tries each with one seed
            and all variants take its best.
        jobs: runs side by side; the cores are divided.
        keep_checkpoints: leave a finished run its checkpoints, one at the end of each stage.
        progress: hears of every run that ends.

    Raises:
        UserError: wrong input; nothing was trained.
        RunError: no run could be trained. One that fails alone is named in the verdict.
        Interrupted: Ctrl-C or SIGTERM; the same call resumes.
    """
    if not growths_of(recipe):
        raise UserError(
            f"Recipe '{recipe.name}' has one depth only, so nothing grows. Give it stages of "
            "rising depth; 'scratch' is made from them."
        )
    recipe = recipe if steps is None else recipe.scaled(steps)
    # Micro-batches are chosen for all variants alike.
    stages = tuple(stage.model_copy(update={"micro_batch": None}) for stage in recipe.stages)
    recipe = recipe.model_copy(update={"stages": stages})
    asked = load_variants(variants, recipe, seeds=seeds, fractions=fractions)
    opened = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
    request = validated(
        Request,
        "A comparison",
        recipe=recipe,
        corpus=opened.fingerprint,
        budget=budget,
        learning_rates=tuple(sorted(set(learning_rates))),
        jobs=jobs,
    )
    folder, tell = Path(out), progress or Progress()
    with writing(f"comparing in {folder}"), locked(folder, f"{folder} is in use"):
        comparison = _opened(folder, request, asked, opened, tell)
        if len(request.learning_rates) > 1:
            once = replace(asked[0], seeds=1, fractions=(1.0,))
            trials = comparison.planned([once], request.learning_rates)
            comparison = _train(folder, *trials, keep_checkpoints, tell)
        planned = comparison.planned(asked, [comparison.learning_rate])
        return _train(folder, *planned, keep_checkpoints, tell)


def _opened(
    folder: Path, request: Request, asked: Sequence[Variant], corpus: Corpus, progress: Progress
) -> Comparison:
    """The comparison in the folder, or a new one, with a reference table that covers `asked`."""
    before = read_comparison(folder) if (folder / COMPARISON).is_file() else None
    foreign = [path.name for path in folder.glob("[!.]*") if path.name != RUNS]
    recipes = {variant.name: variant.recipe for variant in asked}
    if before:
        differing = differing_fields(before.request, request)
        for name in recipes.keys() & before.variants:
            changed = differing_fields(before.variants[name], recipes[name])
            differing += [f"variant '{name}': {field}" for field in changed]
        if differing:
            raise UserError(
                f"{folder} holds another comparison. It differs in: {'; '.join(differing)}. "
                "Variants, seeds and fractions can be added; for anything else choose a new folder."
            )
    elif foreign:
        raise UserError(
            f"{folder} is not empty and not a comparison (it holds {', '.join(foreign[:3])}). "
            "Choose a new folder for --out."
        )
    budget = None if request.budget is None else parse_budget(request.budget)
    reference = calibrate(
        before.reference if before else None,
        list(recipes.values()),
        corpus.folder,
        jobs=request.jobs,
        threads=before.reference.threads if before else threads_each(request.jobs),
        seconds=budget.amount if budget and budget.unit == "seconds" else None,
        say=progress.say,
    )
    by_default = Budget(amount=reference.cost(recipes[SCRATCH], "seconds"), unit="seconds")
    comparison = before or Comparison(
        request=request,
        corpus_folder=str(corpus.folder),
        entropy=corpus.manifest.validation.unigram_entropy,
        reference=reference,
        budget=budget or by_default,
        variants={},
    )
    comparison = comparison.model_copy(
        update={
            "reference": reference,
            "corpus_folder": str(corpus.folder),  # it may have been moved
            "variants": {**comparison.variants, **recipes},
        }
    )
    comparison.planned(asked, [1.0])  # a short budget is refused before anything is written
    return comparison


def _train(
    folder: Path,
    comparison: Comparison,
    recipes: Mapping[str, Recipe],
    keep_checkpoints: bool,
    progress: Progress,
) -> Comparison:
    """Train those of `recipes` (by folder) that have not finished; write results as they end."""

    def collect() -> Comparison:
        collected = comparison.collected(folder)
        collected.write(folder / COMPARISON)
        finished = set(collected.runs.loc[collected.runs["missing"] == "", "folder"])
        for name in () if keep_checkpoints else finished & recipes.keys():
            # They were there to resume from.
            shutil.rmtree(folder / RUNS / name / CHECKPOINTS, ignore_errors=True)
        return collected

    comparison = collect()
    unfinished = set(comparison.runs.loc[comparison.runs["missing"] != "", "folder"])
    todo = [folder / RUNS / name for name in recipes if name in unfinished]
    for run in todo:
        run.parent.mkdir(exist_ok=True)
        write_text(Path(f"{run}.yaml"), recipes[run.name].to_yaml())
    if todo:
        progress.say(f"{counted(len(todo), 'run')} to train")
    corpus, failures = Path(comparison.corpus_folder), []
    jobs, threads = comparison.request.jobs, comparison.reference.threads
    with closing(train_all(todo, corpus, jobs=jobs, threads=threads)) as ending:
        for done, (run, seconds, failure) in enumerate(ending, start=1):
            comparison = collect()
            failures += [failure] if failure else []
            text = failure or f"{run.name}: finished in {format_duration(seconds)}"
            progress.say(f"{text}; {counted(len(todo) - done, 'run')} left")
            progress.step(done, len(todo), "runs")
    if failures and len(failures) == len(recipes):
        raise RunError(f"No run could be trained. {failures[0]}")
    return comparison
