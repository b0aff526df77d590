"""`pretrain`: from a recipe and a corpus to a run directory with a finished model in it."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from stackbert.batches.batches import (
    Batch,
    data_sentences,
    training_plan,
    validation_batch,
    validation_entropy,
)
from stackbert.corpus.store import Corpus, open_corpus
from stackbert.errors import UserError
from stackbert.files import locked, new_folder, reading, writing
from stackbert.machine import (
    describe,
    explaining_out_of_memory,
    keep_memory,
    pick_device,
    synchronise,
    working_precision,
)
from stackbert.model import model_class
from stackbert.model_files import read_config, save_model
from stackbert.pretraining.autotune import Tuned, autotune, measure, scaled_to
from stackbert.pretraining.checkpoints import Checkpoints, CheckpointState, checkpoint_name
from stackbert.pretraining.distributed import World, init_distributed
from stackbert.pretraining.ledger import LEDGER, Ledger, Stopwatch, read_ledger, stage_table
from stackbert.pretraining.loop import Run, train
from stackbert.pretraining.model_card import model_card
from stackbert.pretraining.optimizers import NamedState
from stackbert.pretraining.record import (
    CHECKPOINTS,
    MODEL,
    Request,
    RunRecord,
    check_new,
    check_same,
    is_run,
    read_run,
    write_run,
)
from stackbert.pretraining.signals import StopRequest
from stackbert.pretraining.tracking import TRACKERS, open_trackers
from stackbert.pretraining.trainer import Trainer, recipe_model
from stackbert.progress import Progress
from stackbert.recipe import Recipe
from stackbert.tables import Frame, table_text
from stackbert.units import parse_duration

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["CHECKPOINTS", "MODEL", "RunRecord", "RunResult", "is_run", "pretrain", "read_run"]


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    folder: Path
    model_folder: Path
    """The final model as a Hugging Face checkpoint."""
    stages: Frame
    """What each stage cost and brought, as `stage_table` gives it."""
    loss: float
    """The last validation loss, in nats."""
    wall: dict[str, float]
    """Seconds by kind of work."""

    @property
    def seconds(self) -> float:
        """Seconds of training."""
        return float(self.stages.seconds.sum())

    @property
    def scratch_seconds(self) -> float:
        """What as many steps at the last stage's speed would have taken: the deep model alone."""
        last = self.stages.iloc[-1]
        return float(self.stages.steps.sum() * last.seconds / last.steps)

    def table(self) -> str:
        """The stages as text, and where the time went in a sentence or two."""
        shown = self.stages.drop(columns="flops")
        shown.insert(4, "share", self.stages.seconds / self.seconds)
        shown.columns = [*shown.columns[:5], "MFU", "loss after growth", "loss at the end"]
        forms = ("{}", "{:,}", "{:,}", "{:,.1f}", "{:.0%}", "{:.0%}", "{:.3f}", "{:.3f}")
        formats = dict(zip(shown.columns, forms, strict=True))
        lines = [table_text(shown, f"Stages of {self.folder}", formats)]
        if len(self.stages) > 1:
            lines.append(
                f"{self.seconds:,.0f} s of training; as many steps at depth "
                f"{self.stages.depth.iloc[-1]} from the start would have taken "
                f"{self.scratch_seconds:,.0f} s ({self.seconds / self.scratch_seconds:.0%})."
            )
        total = sum(self.wall.values())
        shares = sorted(self.wall.items(), key=lambda item: -item[1])
        parts = ", ".join(f"{kind} {s / total:.1%}" for kind, s in shares if s >= 0.0005 * total)
        return "\n".join([*lines, f"Of {total:,.0f} s in all: {parts}."])


