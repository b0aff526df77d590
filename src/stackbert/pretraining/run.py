"""`pretrain`: from a recipe and a corpus to a run directory with a finished model in it."""

import contextlib
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from stackbert.batches.batches import data_sentences, validation_entropy
from stackbert.corpus.store import Corpus, open_corpus
from stackbert.errors import Interrupted, UserError
from stackbert.files import locked, new_folder, reading, writing
from stackbert.machine import describe, gpu_settings, keep_memory, pick_device, synchronise
from stackbert.model_files import read_config, save_model
from stackbert.pretraining.autotune import autotune, evaluation_interval, measure, scaled_to
from stackbert.pretraining.checkpoints import Checkpoints, CheckpointState, checkpoint_name
from stackbert.pretraining.distributed import World, init_distributed
from stackbert.pretraining.extend import copy_checkpoint, extension, longer_recipe, steps_of
from stackbert.pretraining.ledger import LEDGER, Ledger, Stopwatch, read_ledger, stage_table
from stackbert.pretraining.loop import Run, train
from stackbert.pretraining.model_card import model_card
from stackbert.pretraining.optimizers import NamedState
from stackbert.pretraining.record import (
    CHECKPOINTS,
    LOG,
    MODEL,
    Request,
    RunRecord,
    find_run,
    read_run,
    write_run,
)
from stackbert.pretraining.signals import StopRequest
from stackbert.pretraining.starting import first_model, start_sentences, started_from
from stackbert.pretraining.tracking import TRACKERS, open_tracker
from stackbert.pretraining.trainer import Trainer, recipe_class
from stackbert.progress import Lines, Progress
from stackbert.recipe import Recipe
from stackbert.recipes import differing_fields
from stackbert.tables import Frame, Tables, table_text
from stackbert.units import parse_duration

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class RunResult(Tables):
    """A finished run."""

    folder: Path
    model_folder: Path
    """The final model as a Hugging Face checkpoint."""
    stages: Frame
    """`stage_table`: what each stage cost and brought."""
    loss: float
    """The last validation loss, in nats."""
    wall: dict[str, float]
    """Seconds by kind of work."""

    @property
    def seconds(self) -> float:
        """Seconds of training."""
        return float(self.stages.seconds.sum())

    def tables(self) -> dict[str, Frame]:
        """The stages."""
        return {"stages": self.stages}

    def table(self) -> str:
        """The stages as text, and where the time went in a sentence or two."""
        shown = self.stages.drop(columns="flops")
        shown.insert(4, "share", self.stages.seconds / self.seconds)
        shown.columns = [*shown.columns[:5], "MFU", "loss after growth", "loss at the end"]
        forms = ("{}", "{:,}", "{:,}", "{:,.1f}", "{:.0%}", "{:.0%}", "{:.3f}", "{:.3f}")
        formats = dict(zip(shown.columns, forms, strict=True))
        lines = [table_text(shown, f"Stages of {self.folder}", formats)]
        if len(self.stages) > 1:
            last = self.stages.iloc[-1]
            deep = self.stages.steps.sum() * last.seconds / last.steps
            lines.append(
                f"{self.seconds:,.0f} s of training; as many steps at depth {last.depth:.0f} from "
                f"the start would have taken {deep:,.0f} s ({self.seconds / deep:.0%})."
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
    start: str | Path | None = None,
    budget: str | None = None,
    steps: int | None = None,
    resume: Literal["auto", "never"] = "auto",
    track: Sequence[str] = (),
    progress: Progress | None = None,
) -> RunResult:
    """Train a model by progressive stacking (Gong et al., ICML 2019, Algorithm 1).

    A run that was killed and is called again ends with the same weights: to the last bit on the
    same kind of CPU with as many threads and the same torch, or with `deterministic` on the same
    GPU, otherwise up to rounding.

    Args:
        recipe: from `load_recipe`.
        corpus: a folder that `build_corpus` made, or an opened corpus.
        out: the run directory; an unfinished run there is resumed.
        start: train this model on instead of a new one: a Hugging Face folder or a finished run.
            The recipe's stages begin at its depth; its `model` part gives way to the folder's.
        budget: wall-clock time such as "30m": the stages are scaled to fit, each keeping its
            share, by seconds per step measured here.
        steps: scale to this many steps instead.
        resume: "never" refuses a folder that holds a run.
        track: of "tensorboard", "wandb", "trackio", "mlflow".
        progress: hears of the run's progress; silent by default.

    Raises:
        UserError: a wrong recipe, corpus or folder; nothing was trained.
        RunError: the loss is not finite, or disk or memory is full; the last good checkpoint is
            kept.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP; a checkpoint was written, the same call resumes.

    Example:
        >>> import stackbert as sb
        >>> recipe = sb.load_recipe("small-cpu")
        >>> result = sb.pretrain(recipe, corpus="corpus", out="run")  # doctest: +SKIP
    """
    if budget is not None and steps is not None:
        raise UserError("Give a budget or a number of steps, not both.")
    if start is None and recipe.start is not None:
        start = recipe.start.folder

    def request(corpus: Corpus) -> Request:
        own = recipe if start is None else started_from(recipe, start, corpus, Path(out))
        return Request(recipe=own, budget=budget, steps=steps, corpus=corpus.fingerprint)

    seconds = None if budget is None else parse_duration(budget)
    return _run(request, None, corpus, Path(out), seconds, resume, track, progress)


