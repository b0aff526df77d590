"""The training loop: grow if due → step → ledger → evaluate if due → save if due.

Nothing in here waits for the device inside a step: losses are read when a line of the ledger is
due, batches are made ahead, checkpoints are written by a thread.
"""

import copy
import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stackbert.batches.batches import Batch, BatchPlan
from stackbert.corpus.store import Corpus
from stackbert.errors import Interrupted, RunError, StackBertError
from stackbert.pretraining.autotune import evaluation_interval
from stackbert.pretraining.checkpoints import (
    Checkpoints,
    CheckpointState,
    Counters,
    Window,
    snapshot,
)
from stackbert.pretraining.distributed import World
from stackbert.pretraining.ledger import Ledger, Stopwatch
from stackbert.pretraining.schedule import learning_rate_factor
from stackbert.pretraining.signals import StopRequest
from stackbert.pretraining.tracking import Tracker
from stackbert.pretraining.trainer import StepResult, Trainer
from stackbert.progress import Progress
from stackbert.recipe import Recipe

_AHEAD = {"cpu": 0, "cuda": 3}
"""Batches made ahead. On a CPU the thread would only take cores from the step."""
_AFTER_GROWTH = 500
"""Steps for which a growth counts among the likely causes of a loss that is not finite."""


@dataclass
class Run:
    """A run in progress: what the loop works on, in one process."""

    folder: Path
    recipe: Recipe
    corpus: Corpus
    plan: BatchPlan
    validation: Batch
    trainer: Trainer
    counters: Counters
    checkpoints: Checkpoints
    ledger: Ledger | None
    """None on other ranks than the main one."""
    watch: Stopwatch
    trackers: list[Tracker]
    progress: Progress
    matrix_rate: float
    """FLOP/s of all processes together: what MFU is a share of."""
    world: World
    unread: list[tuple[int, StepResult]] = field(default_factory=list)
    """Steps, with their numbers, whose losses were not read from the device yet."""

    def write(self, kind: str, **fields: Any) -> None:  # noqa: ANN401 (JSON values)
        """A line of the ledger, on the main rank."""
        if self.ledger is not None:
            self.ledger.write(kind, **fields)

    def track(self, numbers: dict[str, float]) -> None:
        """Numbers for the trackers."""
        for tracker in self.trackers:
            tracker.log(self.counters.step, numbers)

    def close(self) -> None:
        """Finish the checkpoint that is being written; close the ledger and the trackers."""
        try:
            self.checkpoints.close()
        finally:
            if self.ledger is not None:
                self.ledger.close()
            for tracker in self.trackers:
                tracker.close()


def train(run: Run, stop: StopRequest) -> None:
    """Train from wherever the counters stand to the recipe's last step.

    Raises:
        Interrupted: `stop` noted a signal; the step was finished and a checkpoint written.
        RunError: a loss, gradient or weight is not finite any more.
    """
    recipe, trainer, at, watch, world = run.recipe, run.trainer, run.counters, run.watch, run.world
    total, boundaries = recipe.total_steps, recipe.boundaries
    last_save = time.monotonic()
    with watch.measuring("training"):
        if at.step == 0 and at.last_loss is None:
            _evaluate(run, stage=0)
        batches = _batches(run.plan, at.step, total, _AHEAD[trainer.device.type], world)
        while at.step < total:
            stage = recipe.stage_index(at.step)

            # Grow.
            if recipe.stages[stage].depth != trainer.depth:
                _grow(run, stage)

            # Step. Waiting for a batch holds up nothing while the device still works.
            trainer.micro_batch = recipe.stage(stage).micro_batch
            factor = learning_rate_factor(recipe, at.step)
            with watch.measuring("input" if trainer.idle else "training", on_device=False):
                batch = next(batches)
            compiles = trainer.will_compile(batch)
            with watch.measuring("compilation" if compiles else "training", on_device=compiles):
                result = trainer.step(at.step, batch, factor)
            run.unread.append((at.step, result))
            # On a CPU the step has ended, so reading costs nothing.
            if trainer.device.type == "cpu" or recipe.skip_bad_steps:
                _read_losses(run, batch)
            tokens = batch.input_ids_BS.numel() * world.size
            flops = trainer.flops(batch) * world.size
            at.step += 1
            at.tokens += tokens
            at.flops += flops
            at.last_loss = None
            if not compiles:
                at.window.tokens += tokens
                at.window.flops += flops

            # Ledger.
            ends_stage = at.step in boundaries
            if ends_stage or at.step % recipe.log_every == 0:
                _log(run, stage, result, factor * recipe.optimizer.lr)

            # Evaluate.
            if ends_stage or at.step % evaluation_interval(recipe) == 0:
                _evaluate(run, stage)
            if ends_stage:
                seconds = watch.read("training")
                run.write(
                    "time",
                    step=at.step,
                    stage=stage,
                    depth=trainer.depth,
                    seconds=seconds,
                    wall=dict(watch.seconds),
                )

            # Save. All ranks agree on the main rank's clock and on a signal that any of them had.
            every_steps, every_minutes = recipe.checkpoint.every_steps, recipe.checkpoint.every_minutes
            minutes = (time.monotonic() - last_save) / 60.0
            due = (every_steps is not None and at.step % every_steps == 0) or (
                every_minutes is not None and minutes >= every_minutes
            )
            agreed = world.all_reduce_max(2 * (stop.signal or 0) + (world.is_main and due))
            signal, due = agreed // 2, agreed % 2 == 1
            if ends_stage or signal or due:
                _save(run, stage)
                last_save = time.monotonic()
            run.checkpoints.poll()
            if signal and at.step < total:
                with watch.measuring("checkpoint"):
                    run.checkpoints.wait()
                raise Interrupted(
                    f"Stopped at step {at.step:,} of {total:,}; everything is saved in "
                    f"{run.folder}. Run the same command again to resume.",
                    signal,
                )
        with watch.measuring("checkpoint"):
            run.checkpoints.wait()
    seconds = watch.seconds["training"]
    run.write("end", step=at.step, seconds=seconds, wall=dict(watch.seconds))