def pretrain(
    recipe: Recipe,
    *,
    corpus: str | Path | Corpus,
    out: str | Path,
    budget: str | None = None,
    steps: int | None = None,
    resume: Literal["auto", "never"] = "auto",
    track: Sequence[str] = (),
    progress: Progress | None = None,
) -> RunResult:
    """Train a model by progressive stacking (Gong et al., ICML 2019, Algorithm 1).

    Every step is a function of the recipe, the corpus and the step's number. A run that was killed
    and is called again ends with the same weights: to the last bit on the same CPU, up to rounding
    on a GPU, whose fused attention adds up in no fixed order.

    Args:
        recipe: from `load_recipe`.
        corpus: a folder that `build_corpus` made, or an opened corpus.
        out: the run directory; an unfinished run there is resumed.
        budget: wall-clock time such as "30m": the stages are scaled to fit, each keeping its
            share, by seconds per step measured here.
        steps: scale to this many steps instead.
        resume: "never" refuses a folder that holds a run.
        track: of "tensorboard", "wandb".
        progress: hears of the run's progress; silent by default.

    Raises:
        UserError: a wrong recipe, corpus or folder; nothing was trained.
        RunError: the loss is not finite, the disk or a GPU's memory is full; the last good
            checkpoint is kept.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; a checkpoint was written, the same call resumes.

    Example:
        >>> import stackbert as sb
        >>> recipe = sb.load_recipe("small-cpu")
        >>> result = sb.pretrain(recipe, corpus="corpus", out="run")  # doctest: +SKIP
    """
    if budget is not None and steps is not None:
        raise UserError("Give a budget or a number of steps, not both.")
    if budget is not None:
        parse_duration(budget)
    for name in set(track) - set(TRACKERS):
        raise UserError(f"--track {name}: choose from {', '.join(TRACKERS)}.")
    corpus = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
    asked = Request(recipe=recipe, budget=budget, steps=steps, corpus=corpus.fingerprint)
    folder = Path(out)
    keep_memory()
    with (
        torch.random.fork_rng(),  # every step seeds dropout
        writing(f"training in {folder}"),
        init_distributed() as world,
        explaining_out_of_memory(),
        contextlib.ExitStack() as stack,
    ):
        world.broadcast_object(lambda: stack.enter_context(locked(folder, f"{folder} is in use")))
        progress = (progress or Progress()) if world.is_main else Progress()
        device = pick_device()
        watch = Stopwatch(lambda: synchronise(device))
        with watch.measuring("start-up"):
            record = world.broadcast_object(lambda: _find(folder, asked, resume), RunRecord | None)
            if world.broadcast_object((folder / MODEL).exists):
                progress.say(f"{folder} is finished already; its model is {folder / MODEL}.")
                return _result(folder, world)
            fingerprint = world.broadcast_object(lambda: corpus.fingerprint)
            world.all_pass(lambda: _check(recipe, corpus, fingerprint, world))
            if record is None:
                with watch.measuring("tuning"):
                    record = _tune(asked, corpus, device, progress, world)
                if world.is_main:
                    write_run(folder, record)
            for sentence in data_sentences(record.recipe, corpus):
                progress.say(sentence)
        with progress, StopRequest() as stop:
            with watch.measuring("start-up"):
                run = _open(folder, record, corpus, device, track, progress, watch, world)
            try:
                with contextlib.closing(run):
                    train(run, stop)
            except (OSError, UserError):
                if run.ledger is not None:
                    run.ledger.check_place()  # a folder that is gone explains either
                raise
        weights = run.trainer.parallel.full_weights()
        if world.is_main:
            _export(run, weights, record, corpus)
        return _result(folder, world)


def _find(folder: Path, asked: Request, resume: str) -> RunRecord | None:
    """The record of the run in the folder, if it is the one asked for; None if it is empty."""
    if not is_run(folder):
        check_new(folder)
        return None
    if resume == "never":
        raise UserError(
            f"{folder} holds a run already. Resume it (--resume auto) or choose a new folder."
        )
    record = read_run(folder)
    check_same(folder, record, asked)
    return record


