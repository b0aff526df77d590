"""`pretrain`: from a recipe and a corpus to a run directory with a finished model in it."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from stackbert.corpus.store import Corpus, open_corpus
from stackbert.errors import UserError
from stackbert.files import explaining_os_errors, folder_made_whole, held_folder
from stackbert.modelcard import write_model_card
from stackbert.pretraining.budget import parse_duration
from stackbert.pretraining.checkpoints import disk_errors_as_os_errors, save_model
from stackbert.pretraining.ledger import Stopwatch
from stackbert.pretraining.loop import TrainingLoop
from stackbert.pretraining.machine import (
    explaining_out_of_memory,
    keep_memory,
    pick_device,
    synchronise,
)
from stackbert.pretraining.opening import open_loop
from stackbert.pretraining.progress import Reporter, Silent
from stackbert.pretraining.ranks import Ranks, joined_ranks
from stackbert.pretraining.rundir import MODEL, Request, identity, read_record, vanished
from stackbert.pretraining.signals import StopRequest
from stackbert.pretraining.start import check_corpus, check_shares, find_start, make_start
from stackbert.pretraining.summary import RunSummary, summarise
from stackbert.pretraining.tracking import check_trackers
from stackbert.recipe import Recipe
from stackbert.vocabulary import load_vocabulary


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
    # Dropout is seeded at every step; the caller's random state is put back after.
    with (
        torch.random.fork_rng(),
        explaining_os_errors(f"training in {run}"),
        joined_ranks() as ranks,
        explaining_out_of_memory(),
        contextlib.ExitStack() as taken,
    ):
        ranks.check_equal(asked.corpus, "corpus")
        ranks.from_first(lambda: taken.enter_context(_taking(run)))
        speaker = (reporter or Silent()) if ranks.is_first else Silent()
        trackers = track if ranks.is_first else ()
        _pretrain_locked(run, asked, opened, resume, trackers, speaker, ranks)
        summary = ranks.from_first(lambda: _summary(run).to_json())
        return RunResult(run, run / MODEL, RunSummary.from_json(summary))


@contextlib.contextmanager
def _taking(run: Path) -> Iterator[None]:
    """Make the run directory, and keep other runs out of it."""
    with held_folder(run, f"training in {run}"):
        here = identity(run)
        try:
            yield
        except FileNotFoundError as error:
            if identity(run) != here:
                raise vanished(run) from error
            raise


def _pretrain_locked(
    run: Path,
    asked: Request,
    corpus: Corpus,
    resume: str,
    track: Sequence[str],
    reporter: Reporter,
    ranks: Ranks,
) -> None:
    device = pick_device()
    watch = Stopwatch(lambda: synchronise(device))
    with watch.measuring("start-up"):
        vocabulary = load_vocabulary(corpus)
        start = find_start(run, asked, resume, reporter, ranks)
        if start is not None and start.is_finished:
            return
        check_corpus(corpus, ranks)
        if start is None:
            with watch.measuring("tuning"):
                start = make_start(run, asked, corpus, vocabulary, device, reporter, ranks)
        check_shares(start.recipe, ranks.count)
    with reporter, StopRequest() as stop:
        with watch.measuring("start-up"):
            loop = open_loop(run, start, corpus, vocabulary, device, track, reporter, watch, ranks)
        try:
            loop.run_to_end(stop)
        finally:
            loop.close()
    _finish(run, loop, corpus, ranks)


def _finish(run: Path, loop: TrainingLoop, corpus: Corpus, ranks: Ranks) -> None:
    """Write the final model, whole or not at all."""
    weights = loop.trainer.whole_weights()  # of all processes, whichever writes them
    if not ranks.is_first:
        return
    recipe, record = read_record(run)
    summary: RunSummary | None = None
    with contextlib.suppress(UserError):  # of a damaged ledger; said once the model is there
        summary = summarise(run)
    with folder_made_whole(run / MODEL) as partial, disk_errors_as_os_errors():
        save_model(
            loop.trainer.model,
            partial,
            corpus.tokenizer_folder,
            recipe.longest_sequence,
            weights=weights,
        )
        write_model_card(partial, recipe, corpus.manifest, summary, record.machine)


def _summary(run: Path) -> RunSummary:
    try:
        return summarise(run)
    except UserError as error:
        raise UserError(f"{error} The model is whole all the same: {run / MODEL}.") from error
