"""`pretrain`: from a recipe and a corpus to a run directory with a finished model in it."""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import torch

from stackbert.batches.batches import Batch, training_plan, validation_batch
from stackbert.corpus.store import Corpus, open_corpus
from stackbert.errors import UserError
from stackbert.files import locked, new_folder, writing
from stackbert.machine import (
    describe,
    explaining_out_of_memory,
    keep_memory,
    pick_device,
    synchronise,
    working_precision,
)
from stackbert.model import model_class
from stackbert.model_files import save_model
from stackbert.pretraining.autotune import autotune, measure, scaled_to
from stackbert.pretraining.checkpoints import Checkpoints, CheckpointState, Counters
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
from stackbert.pretraining.tracking import check_trackers, open_trackers
from stackbert.pretraining.trainer import Trainer, recipe_model
from stackbert.progress import Progress
from stackbert.recipe import Recipe
from stackbert.tables import table_text
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
    stages: pd.DataFrame
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
        """The stages as text, and two sentences on where the time went."""
        shown = self.stages.rename(
            columns={"mfu": "MFU", "loss_grown": "loss after growth", "loss": "loss at the end"}
        ).drop(columns="flops")
        shown.insert(4, "share", self.stages.seconds / self.seconds)
        three, percent = "{:.3f}", "{:.0%}"
        formats = {
            "seconds": "{:,.1f}",
            "share": percent,
            "MFU": percent,
            "loss after growth": three,
            "loss at the end": three,
        }
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
    check_trackers(track)
    if budget is not None:
        parse_duration(budget)
    opened = corpus if isinstance(corpus, Corpus) else open_corpus(corpus)
    asked = Request(recipe=recipe, budget=budget, steps=steps, corpus=opened.fingerprint)
    run = Path(out)
    keep_memory()
    with (
        torch.random.fork_rng(),  # every step seeds dropout
        writing(f"training in {run}"),
        init_distributed() as world,
        explaining_out_of_memory(),
        contextlib.ExitStack() as stack,
    ):
        world.broadcast_object(lambda: stack.enter_context(locked(run, f"{run} is in use")))
        progress = (progress or Progress()) if world.is_main else Progress()
        _start_or_resume(run, asked, opened, resume, track, progress, world)
        told = world.broadcast_object(lambda: _result(run))
        return RunResult(run, run / MODEL, pd.DataFrame(told["stages"]), told["loss"], told["wall"])


def _result(run: Path) -> dict[str, Any]:
    try:
        stages, ledger = stage_table(run), read_ledger(run)
    except UserError as error:
        raise UserError(f"{error} The model is whole all the same: {run / MODEL}.") from error
    return {
        "stages": stages.to_dict("list"),
        "loss": float(ledger.loss[ledger.kind == "evaluation"].iloc[-1]),
        "wall": ledger.wall.dropna().iloc[-1],
    }


def _start_or_resume(
    run: Path,
    asked: Request,
    corpus: Corpus,
    resume: str,
    track: Sequence[str],
    progress: Progress,
    world: World,
) -> None:
    device = pick_device()
    watch = Stopwatch(lambda: synchronise(device))
    with watch.measuring("start-up"):
        found = world.broadcast_object(lambda: _find(run, asked, resume, world))
        if world.broadcast_object(lambda: (run / MODEL).exists()):
            progress.say(f"{run} is finished already; its model is {run / MODEL}.")
            return
        world.all_pass(lambda: _check_corpus(asked, corpus, world))
        if found is None:
            with watch.measuring("tuning"):
                recipe, rate = _tune(asked, corpus, device, progress, world)
            machine = describe(device) | ({"processes": world.size} if world.size > 1 else {})
            record = RunRecord(
                request=asked,
                recipe=recipe,
                corpus_folder=str(corpus.folder),
                machine=machine,
                matrix_rate=rate,
            )
            if world.is_main:
                write_run(run, record)
        else:
            record = RunRecord.model_validate(found)
    with progress, StopRequest() as stop:
        with watch.measuring("start-up"):
            state = _open(run, record, corpus, device, track, progress, watch, world)
        try:
            train(state, stop)
        except (OSError, UserError):
            if state.ledger is not None:
                state.ledger.check_place()  # a folder that is gone explains either
            raise
        finally:
            state.close()
    _export(state, record)