def extend(
    run: str | Path,
    *,
    by: str,
    corpus: str | Path | Corpus,
    out: str | Path,
    resume: Literal["auto", "never"] = "auto",
    track: Sequence[str] = (),
    progress: Progress | None = None,
) -> RunResult:
    """Train a finished run longer, in a run directory of its own; the finished one stays.

    With `constant`, and with `wsd` from the checkpoint before its decay, the result is what the
    longer run would have been from the start, to the bit on the same CPU and corpus. Otherwise the
    schedule begins anew after the last step, its warm-up included; the optimizer's state is kept.

    Args:
        run: a finished run directory.
        by: time to train from that checkpoint on ("2h"), or steps on top ("2000steps").
        corpus: the same or another one, with the same tokenizer.
        out, resume, track, progress: as `pretrain` takes them; it raises what that does.
    """
    seconds = None if steps_of(by) else parse_duration(by)
    request = functools.partial(extension, Path(run), by)
    return _run(request, Path(run), corpus, Path(out), seconds, resume, track, progress)


def resume_run(
    out: str | Path,
    *,
    corpus: str | Path | Corpus | None = None,
    resume: Literal["auto", "never"] = "auto",
    track: Sequence[str] = (),
    progress: Progress | None = None,
) -> RunResult:
    """Go on with an unfinished run by what its folder says; the corpus may have moved."""
    folder = Path(out)
    record = read_run(folder)
    asked = record.request
    of_another = asked.extend or asked.recipe.start
    if of_another and not any((folder / CHECKPOINTS).glob("step-????????")):
        raise UserError(f"{folder} has no checkpoint yet. Give the whole command again.")

    def request(corpus: Corpus) -> Request:
        return asked.model_copy(update={"corpus": corpus.fingerprint})

    corpus = corpus or record.corpus_folder
    return _run(request, None, corpus, folder, None, resume, track, progress)