def _check(recipe: Recipe, corpus: Corpus, fingerprint: str, world: World) -> None:
    """Refuse rows that the processes cannot share, and a corpus that differs or is damaged."""
    for index in range(len(recipe.stages)):
        rows = recipe.stage(index).sequences
        if rows % world.size:
            raise UserError(
                f"Stage {index + 1} has {rows} rows a step (batch.sequences), which {world.size} "
                "processes cannot share equally. Take a number of processes that divides them."
            )
    if corpus.fingerprint != fingerprint:
        raise UserError(
            f"{corpus.folder} differs between processes (fingerprint {corpus.fingerprint} here, "
            f"{fingerprint} in the first one). Give every process the same corpus."
        )
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one process of each machine is enough
        corpus.verify()


def _tune(
    asked: Request, corpus: Corpus, device: torch.device, progress: Progress, world: World
) -> RunRecord:
    """The record of a new run: the request's recipe with nothing left open."""
    seconds = None if asked.budget is None else parse_duration(asked.budget)
    recipe = asked.recipe if asked.steps is None else asked.recipe.scaled(asked.steps)

    def tune() -> Tuned:
        with torch.device("meta"):  # a wrong model field is found before anything is written
            recipe_model(recipe, corpus.vocabulary, recipe.stages[-1].depth)
        return autotune(
            recipe,
            corpus.vocabulary,
            training_plan(recipe, corpus),
            device=device,
            seconds=seconds,
            world_size=world.size,
        )

    tuned = world.broadcast_object(tune, Tuned)
    for note in tuned.notes:
        progress.say(note)
    recipe = tuned.recipe
    if seconds is not None:
        recipe = _fitted(recipe, seconds, corpus, device, progress, world)
        progress.say(f"{recipe.total_steps:,} steps fit into {asked.budget}")
    return RunRecord(
        request=asked,
        recipe=recipe,
        corpus_folder=str(corpus.folder),
        machine=describe(device) | ({"processes": world.size} if world.size > 1 else {}),
        matrix_rate=tuned.matrix_rate,
    )


def _fitted(
    recipe: Recipe,
    seconds: float,
    corpus: Corpus,
    device: torch.device,
    progress: Progress,
    world: World,
) -> Recipe:
    """The recipe over as many steps as fit into a budget, by a step's time at every depth."""
    progress.say("measuring seconds per step at every depth …")
    plan = training_plan(recipe, corpus)

    def batch(stage: int, turn: int) -> Batch:
        step = recipe.boundaries[stage] + min(turn, recipe.stages[stage].steps - 1)
        return plan.batch(step, world.rank, world.size)

    validation = validation_batch(recipe, corpus)
    timing = measure(recipe, batch, validation, corpus.vocabulary, device=device, world=world)
    # Rank 0's clock decides for all.
    scaled: Recipe = world.broadcast_object(lambda: scaled_to(recipe, timing, seconds), Recipe)
    pace = ", ".join(
        f"{1000 * step:.0f} ms at depth {stage.depth}"
        for step, stage in zip(timing.step, recipe.stages, strict=True)
    )
    progress.say(f"a step takes {pace}")
    return scaled