def _find(run: Path, asked: Request, resume: str, world: World) -> dict[str, Any] | None:
    """The record of the run in the folder, if it is the one asked for; None if it is empty."""
    if not is_run(run):
        check_new(run)
        return None
    if resume == "never":
        raise UserError(
            f"{run} holds a run already. Resume it (--resume auto) or choose a new folder."
        )
    record = read_run(run)
    check_same(run, record, asked)
    _check_rows(record.recipe, world)
    return record.model_dump(mode="json")


def _check_rows(recipe: Recipe, world: World) -> None:
    for index in range(len(recipe.stages)):
        rows = recipe.stage(index).sequences
        if rows % world.size:
            raise UserError(
                f"Stage {index + 1} has {rows} rows a step (batch.sequences), which {world.size} "
                "processes cannot share equally. Take a number of processes that divides them."
            )


def _check_corpus(asked: Request, corpus: Corpus, world: World) -> None:
    first = world.broadcast_object(lambda: asked.corpus)
    if asked.corpus != first:
        raise UserError(
            f"Process {world.rank} has another corpus ({asked.corpus}) than the first ({first}). "
            "Give every process the same."
        )
    if os.environ.get("LOCAL_RANK", "0") == "0":  # one process of each machine is enough
        corpus.verify()


def _tune(
    asked: Request, corpus: Corpus, device: torch.device, progress: Progress, world: World
) -> tuple[Recipe, float]:
    """The request's recipe with nothing left open, and the measured matrix rate."""
    seconds = None if asked.budget is None else parse_duration(asked.budget)

    def tune() -> dict[str, Any]:
        recipe = asked.recipe if asked.steps is None else asked.recipe.scaled(asked.steps)
        _check_rows(recipe, world)
        with torch.device("meta"):  # a wrong model field is found before anything is written
            recipe_model(recipe, corpus.vocabulary, recipe.stages[-1].depth)
        plan = training_plan(recipe, corpus)
        tuned = autotune(
            recipe,
            corpus.vocabulary,
            plan,
            device=device,
            seconds=seconds,
            world_size=world.size,
        )
        for note in tuned.notes:
            progress.say(note)
        return {"recipe": tuned.recipe.model_dump(mode="json"), "rate": tuned.matrix_rate}

    tuned = world.broadcast_object(tune)
    recipe, rate = Recipe.model_validate(tuned["recipe"]), float(tuned["rate"])
    if seconds is None:
        return recipe, rate
    progress.say("measuring seconds per step at every depth …")
    plan = training_plan(recipe, corpus)

    def batch(stage: int, turn: int) -> Batch:
        step = recipe.boundaries[stage] + min(turn, recipe.stages[stage].steps - 1)
        return plan.batch(step, world.rank, world.size)

    timing = measure(
        recipe,
        batch,
        validation_batch(recipe, corpus),
        corpus.vocabulary,
        device=device,
        precision=working_precision(recipe),
        world=world,
    )
    # Rank 0's clock decides, or the ranks would plan different runs.
    scaled = Recipe.model_validate(
        world.broadcast_object(lambda: scaled_to(recipe, timing, seconds).model_dump(mode="json"))
    )
    pace = ", ".join(
        f"{1000 * s:.0f} ms at depth {stage.depth}"
        for s, stage in zip(timing.step, recipe.stages, strict=True)
    )
    progress.say(f"{scaled.total_steps:,} steps fit into {asked.budget}: a step takes {pace}")
    return scaled, rate


