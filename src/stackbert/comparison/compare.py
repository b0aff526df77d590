"""`compare`: the claim put to a fair test on the user's own text and machine."""

import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from stackbert.batches.batches import validation_entropy
from stackbert.comparison.calibration import calibrate
from stackbert.comparison.processes import threads_each, train_all
from stackbert.comparison.reference import Budget, parse_budgets
from stackbert.comparison.results import COMPARISON, RUNS, Comparison, Request, read_comparison
from stackbert.comparison.variants import SCRATCH, Variant, growths_of, load_variants, refuse_twins
from stackbert.corpus.store import Corpus, open_corpus
from stackbert.errors import RunError, UserError
from stackbert.files import locked, refuse_foreign, write_text, writing
from stackbert.growth.operators import BUILT_IN
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

    Every depth that a variant passes through is trained for the whole budget, too: a control.

    Called again with the same `out`, it resumes: finished runs are kept, and more variants, seeds
    and fractions may be asked for.

    Args:
        recipe: stages of rising depth.
        corpus: a folder that `build_corpus` made, or an opened corpus.
        out: folder of the comparison.
        variants: growth operators or YAML files; "scratch" and the other depths are always there.
            "stack@0.5" lets `stack` try half of the recipe's learning rates.
        seeds: runs of each variant; below 2 there is no interval, 3 are few.
        budget: of each run: "30m" of training, "2000steps", "4e15flops", or several: "4m,12m,36m".
            By default the time that scratch takes for the recipe's steps.
        steps: first scale the recipe to this many steps.
        fractions: shares of the budget that variants but the controls are run at.
        learning_rates: factors of the recipe's rates; of several, each variant tries all with one
            seed at the smallest budget, and its best counts.
        jobs: runs side by side; the cores are divided.
        keep_checkpoints: of finished runs, those at the end of each stage among them.
        progress: hears of every run that ends.

    Raises:
        UserError: wrong input; nothing was trained.
        RunError: no run could be trained. One that fails alone is named in the verdict.
        Interrupted: Ctrl-C or SIGTERM.
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
    options = {"learning_rates": learning_rates, "shares": parse_budgets(budget)[1]}
    asked = load_variants(variants, recipe, seeds=seeds, fractions=fractions, **options)
    for operator in {variant.recipe.growth.operator for variant in asked}.difference(BUILT_IN):
        raise UserError(
            f"compare trains in processes of their own, which do not know '{operator}', as it is "
            "registered in this one. Give its layers in a variant's file (growth.layers)."
        )
    opened = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
    opened.verify()
    request = Request(recipe=recipe, corpus=opened.fingerprint, budget=budget, jobs=jobs)
    folder, tell = Path(out), progress or Progress()
    with writing(f"comparing in {folder}"), locked(folder, f"{folder} is in use"):
        comparison = _opened(folder, request, asked, opened, tell)
        for trials in (True, False):
            planned = comparison.planned(asked, trials=trials)
            comparison = _train(folder, *planned, keep_checkpoints, tell)
        return comparison


def _opened(
    folder: Path, request: Request, asked: Sequence[Variant], corpus: Corpus, progress: Progress
) -> Comparison:
    before = read_comparison(folder) if (folder / COMPARISON).is_file() else None
    refuse_foreign(folder, Comparison.what, COMPARISON)
    recipes = dict(before.variants) if before else {}
    differing = differing_fields(before.request, request) if before else []
    for variant in asked:
        known = recipes.setdefault(variant.name, variant.recipe)
        changed = differing_fields(known, variant.recipe)
        differing += [f"variant '{variant.name}': {field}" for field in changed]
    if differing:
        raise UserError(
            f"{folder} holds another comparison. It differs in: {'; '.join(differing)}. "
            "Variants, seeds and fractions can be added; for anything else choose a new folder."
        )
    refuse_twins(recipes)
    budget, shares = parse_budgets(request.budget)
    reference = calibrate(
        before.reference if before else None,
        [variant.recipe for variant in asked],
        corpus.folder,
        jobs=request.jobs,
        threads=before.reference.threads if before else threads_each(request.jobs),
        seconds=budget.amount if budget and budget.unit == "seconds" else None,
        say=progress.say,
    )
    by_default = Budget(amount=reference.cost(recipes[SCRATCH], "seconds"), unit="seconds")
    comparison = Comparison(
        request=request,
        corpus_folder=str(corpus.folder),
        entropy=validation_entropy(asked[0].recipe, corpus),
        reference=reference,
        budget=budget or by_default,
        shares=shares,
        variants=recipes,
        **({"runs": before.runs, "evaluations": before.evaluations} if before else {}),
    )
    comparison.planned(asked)  # a short budget is refused before anything is written
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
    unfinished = comparison.runs[comparison.runs["missing"] != ""]
    todo = [folder / RUNS / name for name in recipes if name in set(unfinished["folder"])]
    for run in todo:
        run.parent.mkdir(exist_ok=True)
        write_text(Path(f"{run}.yaml"), recipes[run.name].to_yaml())
    if not todo:
        return comparison
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