def _run(
    request: Callable[[Corpus], Request],
    parent: Path | None,
    corpus: str | Path | Corpus,
    folder: Path,
    seconds: float | None,
    resume: str,
    track: Sequence[str],
    progress: Progress | None,
) -> RunResult:
    for name in set(track) - set(TRACKERS):
        raise UserError(f"--track {name}: choose from {', '.join(TRACKERS)}.")
    corpus = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
    keep_memory()
    device = pick_device()
    with (
        writing(f"training in {folder}"),
        init_distributed() as world,
        contextlib.ExitStack() as stack,
    ):
        world.broadcast_object(lambda: stack.enter_context(locked(folder, f"{folder} is in use")))
        progress = (progress or Progress()) if world.is_main else Progress()
        watch = Stopwatch(lambda: synchronise(device))
        with watch.measuring("start-up"):
            # Only rank 0 looks into the run directory, which may be on its machine alone.
            asked = world.broadcast_object(lambda: request(corpus), Request)
            stack.enter_context(gpu_settings(device, deterministic=asked.recipe.deterministic))
            record = world.broadcast_object(
                lambda: find_run(folder, asked, resume), RunRecord | None
            )
            if world.broadcast_object((folder / MODEL).exists):
                progress.say(f"{folder} is finished already; its model is {folder / MODEL}.")
                return world.broadcast_object(lambda: _result(folder), RunResult)
            console = progress
            if world.is_main:
                progress = Lines(folder / LOG, beside=console)
            fingerprint = world.broadcast_object(lambda: corpus.fingerprint)
            tokenizer = world.all_pass(lambda: _check(asked.recipe, corpus, fingerprint, world))
            if record is None:
                with watch.measuring("tuning"):
                    record = _new_record(asked, parent, corpus, seconds, device, progress, world)
                if world.is_main:
                    write_run(folder, record)
            elif changed := differing_fields(record.machine, describe(device)):
                progress.say(
                    f"Warning: the run began elsewhere: {', '.join(changed)}. It goes on, and may "
                    "round differently from here on."
                )

        recipe = record.recipe
        origin = start_sentences(recipe.start) if recipe.start else []
        if asked.parent:
            origin.append(f"A finished run was trained longer ({asked.extend}): {asked.parent}.")
        for sentence in [*origin, *data_sentences(recipe, corpus)]:
            progress.say(sentence)
        with console, StopRequest() as stop:
            with watch.measuring("start-up"):
                checkpoints = Checkpoints(folder / CHECKPOINTS, recipe, tokenizer)

                def newest() -> CheckpointState | None:
                    if parent is not None and not checkpoints.paths():
                        copy_checkpoint(parent, asked.recipe, folder)
                    return checkpoints.newest(progress.say)

                state = world.broadcast_object(newest, CheckpointState | None)
                if state is None:
                    state = CheckpointState(depth=recipe.stages[0].depth)
                    model, moments = first_model(recipe, corpus, world), NamedState()
                else:
                    for kind, spent in state.seconds.items():
                        watch.seconds[kind] += spent
                    model, moments = _load(checkpoints, state.counters.step, recipe, world)
                    done = f"{state.counters.step:,} of {recipe.total_steps:,}"
                    progress.say(f"resuming at step {done}")
                trainer = Trainer(model, recipe, device=device, state=moments, world=world)
                if world.size > 1:
                    held = "a shard" if trainer.parallel.is_sharded else "a copy"
                    progress.say(f"{world.size} processes, each with {held} of the model")
                at = state.counters
                run = Run(folder, record, corpus, trainer, at, checkpoints, watch, progress, world)
                if world.is_main:
                    run.ledger = Ledger(folder / LEDGER, keep_bytes=state.ledger_bytes)
                    step = state.counters.step
                    run.trackers = [open_tracker(name, folder, step, recipe) for name in track]
            try:
                with contextlib.closing(run):
                    train(run, stop)
            except (OSError, UserError):
                if run.ledger is not None:
                    run.ledger.check_place()  # a folder that is gone explains either
                raise
            except Interrupted as error:
                if world.is_main:  # the screen hears it from the command
                    Lines(folder / LOG).say(str(error))
                raise
        if recipe.tail_average:
            trainer.swap_average()
        weights = trainer.parallel.full_weights()
        if world.is_main:
            stages = None
            with contextlib.suppress(UserError):  # a damaged ledger; said when the model is there
                stages = stage_table(folder)
            with new_folder(folder / MODEL) as place:
                save_model(
                    trainer.model,
                    place,
                    tokenizer=tokenizer,
                    weights=weights,
                    sequence_length=recipe.longest_sequence,
                )
                card = model_card(recipe, corpus, origin, stages, record.machine, place)
                (place / "README.md").write_text(card, encoding="utf-8")
            loss, entropy = at.last_loss, validation_entropy(recipe, corpus)
            if loss is not None and not recipe.objective.next_sentence:
                side = "below" if loss <= entropy else "above"
                progress.say(
                    f"Validation loss {loss:.3f} nats, {abs(entropy - loss):.3f} {side} that of a "
                    f"model that knows word frequencies alone ({entropy:.3f}, the unigram entropy)."
                )
        return world.broadcast_object(lambda: _result(folder), RunResult)


