"""`pretrain`: from a recipe and a corpus to a run directory with a finished model in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from stackbert.batches import BatchPlan, StageShape
from stackbert.corpus.store import Corpus, open_corpus
from stackbert.errors import UserError
from stackbert.files import explaining_os_errors, folder_made_whole, locked
from stackbert.modelcard import write_model_card
from stackbert.models import create_model, model_class
from stackbert.pretraining.budget import measure, parse_duration, scaled_to
from stackbert.pretraining.checkpoints import (
    CheckpointStore,
    DamagedCheckpointError,
    disk_errors_as_os_errors,
    load_model,
    load_optimizer_state,
    save_model,
)
from stackbert.pretraining.evaluation import evaluation_batch
from stackbert.pretraining.ledger import LEDGER, Ledger, Stopwatch
from stackbert.pretraining.loop import Counters, LogWindow, TrainingLoop
from stackbert.pretraining.machine import (
    describe,
    explaining_out_of_memory,
    keep_memory,
    pick_device,
    synchronise,
    working_precision,
)
from stackbert.pretraining.progress import Reporter, Silent
from stackbert.pretraining.rundir import (
    CHECKPOINTS,
    MODEL,
    Request,
    RunRecord,
    check_may_begin,
    check_same_request,
    is_run,
    read_record,
    write_recipe,
    write_record,
)
from stackbert.pretraining.signals import StopRequest
from stackbert.pretraining.summary import RunSummary, summarise
from stackbert.pretraining.tracking import check_trackers, open_trackers
from stackbert.pretraining.trainer import Trainer
from stackbert.pretraining.tuning import settle
from stackbert.recipe import Recipe
from stackbert.vocabulary import Vocabulary, load_vocabulary


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    folder: Path
    model_folder: Path
    """The final model as a Hugging Face checkpoint."""
    summary: RunSummary


def pretrain(
    recipe: Recipe,
    *,
    corpus: str | Path | Corpus,
    out: str | Path,
    budget: str | None = None,
    steps: int | None = None,
    resume: Literal["auto", "never"] = "auto",
    track: Sequence[str] = (),
    reporter: Reporter | None = None,
) -> RunResult:
    """Train a model by progressive stacking (Gong et al., ICML 2019, Algorithm 1).

    Every step is a function of the recipe, the corpus and the step's number, so a run that was
    killed and is called again ends with the same weights: to the last bit on the same CPU, up to
    rounding on a GPU, whose fused attention adds up in no fixed order.

    Args:
        recipe: from `load_recipe`.
        corpus: a folder that `build_corpus` made, or an opened corpus.
        out: the run directory; an unfinished run there is continued.
        budget: wall-clock time such as "30m": the stages are scaled to fit, each keeping its
            share, by seconds per step measured here.
        steps: scale to this many steps instead.
        resume: "never" refuses a folder that holds a run.
        track: of "tensorboard", "wandb".
        reporter: hears of progress; silent by default.

    Returns:
        Where the model is, and the table of stages.

    Raises:
        UserError: a wrong recipe, corpus or folder; nothing was trained.
        RunError: the loss is not finite, the disk or a GPU's memory is full; the last good
            checkpoint is kept.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was written, the same call goes on.

    Example:
        >>> import stackbert as sb
        >>> recipe = sb.load_recipe("small-cpu")
        >>> result = sb.pretrain(recipe, corpus="corpus", out="run")  # doctest: +SKIP
    """
    if budget is not None and steps is not None:
        raise UserError("Give a budget or a number of steps, not both.")
    check_trackers(track)
    if budget is not None:
        parse_duration(budget)
    opened = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
    run = Path(out)
    keep_memory()
    asked = Request(recipe, budget, steps, opened.manifest.fingerprint)
    with explaining_os_errors(f"training in {run}"):
        run.mkdir(parents=True, exist_ok=True)
        # Dropout is seeded at every step; the caller's random state is put back after.
        with (
            locked(run / ".lock", f"{run} is in use"),
            torch.random.fork_rng(),
            explaining_out_of_memory(),
        ):
            return _pretrain_locked(run, asked, opened, resume, track, reporter or Silent())


def batch_plan(recipe: Recipe, corpus: Corpus, vocabulary: Vocabulary) -> BatchPlan:
    """The training batches of a recipe on a corpus, as a function of the step."""
    stages = [recipe.resolved_stage(index) for index in range(len(recipe.stages))]
    return BatchPlan(
        corpus.train,
        vocabulary,
        [StageShape(s.steps, s.sequences, s.sequence_length, s.mask_rate) for s in stages],
        seed=recipe.seed,
        next_sentence=recipe.objective.next_sentence,
    )


def _pretrain_locked(
    run: Path,
    asked: Request,
    corpus: Corpus,
    resume: str,
    track: Sequence[str],
    reporter: Reporter,
) -> RunResult:
    device = pick_device()
    watch = Stopwatch(lambda: synchronise(device))
    with watch.measuring("start-up"):
        vocabulary = load_vocabulary(corpus)
        if is_run(run):
            if resume == "never":
                raise UserError(
                    f"{run} holds a run already. Resume it (--resume auto) or choose a new folder."
                )
            recipe, record = read_record(run)
            check_same_request(run, record.request, asked)
            write_recipe(run, recipe)
            if (run / MODEL).exists():
                reporter.say(f"{run} is finished already; its model is {run / MODEL}.")
                return RunResult(run, run / MODEL, summarise(run))
        else:
            check_may_begin(run)
            with watch.measuring("tuning"):
                recipe, record = _begin(run, asked, corpus, vocabulary, device, reporter)
    with reporter, StopRequest() as stop:
        with watch.measuring("start-up"):
            loop = _open_loop(
                run, recipe, record, corpus, vocabulary, device, track, reporter, watch
            )
        try:
            loop.run_to_end(stop)
        finally:
            loop.close()
    summary = summarise(run)
    with folder_made_whole(run / MODEL) as partial, disk_errors_as_os_errors():
        save_model(loop.trainer.model, partial, corpus.tokenizer_folder, recipe.longest_sequence)
        write_model_card(partial, recipe, corpus.manifest, summary, record.machine)
    return RunResult(run, run / MODEL, summary)


def _begin(
    run: Path,
    asked: Request,
    corpus: Corpus,
    vocabulary: Vocabulary,
    device: torch.device,
    reporter: Reporter,
) -> tuple[Recipe, RunRecord]:
    """Settle what the request left open (precision, micro-batches, compilation, steps)."""
    recipe = asked.recipe
    with torch.device("meta"):  # a wrong model field is found before anything is written
        create_model(
            recipe.model,
            depth=recipe.stages[-1].depth,
            vocabulary=vocabulary,
            sequence_length=recipe.longest_sequence,
            next_sentence=recipe.objective.next_sentence,
        )
    if asked.steps is not None:
        recipe = recipe.scaled(asked.steps)
    seconds = None if asked.budget is None else parse_duration(asked.budget)
    plan = batch_plan(recipe, corpus, vocabulary)
    settled = settle(recipe, vocabulary, plan, device=device, seconds=seconds)
    for note in settled.notes:
        reporter.say(note)
    recipe = settled.recipe
    if seconds is not None:
        reporter.say("measuring seconds per step at every depth …")
        precision = working_precision(recipe)
        timing = measure(recipe, corpus, vocabulary, plan, device=device, precision=precision)
        recipe = scaled_to(recipe, timing, seconds)
        pace = ", ".join(
            f"{1000 * s:.0f} ms at depth {stage.depth}"
            for s, stage in zip(timing.step, recipe.stages, strict=True)
        )
        reporter.say(f"{recipe.total_steps:,} steps fit into {asked.budget}: a step takes {pace}")
    record = RunRecord(asked, str(corpus.folder), describe(device), settled.matrix_rate)
    write_record(run, recipe, record)
    return recipe, record


def _open_loop(
    run: Path,
    recipe: Recipe,
    record: RunRecord,
    corpus: Corpus,
    vocabulary: Vocabulary,
    device: torch.device,
    track: Sequence[str],
    reporter: Reporter,
    watch: Stopwatch,
) -> TrainingLoop:
    """Build the loop at the newest whole checkpoint, or at the beginning."""
    (run / CHECKPOINTS).mkdir(exist_ok=True)
    store = CheckpointStore(run / CHECKPOINTS)
    store.tidy()
    found, problems = store.newest()
    for problem in problems:
        reporter.say(f"a damaged checkpoint was passed over: {problem}")
    next_sentence = recipe.objective.next_sentence
    counters, window, keep = Counters(), LogWindow(), 0
    if found is None:
        state = None
        model = create_model(
            recipe.model,
            depth=recipe.stages[0].depth,
            vocabulary=vocabulary,
            sequence_length=recipe.longest_sequence,
            next_sentence=next_sentence,
            seed=recipe.seed,
        )
    else:
        folder, saved = found
        try:
            model = load_model(folder, model_class(recipe.model.type, next_sentence=next_sentence))
            state = load_optimizer_state(folder)
        except DamagedCheckpointError as error:
            raise UserError(f"{error}. Remove {folder} to go on from the one before.") from error
        counters = Counters(saved.step, saved.tokens, saved.flops, saved.last_loss)
        window = LogWindow(**saved.window)
        keep = saved.ledger_bytes
        watch.carry_over(saved.seconds)
        reporter.say(f"resuming at step {saved.step:,} from {folder}")
    ledger = Ledger(run / LEDGER, keep_bytes=keep)
    trainer = Trainer(
        model,
        recipe.optimizer,
        device=device,
        precision=working_precision(recipe),
        micro_batch=recipe.batch.micro_batch,
        seed=recipe.seed,
        state=state,
        compile=recipe.compile is True,
    )
    return TrainingLoop(
        run,
        recipe,
        corpus,
        batch_plan(recipe, corpus, vocabulary),
        evaluation_batch(recipe, corpus, vocabulary),
        trainer,
        counters,
        window,
        ledger=ledger,
        watch=watch,
        store=store,
        trackers=open_trackers(
            track,
            run,
            first=counters.step + 1 if found else 0,
            config=recipe.model_dump(mode="json"),
        ),
        reporter=reporter,
        matrix_rate=record.matrix_rate,
    )
