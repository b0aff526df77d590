"""The loop of a run, at its newest whole checkpoint or at its beginning.

The run directory need be there for the first process only: the others are sent what it reads.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stackbert.corpus.store import Corpus
from stackbert.errors import UserError
from stackbert.models import create_model, model_class
from stackbert.pretraining.checkpoints import (
    CheckpointStore,
    DamagedCheckpointError,
    RunState,
    checkpoint_name,
    load_model,
    load_optimizer_state,
)
from stackbert.pretraining.counters import Counters, LogWindow
from stackbert.pretraining.evaluation import evaluation_batch
from stackbert.pretraining.ledger import LEDGER, Ledger, SilentLedger, Stopwatch
from stackbert.pretraining.loop import TrainingLoop
from stackbert.pretraining.machine import working_precision
from stackbert.pretraining.progress import Reporter
from stackbert.pretraining.ranks import Ranks
from stackbert.pretraining.rundir import CHECKPOINTS
from stackbert.pretraining.start import Start, batch_plan
from stackbert.pretraining.tracking import open_trackers
from stackbert.pretraining.trainer import Trainer
from stackbert.recipe import Recipe
from stackbert.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stackbert.pretraining.optimizers import NamedState


def open_loop(
    run: Path,
    start: Start,
    corpus: Corpus,
    vocabulary: Vocabulary,
    device: torch.device,
    track: Sequence[str],
    reporter: Reporter,
    watch: Stopwatch,
    ranks: Ranks,
) -> TrainingLoop:
    """Build the loop of a run.

    Raises:
        UserError: every checkpoint is damaged, or the ledger is shorter than the checkpoint says.
    """
    recipe = start.recipe
    store = CheckpointStore(run / CHECKPOINTS)
    saved = _newest(store, reporter, ranks)
    state: NamedState = {}
    counters, window, keep = Counters(), LogWindow(), 0
    if saved is None:
        model = _fresh(recipe, vocabulary, recipe.stages[0].depth)
    else:
        folder = store.folder / checkpoint_name(saved.step)
        model, state = _restored(folder, recipe, vocabulary, saved.depth, ranks)
        counters = Counters(saved.step, saved.tokens, saved.flops, saved.last_loss, saved.skipped)
        window = LogWindow(**saved.window)
        keep = saved.ledger_bytes
        watch.carry_over(saved.seconds)
        reporter.say(f"resuming at step {saved.step:,} from {folder}")
    ledger = Ledger(run / LEDGER, keep_bytes=keep) if ranks.is_first else SilentLedger()
    trainer = Trainer(
        model,
        recipe.optimizer,
        device=device,
        precision=working_precision(recipe),
        micro_batch=recipe.batch.micro_batch,
        seed=recipe.seed,
        state=state,
        compile=recipe.compile is True,
        careful=recipe.skip_bad_steps > 0,
        ranks=ranks,
        engine=recipe.engine,
    )
    if ranks.count > 1:
        held = "the model cut into pieces" if trainer.is_cut else "each with a copy of the model"
        reporter.say(f"{ranks.count} processes share each step, {held}")
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
            first=0 if saved is None else counters.step + 1,
            config=recipe.model_dump(mode="json"),
        ),
        reporter=reporter,
        matrix_rate=start.matrix_rate,
        ranks=ranks,
    )


def _newest(store: CheckpointStore, reporter: Reporter, ranks: Ranks) -> RunState | None:
    def look() -> dict[str, Any] | None:
        store.folder.mkdir(exist_ok=True)
        store.tidy()
        found, problems = store.newest()
        for problem in problems:
            reporter.say(f"a damaged checkpoint was passed over: {problem}")
        return None if found is None else asdict(found[1])

    told = ranks.from_first(look)
    return None if told is None else RunState(**told)


def _fresh(recipe: Recipe, vocabulary: Vocabulary, depth: int) -> "PreTrainedModel":
    return create_model(
        recipe.model,
        depth=depth,
        vocabulary=vocabulary,
        sequence_length=recipe.longest_sequence,
        next_sentence=recipe.objective.next_sentence,
        seed=recipe.seed,
    )


def _restored(
    folder: Path, recipe: Recipe, vocabulary: Vocabulary, depth: int, ranks: Ranks
) -> "tuple[PreTrainedModel, NamedState]":
    """Model and optimiser state of a checkpoint, which the first process reads."""
    read: dict[str, Any] = {}

    def load() -> dict[str, dict[str, tuple[list[int], str]]]:
        kind = model_class(recipe.model.type, next_sentence=recipe.objective.next_sentence)
        try:
            read["model"] = load_model(folder, kind)
            read["state"] = load_optimizer_state(folder)
        except DamagedCheckpointError as error:
            raise UserError(f"{error}. Remove {folder} to go on from the one before.") from error
        return {
            name: {key: (list(t.shape), str(t.dtype)) for key, t in tensors.items()}
            for name, tensors in read["state"].items()
        }

    layout = ranks.from_first(load)
    if not ranks.is_first:
        read["model"] = _fresh(recipe, vocabulary, depth)
        read["state"] = {
            name: {
                key: torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
                for key, (shape, dtype) in tensors.items()
            }
            for name, tensors in layout.items()
        }
    model: PreTrainedModel = read["model"]
    state: NamedState = read["state"]
    ranks.spread({name: p.data for name, p in model.named_parameters()})
    for name in layout:
        ranks.spread({key: state[name][key] for key in layout[name]})
    return model, state