def _open(
    run: Path,
    record: RunRecord,
    corpus: Corpus,
    device: torch.device,
    track: Sequence[str],
    progress: Progress,
    watch: Stopwatch,
    world: World,
) -> Run:
    """The run at its newest whole checkpoint, or at its beginning.

    Only rank 0 reads the run directory, which may be on its machine alone.
    """
    recipe = record.recipe
    checkpoints = Checkpoints(run / CHECKPOINTS)

    def newest() -> dict[str, Any] | None:
        state = checkpoints.newest(progress.say)
        return None if state is None else state.model_dump(mode="json")

    found = world.broadcast_object(newest)
    counters, keep_bytes, optimizer_state = Counters(), 0, NamedState()
    if found is None:
        depth = recipe.stages[0].depth
        model = recipe_model(recipe, corpus.vocabulary, depth, seed=recipe.seed)
    else:
        state = CheckpointState.model_validate(found)
        counters, keep_bytes = state.counters, state.ledger_bytes
        model, optimizer_state = _load(checkpoints, state, recipe, corpus, world)
        watch.carry_over(state.seconds)
        progress.say(f"resuming at step {counters.step:,} of {recipe.total_steps:,}")
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
        held = "a shard" if trainer.is_sharded else "a copy"
        progress.say(f"{world.size} processes share each step, each with {held} of the model")
    first = 0 if found is None else counters.step + 1
    config = recipe.model_dump(mode="json")
    return Run(
        folder=run,
        recipe=recipe,
        corpus=corpus,
        plan=training_plan(recipe, corpus),
        validation=validation_batch(recipe, corpus),
        trainer=trainer,
        counters=counters,
        checkpoints=checkpoints,
        ledger=Ledger(run / LEDGER, keep_bytes=keep_bytes) if world.is_main else None,
        watch=watch,
        trackers=open_trackers(track, run, first=first, config=config) if world.is_main else [],
        progress=progress,
        matrix_rate=record.matrix_rate * world.size,
        world=world,
    )


def _load(
    checkpoints: Checkpoints, state: CheckpointState, recipe: Recipe, corpus: Corpus, world: World
) -> "tuple[PreTrainedModel, NamedState]":
    """Model and optimizer state of a checkpoint, which rank 0 reads and sends to the others."""
    read: list[Any] = []

    def load() -> dict[str, dict[str, tuple[list[int], str]]]:
        kind = model_class(recipe.model.type, next_sentence=recipe.objective.next_sentence)
        read.extend(checkpoints.load(state.counters.step, kind))
        return {
            name: {key: (list(t.shape), str(t.dtype)) for key, t in tensors.items()}
            for name, tensors in read[1].items()
        }

    layout = world.broadcast_object(load)
    if not world.is_main:
        empty = {
            name: {
                key: torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))
                for key, (shape, dtype) in tensors.items()
            }
            for name, tensors in layout.items()
        }
        read.extend([recipe_model(recipe, corpus.vocabulary, state.depth), empty])
    model, optimizer_state = read
    world.broadcast(p.data for _, p in model.named_parameters())
    for name, tensors in layout.items():
        world.broadcast(optimizer_state[name][key] for key in tensors)
    return model, optimizer_state


def _export(state: Run, record: RunRecord) -> None:
    """Write the final model, whole or not at all."""
    weights = state.trainer.full_weights()
    if not state.world.is_main:
        return
    stages = None
    with contextlib.suppress(UserError):  # a damaged ledger, which is said when the model is there
        stages = stage_table(state.folder)
    with new_folder(state.folder / MODEL) as folder:
        save_model(
            state.trainer.model,
            folder,
            tokenizer=state.corpus.tokenizer_folder,
            sequence_length=state.recipe.longest_sequence,
            weights=weights,
        )
        card = model_card(state.recipe, state.corpus.manifest, stages, record.machine)
        (folder / "README.md").write_text(str(card), encoding="utf-8")