def _check(recipe: Recipe, corpus: Corpus, fingerprint: str, world: World) -> dict[str, bytes]:
    """Refuse rows that the processes cannot share, and a corpus that differs or is damaged.

    Returns its tokenizer's files, so that no change while the run trains reaches a checkpoint.
    """
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
    with reading(corpus.tokenizer_folder):
        tokenizer = {path.name: path.read_bytes() for path in corpus.tokenizer_folder.iterdir()}
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one process of each machine is enough
        corpus.verify()
    return tokenizer


def _new_record(
    asked: Request,
    parent: Path | None,
    corpus: Corpus,
    seconds: float | None,
    device: torch.device,
    progress: Progress,
    world: World,
) -> RunRecord:
    """The request's recipe with nothing left open, over as many steps as fit into a budget."""
    recipe = asked.recipe if asked.steps is None else asked.recipe.scaled(asked.steps)
    options: dict[str, Any] = {"device": device, "seconds": seconds, "say": progress.say}
    recipe, rate = world.broadcast_object(
        lambda: autotune(recipe, corpus, world_size=world.size, **options), tuple[Recipe, float]
    )
    step_seconds = 0.0
    if seconds is not None:
        progress.say("measuring seconds per step at every depth …")
        patience = min(30.0, 0.01 * seconds) if world.size == 1 else 0.0
        timing = measure(recipe, corpus, device=device, patience=patience, world=world)
        pairs = zip(timing.step, recipe.stages, strict=True)
        pace = ", ".join(f"{1000 * step:.0f} ms at depth {s.depth}" for step, s in pairs)
        step_seconds = timing.step[-1] + timing.evaluation[-1] / evaluation_interval(recipe)
        # Rank 0's clock decides for all.
        if parent is None:
            recipe = world.broadcast_object(lambda: scaled_to(recipe, timing, seconds), Recipe)
        fitting = f"; {recipe.total_steps:,} steps fit into {asked.budget}" if asked.budget else ""
        progress.say(f"a step takes {pace}{fitting}")
    if parent is not None:
        finished, by = recipe, asked.extend or ""
        recipe = world.broadcast_object(
            lambda: longer_recipe(parent, finished, by, step_seconds), Recipe
        )
    return RunRecord(
        request=asked,
        recipe=recipe,
        corpus_folder=str(corpus.folder),
        machine=describe(device),
        matrix_rate=rate,
    )


def _load(
    checkpoints: Checkpoints, step: int, recipe: Recipe, world: World
) -> "tuple[PreTrainedModel, NamedState]":
    """Model and optimizer state of a checkpoint, which rank 0 reads and sends to the others."""
    folder = checkpoints.folder / checkpoint_name(step)
    config = world.broadcast_object(lambda: read_config(folder))
    tensors = world.broadcast(lambda: checkpoints.load(step))
    kind = recipe_class(recipe)
    with reading(folder / "config.json"):
        model = kind(kind.config_class.from_dict(config)).train()
    # Of tied parameters' names a file may hold any.
    parameters, state = dict(model.named_parameters(remove_duplicate=False)), NamedState()
    for flat, tensor in tensors.items():
        name, _, key = flat.partition("|")
        if name not in parameters or (tensor.ndim and tensor.shape != parameters[name].shape):
            raise UserError(f"{folder} does not fit its config.json: {flat} has no place in it.")
        if key:
            state.setdefault(name, {})[key] = tensor
    # What was never trained has no state: frozen layers, and parts of others' models.
    is_whole = recipe.start is None and all(stage.train == "all" for stage in recipe.stages)
    stored = {parameters[name]: tensor for name, tensor in tensors.items() if name in parameters}
    for name, parameter in model.named_parameters():
        if parameter not in stored or (name not in state and is_whole):
            raise UserError(f"{folder} lacks {name}, in its weights or its optimizer's state.")
        # Copied into fresh memory: loaded tensors look into a mapped file at any offset, and some
        # CPU kernels round differently there.
        parameter.data.copy_(stored[parameter])
    return model, state


def _result(folder: Path) -> RunResult:
    try:
        stages, ledger = stage_table(folder), read_ledger(folder)
    except UserError as error:
        raise UserError(f"{error} The model is whole: {folder / MODEL}.") from error
    loss = float(ledger.loss[ledger.kind == "evaluation"].iloc[-1])
    return RunResult(folder, folder / MODEL, stages, loss, ledger.wall.dropna().iloc[-1])
