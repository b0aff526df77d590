"""`compare`: the claim put to a fair test on the user's own text and machine."""

import functools
import shutil
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path

from stackbert.batches.batches import validation_entropy
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

    Example:
        >>> import stackbert as sb
        >>> recipe = sb.load_recipe("small-cpu")
        >>> comparison = sb.compare(recipe, corpus="corpus", out="out")  # doctest: +SKIP
        >>> print(*comparison.verdict(), sep="\\n")  # doctest: +SKIP
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
        comparison = _started(folder, request, asked, opened, tell)
        train = functools.partial(_train, folder, opened, keep_checkpoints, tell)
        if len(request.learning_rates) > 1:
            once = asked[0].model_copy(update={"seeds": 1, "fractions": (1.0,)})
            comparison = train(*comparison.planned([once], request.learning_rates))
            tell.say(
                f"scratch does best at {comparison.learning_rate:g} times the recipe's learning "
                "rates; all variants take that"
            )
        return train(*comparison.planned(asked, [comparison.learning_rate]))


def _started(
    folder: Path, request: Request, asked: Sequence[Variant], corpus: Corpus, progress: Progress
) -> Comparison:
    """The comparison in the folder, or a new one, with a reference table that covers `asked`."""
    before = read_comparison(folder) if (folder / COMPARISON).is_file() else None
    if before:
        differing = differing_fields(before.request, request)
        for variant in asked:
            there = before.variants.get(variant.name, variant.recipe)
            changed = differing_fields(there, variant.recipe)
            differing += [f"variant '{variant.name}': {field}" for field in changed]
        if differing:
            raise UserError(
                f"{folder} holds another comparison. It differs in: {'; '.join(differing)}. "
                "Variants, seeds and fractions can be added; for anything else choose a new folder."
            )
    elif foreign := [path.name for path in folder.glob("[!.]*") if path.name != RUNS]:
        raise UserError(
            f"{folder} is not empty and not a comparison (it holds {', '.join(foreign[:3])}). "
            "Choose a new folder for --out."
        )
    budget = None if request.budget is None else parse_budget(request.budget)
    reference = calibrate(
        before.reference if before else None,
        [variant.recipe for variant in asked],
        corpus.folder,
        jobs=request.jobs,
        threads=before.reference.threads if before else threads_each(request.jobs),
        seconds=budget.amount if budget and budget.unit == "seconds" else None,
        say=progress.say,
    )
    by_default = reference.cost(asked[0].recipe, "seconds")
    comparison = before or Comparison(
        request=request,
        corpus_folder=str(corpus.folder),
        entropy=validation_entropy(asked[0].recipe, corpus),
        reference=reference,
        budget=budget or Budget(amount=by_default, unit="seconds"),
        variants={},
    )
    recipes = {variant.name: variant.recipe for variant in asked}
    changes = {"reference": reference, "variants": {**comparison.variants, **recipes}}
    comparison = comparison.model_copy(update=changes)
    comparison.planned(asked, [1.0])  # a short budget is refused before anything is written
    return comparison


def _train(
    folder: Path,
    corpus: Corpus,
    keep_checkpoints: bool,
    progress: Progress,
    comparison: Comparison,
    recipes: Mapping[str, Recipe],
) -> Comparison:
    """Train those of `recipes` (by folder) that have not finished; write results as they end."""

    def collect() -> tuple[Comparison, list[str]]:
        """All that the runs gave so far, and those of `recipes` that have not finished."""
        collected = comparison.collected(folder)
        collected.write(folder / COMPARISON)
        finished = set(collected.runs.loc[collected.runs["missing"] == "", "folder"])
        for name in () if keep_checkpoints else finished & recipes.keys():
            # They were there to resume from.
            shutil.rmtree(folder / RUNS / name / CHECKPOINTS, ignore_errors=True)
        return collected, [name for name in recipes if name not in finished]

    comparison, names = collect()
    todo = [folder / RUNS / name for name in names]
    for run in todo:
        run.parent.mkdir(exist_ok=True)
        write_text(run.with_name(run.name + ".yaml"), recipes[run.name].to_yaml())
    if todo:
        progress.say(f"{counted(len(todo), 'run')} to train")
    jobs, threads = comparison.request.jobs, comparison.reference.threads
    failures = []
    try:
        with closing(train_all(todo, corpus.folder, jobs=jobs, threads=threads)) as ending:
            for done, (run, seconds, failure) in enumerate(ending, start=1):
                comparison, _ = collect()
                failures += [failure] if failure else []
                text = failure or f"{run.name}: finished in {format_duration(seconds)}"
                progress.say(f"{text}; {counted(len(todo) - done, 'run')} left")
                progress.step(done, len(todo), "runs")
    finally:
        comparison, _ = collect()
    if failures and len(failures) == len(recipes):
        raise RunError(f"No run could be trained. {failures[0]}")
    return comparison