def _batches(
    plan: BatchPlan, first: int, end: int, ahead: int, world: World
) -> Iterator[Batch]:
    """This rank's batches of steps first … end - 1, made ahead on a thread of their own."""
    if ahead == 0:
        for step in range(first, end):
            yield plan.batch(step, world.rank, world.size)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
        ready: deque[Future[Batch]] = deque()
        try:
            for step in range(first, end):
                while len(ready) <= ahead and step + len(ready) < end:
                    number = step + len(ready)
                    ready.append(thread.submit(plan.batch, number, world.rank, world.size))
                yield ready.popleft().result()
        finally:
            for future in ready:
                future.cancel()


def _grow(run: Run, stage: int) -> None:
    at, trainer, growth = run.counters, run.trainer, run.recipe.growth
    source, target, before = trainer.depth, run.recipe.stages[stage].depth, at.last_loss
    with run.watch.measuring("growth"):
        trainer.grow(target, growth, at.step)
    with run.watch.measuring("evaluation"):
        after = trainer.evaluate(run.validation).loss
    run.write(
        "growth",
        step=at.step,
        stage=stage,
        operator=growth.operator,
        optimizer_state=growth.optimizer_state,
        source_depth=source,
        target_depth=target,
        loss_before=before,
        loss_after=after,
        seconds=run.watch.read("training"),
        growth_seconds=run.watch.seconds["growth"],
    )
    was = "" if before is None else f" from {before:.3f}"
    run.progress.say(
        f"step {at.step:,}: grown {source} → {target} layers by {growth.operator}; validation "
        f"loss{was} to {after:.3f}"
    )


def _log(run: Run, stage: int, result: StepResult, rate: float) -> None:
    _read_losses(run)
    at, window, depth = run.counters, run.counters.window, run.trainer.depth
    training = run.watch.read("training")
    seconds = training - window.started
    finite = window.steps or math.nan  # all steps of a window may have been skipped
    masked = window.masked_lm / finite
    pair = window.next_sentence / finite if run.recipe.objective.next_sentence else None
    loss = masked + (pair or 0.0)
    tokens_per_second = window.tokens / seconds
    run.write(
        "step",
        step=at.step,
        stage=stage,
        depth=depth,
        tokens=at.tokens,
        flops=at.flops,
        seconds=training,
        loss=loss,
        masked_lm=masked,
        next_sentence=pair,
        lr=rate,
        gradient_norm=result.gradient_norm,
        tokens_per_second=tokens_per_second,
        mfu=window.flops / seconds / run.matrix_rate,
    )
    run.track(
        {
            "train/loss": loss,
            "train/lr": rate,
            "train/gradient_norm": result.gradient_norm,
            "train/tokens_per_second": tokens_per_second,
            "train/depth": float(depth),
        }
    )
    run.progress.step(
        at.step,
        run.recipe.total_steps,
        f"stage {stage + 1}/{len(run.recipe.stages)}, depth {depth}, loss {loss:.3f}, "
        f"lr {rate:.2e}, {tokens_per_second:,.0f} tokens/s",
    )
    at.window = Window(started=training)