def _open(
    folder: Path,
    record: RunRecord,
    corpus: Corpus,
    device: torch.device,
    track: Sequence[str],
    progress: Progress,
    watch: Stopwatch,
    world: World,
) -> Run:
    """The run at its newest whole checkpoint, or at its beginning.

    Only rank 0 looks into the run directory, which may be on its machine alone.
    """
    recipe = record.recipe
    checkpoints = Checkpoints(folder / CHECKPOINTS, recipe, corpus.tokenizer_folder)
    state = world.broadcast_object(lambda: checkpoints.newest(progress.say), CheckpointState | None)
    if state is None:
        state, optimizer_state = CheckpointState.at_start(recipe.stages[0].depth), NamedState()
        model = recipe_model(recipe, corpus.vocabulary, state.depth, seed=recipe.seed)
    else:
        watch.carry_over(state.seconds)
        model, optimizer_state = _load(checkpoints, state.counters.step, recipe, world)
        progress.say(f"resuming at step {state.counters.step:,} of {recipe.total_steps:,}")
    trainer = Trainer(
        model,
        recipe.optimizer,
        device=device,
        precision=working_precision(recipe),
        micro_batch=recipe.batch.micro_batch,
        seed=recipe.seed,
        state=optimizer_state,
        compile=recipe.compile is True,
        check_finite=recipe.skip_bad_steps > 0,
        world=world,
        engine=recipe.engine,
    )
    if world.size > 1:
        held = "a shard" if trainer.parallel.is_sharded else "a copy"
        progress.say(f"{world.size} processes share each step, each with {held} of the model")
    return Run(
        folder=folder,
        recipe=recipe,
        plan=training_plan(recipe, corpus),
        validation=validation_batch(recipe, corpus),
        trainer=trainer,
        counters=state.counters,
        checkpoints=checkpoints,
        ledger=Ledger(folder / LEDGER, keep_bytes=state.ledger_bytes) if world.is_main else None,
        watch=watch,
        trackers=open_trackers(track, folder, state.counters.step, recipe) if world.is_main else [],
        progress=progress,
        matrix_rate=record.matrix_rate * world.size,
        world=world,
    )


def _load(
    checkpoints: Checkpoints, step: int, recipe: Recipe, world: World
) -> "tuple[PreTrainedModel, NamedState]":
    """Model and optimizer state of a checkpoint, which rank 0 reads and sends to the others."""
    folder = checkpoints.folder / checkpoint_name(step)
    config = world.broadcast_object(lambda: read_config(folder))
    tensors = world.broadcast(lambda: checkpoints.load(step))
    kind = model_class(recipe.model.type, next_sentence=recipe.objective.next_sentence)
    config_class: Any = kind.config_class
    with reading(folder / "config.json"):
        model = kind(config_class.from_dict(config)).train()
    parameters, state = dict(model.named_parameters()), NamedState()
    for flat, tensor in tensors.items():
        name, _, key = flat.rpartition("|") if "|" in flat else (flat, "", "")
        if name not in parameters or (tensor.ndim and tensor.shape != parameters[name].shape):
            raise UserError(f"{folder} does not fit its config.json: {flat} has no place in it.")
        if key:
            state.setdefault(name, {})[key] = tensor
    for name, parameter in parameters.items():
        if name not in tensors or name not in state:
            raise UserError(f"{folder} lacks {name}, in its weights or its optimizer's state.")
        # Copied into fresh memory: loaded tensors look into a mapped file at any offset, and some
        # CPU kernels round differently there.
        parameter.data.copy_(tensors[name])
    return model, state


def _export(run: Run, weights: dict[str, Tensor], record: RunRecord, corpus: Corpus) -> None:
    stages = None
    with contextlib.suppress(UserError):  # a damaged ledger, which is said when the model is there
        stages = stage_table(run.folder)
    with new_folder(run.folder / MODEL) as folder:
        save_model(
            run.trainer.model,
            folder,
            tokenizer=corpus.tokenizer_folder,
            sequence_length=run.recipe.longest_sequence,
            weights=weights,
        )
        entropy = validation_entropy(run.recipe, corpus)
        data = data_sentences(run.recipe, corpus)
        card = model_card(run.recipe, corpus.manifest, entropy, data, stages, record.machine)
        (folder / "README.md").write_text(card, encoding="utf-8")


def _result(folder: Path, world: World) -> RunResult:
    def read() -> RunResult:
        try:
            stages, ledger = stage_table(folder), read_ledger(folder)
        except UserError as error:
            raise UserError(
                f"{error} The model is whole all the same: {folder / MODEL}."
            ) from error
        loss = float(ledger.loss[ledger.kind == "evaluation"].iloc[-1])
        return RunResult(folder, folder / MODEL, stages, loss, ledger.wall.dropna().iloc[-1])

    result: RunResult = world.broadcast_object(read, RunResult)
    return result