def _evaluate(run: Run, stage: int) -> None:
    _read_losses(run)
    at, depth = run.counters, run.trainer.depth
    with run.watch.measuring("evaluation"):
        result = run.trainer.evaluate(run.validation)
    if not math.isfinite(result.loss):
        raise _not_finite(run, "validation loss", at.step, stage)
    at.last_loss = result.loss
    run.write(
        "evaluation",
        step=at.step,
        stage=stage,
        depth=depth,
        tokens=at.tokens,
        flops=at.flops,
        seconds=run.watch.read("training"),
        loss=result.loss,
        masked_lm=result.masked_lm,
        next_sentence=result.next_sentence,
    )
    run.track({"validation/loss": result.loss})
    run.progress.say(f"step {at.step:,}: validation loss {result.loss:.3f} (depth {depth})")


def _save(run: Run, stage: int) -> None:
    _read_losses(run)
    recipe, trainer = run.recipe, run.trainer
    if not trainer.finite:  # a checkpoint must be worth resuming from
        raise _not_finite(run, "model", run.counters.step, stage)
    with run.watch.measuring("checkpoint"):
        run.checkpoints.wait()
        weights, optimizer = trainer.full_weights(), trainer.full_optimizer_state()
        if run.ledger is None:
            return
        weights = snapshot(weights)
        tensors = snapshot(
            {f"{name}|{key}": t for name, held in optimizer.items() for key, t in held.items()}
        )
        run.watch.read("checkpoint")  # so that the state has the time of this copy
        run.ledger.check_place()
        run.ledger.sync()
        state = CheckpointState(
            counters=copy.deepcopy(run.counters),
            depth=trainer.depth,
            seconds=dict(run.watch.seconds),
            ledger_bytes=run.ledger.size,
        )
        run.checkpoints.save(
            state,
            trainer.model,
            weights,
            tensors,
            tokenizer=run.corpus.tokenizer_folder,
            sequence_length=recipe.longest_sequence,
            keep=recipe.checkpoint.keep,
            always=set(recipe.boundaries[1:]),
        )


def _read_losses(run: Run, batch: Batch | None = None) -> None:
    """Add the losses of the steps since the last reading to the window.

    Args:
        run: whose.
        batch: of the last step, if a bad result has left the weights as they were.

    Raises:
        RunError: a loss is not finite, and no more steps may be skipped.
    """
    at, window, allowed = run.counters, run.counters.window, run.recipe.skip_bad_steps
    for number, result in run.unread:
        if result.finite:
            window.steps += 1
            window.masked_lm += result.losses.masked_lm
            window.next_sentence += result.losses.next_sentence or 0.0
            continue
        stage = run.recipe.stage_index(number)
        rows = "" if batch is None else _bad_rows(run, batch)
        if at.skipped >= allowed:
            raise _not_finite(run, "loss", number, stage, f" ({rows})" if rows else "")
        at.skipped += 1
        run.write(
            "skipped",
            step=number,
            stage=stage,
            depth=run.trainer.depth,
            loss=result.losses.loss,
            gradient_norm=result.gradient_norm,
            rows=rows,
        )
        run.progress.say(
            f"step {number:,} was skipped: its loss or gradient is not finite"
            f"{f' ({rows})' if rows else ''}; {at.skipped} of at most {allowed}"
        )
    run.unread.clear()


def _bad_rows(run: Run, batch: Batch) -> str:
    bad = run.trainer.bad_rows(batch)
    if bad is None:
        return ""
    if not bad:
        return "the loss of each row alone is finite: the gradient is not"
    noun = "row" if len(bad) == 1 else "rows"
    return f"{noun} {', '.join(str(row + 1) for row in bad)} of the step"


def _not_finite(run: Run, what: str, step: int, stage: int, where: str = "") -> RunError:
    """What is wrong, what is kept, and what to try."""
    lost = ""
    try:
        run.checkpoints.wait()  # so that the last checkpoint is the last
    except StackBertError as error:
        lost = f"A later one could not be written ({error}) "
    kept = run.checkpoints.paths()
    recipe = run.recipe
    causes = "a learning rate too high for this model (optimizer.lr, optimizer.muon_lr)"
    if step < recipe.schedule.warmup_steps * 2:
        causes += ", a warm-up too short (schedule.warmup_steps)"
    if any(0 <= step - grown < _AFTER_GROWTH for grown in recipe.growth_steps):
        causes += ", the jump after a growth (schedule.rewarmup_steps)"
    if recipe.optimizer.clip_norm is None:
        causes += ", gradients that are not clipped (optimizer.clip_norm)"
    last = f"The last checkpoint is {kept[-1]}. " if kept else "No checkpoint was due yet. "
    return RunError(
        f"The {what} is not finite at step {step:,} (stage {stage + 1}, depth "
        f"{recipe.stages[stage].depth}){where}, so the run was stopped. {last}{lost}Likely causes: "
        f"{causes}. Change one and start a new run."
    )
